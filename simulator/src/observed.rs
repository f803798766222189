//! What a run showed of each job and node, for those who count more than the report does.
//! Invariant: told by the world, never by a peer.

use crate::adversary::Adversary;
use crate::check::{JobSeen, LegSeen, Went};
use crate::network::HostId;
use crate::report::Report;
use crate::world::World;
use spillway_ledger::Credits;
use spillway_protocol::Now;

/// A node, as far as figures need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSeen {
    /// Its fleet and number.
    pub name: String,
    /// Its fleet.
    pub fleet: String,
    /// How it broke the rules, if it did.
    pub adversary: Option<Adversary>,
    /// When it left for good, if it did.
    pub left: Option<Now>,
    /// What its hardware said for strangers, and what of that it sent, in bytes.
    pub made: u64,
    /// See `made`.
    pub sent: u64,
    /// What its account began with, and what it has in the end, deposits that are still locked not counted.
    pub balance: [Credits; 2],
}

/// A session at the end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionSeen {
    /// Who paid.
    pub consumer: HostId,
    /// Who was paid.
    pub provider: HostId,
    /// What was locked.
    pub deposit: Credits,
    /// What was paid of it, all shares together.
    pub settled: Credits,
    /// What the provider had of that.
    pub to_provider: Credits,
    /// The most that its consumer may have to pay, by the rule `ConsumerExposed`.
    pub bound: Credits,
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
    /// Every leg at a provider that is over, in the order in which its consumer saw its end.
    pub legs: Vec<LegSeen>,
    /// Every session, by its id.
    pub sessions: Vec<SessionSeen>,
}

impl Observed {
    pub(crate) fn of(world: &World, report: Report) -> Self {
        let (book, scenario) = (&world.authority.book, &world.scenario);
        let hosts = world.hosts.iter().map(|host| {
            let began = scenario.fleets.iter().find(|fleet| fleet.name == host.fleet).map_or(0, |it| it.balance_micro);
            HostSeen {
                name: host.name.clone(),
                fleet: host.fleet.clone(),
                adversary: host.adversary,
                left: host.left,
                made: host.made,
                sent: host.sent,
                balance: [Credits::new(began), book.balance(&host.account)],
            }
        });
        let sessions = world.authority.sessions().filter_map(|(id, seen)| {
            let node = |account| world.by_account.get(account)?.first().copied();
            Some(SessionSeen {
                consumer: node(&seen.consumer)?,
                provider: node(&seen.provider)?,
                deposit: seen.deposit,
                settled: seen.settled,
                to_provider: seen.to_provider,
                bound: world.checks().bound_of(id),
            })
        });
        Self {
            hosts: hosts.collect(),
            jobs: world.checks().seen().to_vec(),
            legs: world.checks().legs_seen().to_vec(),
            sessions: sessions.collect(),
            report,
        }
    }

    /// Jobs of a fleet's gateways that went one of these ways.
    pub fn jobs_of<'a>(&'a self, fleet: &'a str, ways: &'a [Went]) -> impl Iterator<Item = &'a JobSeen> {
        self.jobs.iter().filter(move |job| self.hosts[job.host].fleet == fleet && ways.contains(&job.went))
    }
}
