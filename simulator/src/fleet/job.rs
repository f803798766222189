//! Jobs that are alive.
//! Invariant: a key names one job for ever; its place is used again only under another turn, so late news finds nothing.

use super::gateway::Seen;
use super::policy::{GatewayId, ReplicaId};
use crate::traces::Request;

/// Names a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct JobKey {
    slot: u32,
    turn: u32,
}

impl JobKey {
    /// The key as the number that engines know the job by.
    pub(super) const fn number(self) -> u64 {
        (self.turn as u64) << 32 | self.slot as u64
    }

    /// The key that [`JobKey::number`] gave.
    pub(super) const fn of(number: u64) -> Self {
        Self { slot: number as u32, turn: (number >> 32) as u32 }
    }
}

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Not asked yet, or on its way between gateways.
    Coming,
    /// In its gateway's queue.
    Queued,
    /// Its gateway waits for that many probes.
    Probing(u32),
    /// On its way to the replica.
    Sent(ReplicaId),
    /// In the replica's own queue.
    Waiting(ReplicaId),
    /// In the replica's engine.
    Running(ReplicaId),
    /// The replica is through with it; the news is on its way.
    Returning(ReplicaId),
}

impl Place {
    /// The replica that it is at or was sent to.
    pub(super) const fn replica(self) -> Option<ReplicaId> {
        match self {
            Self::Coming | Self::Queued | Self::Probing(_) => None,
            Self::Sent(replica) | Self::Waiting(replica) | Self::Running(replica) | Self::Returning(replica) => {
                Some(replica)
            }
        }
    }
}

/// A job.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) request: Request,
    /// The gateway whose client asks.
    pub(super) home: GatewayId,
    /// The gateway that routes it: another one if it was forwarded.
    pub(super) at: GatewayId,
    pub(super) place: Place,
    /// Replicas that refused, died or stopped it so far.
    pub(super) attempts: u32,
    /// Replicas that refused it: they are asked again only when all have been asked.
    pub(super) refused_by: Vec<ReplicaId>,
    /// Refusals since it last waited.
    pub(super) refusals: u32,
    /// Strangers are left alone until then.
    pub(super) not_before_us: u64,
    /// It was put into a queue at some time.
    pub(super) waited: bool,
    /// Its probes have answered, or were given up.
    pub(super) probed: bool,
    /// Tokens of the answer that reached, or will reach, the client from earlier legs.
    pub(super) delivered: u32,
    /// When the first token reaches the client.
    pub(super) first_us: Option<u64>,
    /// When the present leg was sent.
    pub(super) sent_us: u64,
    /// From when its waiting counts: when it was asked, or when its last leg broke off.
    pub(super) waits_since_us: u64,
    /// The round trip that the present leg's messages showed.
    pub(super) rtt_us: u64,
    /// When the last news of the present leg arrives: nothing overtakes.
    pub(super) news_us: u64,
    /// Tokens of the prompt that the present leg found cached.
    pub(super) cached: u32,
    /// Tokens that the present leg made, known once it ended.
    pub(super) made: u32,
    /// Whether a stranger serves the present leg.
    pub(super) stranger: bool,
    /// Whether a stranger served any leg.
    pub(super) spilled: bool,
    /// Cost so far, in micro-credits.
    pub(super) cost_micro: u64,
    /// The replica's load as its first and its last news carry it.
    pub(super) rides: [Option<Seen>; 2],
}

impl Job {
    /// A job as its client hands it in.
    pub(super) const fn new(request: Request, home: GatewayId) -> Self {
        Self {
            waits_since_us: request.at_us,
            rtt_us: 0,
            request,
            home,
            at: home,
            place: Place::Coming,
            attempts: 0,
            refused_by: Vec::new(),
            refusals: 0,
            not_before_us: 0,
            waited: false,
            probed: false,
            delivered: 0,
            first_us: None,
            sent_us: 0,
            news_us: 0,
            cached: 0,
            made: 0,
            stranger: false,
            spilled: false,
            cost_micro: 0,
            rides: [None; 2],
        }
    }

    /// Tokens to be read: the prompt and the text so far.
    pub(super) const fn input(&self) -> u32 {
        self.request.input.saturating_add(self.delivered)
    }

    /// Tokens still to be made.
    pub(super) const fn output_left(&self) -> u32 {
        self.request.output.saturating_sub(self.delivered)
    }
}

/// The jobs that are alive. What ended leaves nothing behind.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    places: Vec<(u32, Option<Job>)>,
    free: Vec<u32>,
}

impl Jobs {
    /// Adds a job.
    pub(super) fn add(&mut self, job: Job) -> JobKey {
        if let Some(slot) = self.free.pop() {
            let place = &mut self.places[slot as usize];
            place.1 = Some(job);
            return JobKey { slot, turn: place.0 };
        }
        let slot = u32::try_from(self.places.len()).expect("fewer than 2^32 jobs are alive");
        self.places.push((0, Some(job)));
        JobKey { slot, turn: 0 }
    }

    /// The job, if it is alive.
    pub(super) fn get(&self, key: JobKey) -> Option<&Job> {
        self.places.get(key.slot as usize).filter(|place| place.0 == key.turn)?.1.as_ref()
    }

    /// The job, if it is alive.
    pub(super) fn get_mut(&mut self, key: JobKey) -> Option<&mut Job> {
        self.places.get_mut(key.slot as usize).filter(|place| place.0 == key.turn)?.1.as_mut()
    }

    /// Takes a job out.
    pub(super) fn remove(&mut self, key: JobKey) -> Option<Job> {
        let place = self.places.get_mut(key.slot as usize).filter(|place| place.0 == key.turn)?;
        let job = place.1.take()?;
        place.0 = place.0.wrapping_add(1);
        self.free.push(key.slot);
        Some(job)
    }

    /// How many are alive.
    pub(super) fn alive(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Those that are in that replica, in order of their places. Linear in what is or was alive at once.
    pub(super) fn at(&self, replica: ReplicaId) -> Vec<JobKey> {
        let mut found = Vec::new();
        for (slot, (turn, job)) in self.places.iter().enumerate() {
            let Some(job) = job else { continue };
            if matches!(job.place, Place::Waiting(at) | Place::Running(at) if at == replica) {
                found.push(JobKey { slot: u32::try_from(slot).expect("as added"), turn: *turn });
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_outlives_its_job_and_names_no_other() {
        let mut jobs = Jobs::default();
        let first = jobs.add(Job::new(Request::default(), GatewayId(0)));
        assert_eq!(JobKey::of(first.number()), first);
        assert!(jobs.remove(first).is_some());
        let second = jobs.add(Job::new(Request::default(), GatewayId(1)));
        assert_eq!(second.slot, first.slot, "the place is used again");
        assert!(jobs.get(first).is_none() && jobs.remove(first).is_none());
        assert_eq!(jobs.get(second).map(|job| job.home), Some(GatewayId(1)));
        assert_eq!(jobs.alive(), 1);
    }
}
