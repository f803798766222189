//! What a run showed of each job and node, for those who count more than the report does.
//! Invariant: told by the world, never by a peer.

use crate::check::{JobSeen, Went};
use crate::report::Report;
use crate::world::World;

/// A node, as far as figures need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSeen {
    /// Its fleet and number.
    pub name: String,
    /// Its fleet.
    pub fleet: String,
}

/// What a run showed.
#[derive(Clone, Debug)]
pub struct Observed {
    /// In short.
    pub report: Report,
    /// Every node; jobs name them by their place here.
    pub hosts: Vec<HostSeen>,
    /// Every job that ended, in the order in which they did.
    pub jobs: Vec<JobSeen>,
}

impl Observed {
    pub(crate) fn of(world: &World, report: Report) -> Self {
        let hosts = world.hosts.iter().map(|host| HostSeen { name: host.name.clone(), fleet: host.fleet.clone() });
        Self { report, hosts: hosts.collect(), jobs: world.checks().seen().to_vec() }
    }

    /// Jobs of a fleet's gateways that went one of these ways.
    pub fn jobs_of<'a>(&'a self, fleet: &'a str, ways: &'a [Went]) -> impl Iterator<Item = &'a JobSeen> {
        self.jobs.iter().filter(move |job| self.hosts[job.host].fleet == fleet && ways.contains(&job.went))
    }
}
