//! Probes: a gateway asks a replica for its load.
//! Invariant: a probe's place is used again only when neither its answer nor its limit is still to come.

use super::*;

/// A probe that is out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    gateway: GatewayId,
    replica: ReplicaId,
    job: Option<JobKey>,
    input: u32,
    sent_us: u64,
    answer: Option<Seen>,
    /// Counts the probes that had this place.
    turn: u32,
    out: bool,
}

impl Fleet {
    /// Sends the probes that a policy ordered in passing.
    pub(super) fn send_probes(&mut self, gateway: GatewayId) {
        if self.ordered.is_empty() {
            return;
        }
        let ordered = std::mem::take(&mut self.ordered);
        for (replica, input) in &ordered {
            self.send_probe(gateway, *replica, *input, None);
        }
        self.ordered = ordered;
    }

    pub(super) fn probe_for(&mut self, key: JobKey, replicas: &Probes) {
        let (gateway, input) = (self.job(key).at, self.job(key).input());
        self.job_mut(key).place = Place::Probing(u32::try_from(replicas.len()).expect("at most PROBES_MAX"));
        for replica in replicas {
            self.send_probe(gateway, *replica, input, Some(key));
        }
    }

    pub(super) fn send_probe(&mut self, gateway: GatewayId, replica: ReplicaId, input: u32, job: Option<JobKey>) {
        let sent_us = self.now_us;
        let probe = Probe { gateway, replica, job, input, sent_us, answer: None, turn: 0, out: true };
        let index = match self.probes_free.pop() {
            Some(index) => {
                let place = &mut self.probes[index as usize];
                *place = Probe { turn: place.turn.wrapping_add(1), ..probe };
                index
            }
            None => {
                self.probes.push(probe);
                u32::try_from(self.probes.len() - 1).expect("fewer than 2^32 probes are out")
            }
        };
        self.metrics.probes += 1;
        let (from, to) = (self.gateways[gateway.index()].region, self.replicas[replica.index()].region);
        let way = self.way_us(from, to);
        let turn = self.probes[index as usize].turn;
        self.events.push(sent_us + way, Event::Probe(index));
        self.events.push(sent_us + self.setting.network.probe_limit_ms * 1000, Event::ProbeLimit(index, turn));
    }

    /// A probe is at its replica. A dead one does not answer.
    pub(super) fn probed(&mut self, index: u32) {
        let probe = self.probes[index as usize];
        let gateway = &self.gateways[probe.gateway.index()];
        let there = &self.replicas[probe.replica.index()];
        if !there.up {
            return;
        }
        let stranger = there.owner != gateway.organisation;
        let mut seen = if stranger { there.told(self.now_us) } else { there.seen(self.now_us, false) };
        seen.ttft_us = Some(there.predict_ttft_us(probe.input, &[]));
        seen.ttft_input = probe.input;
        self.probes[index as usize].answer = Some(seen);
        let (from, to) = (there.region, gateway.region);
        let way = self.way_us(from, to);
        self.events.push(self.now_us + way, Event::Answer(index));
    }

    pub(super) fn answer(&mut self, index: u32) {
        let probe = self.probes[index as usize];
        let known = &mut self.gateways[probe.gateway.index()].known[probe.replica.index()];
        known.measured(self.now_us - probe.sent_us);
        let seen = probe.answer.expect("an answer was sent");
        known.learned(seen);
        known.banned_until_us = 0;
        self.tell_probe(probe.gateway, probe.replica, &News::Probed { seen });
        // After the limit it is late, not wrong: what it says is kept, and its job no longer waits for it.
        if probe.out {
            self.probes[index as usize].out = false;
            self.probe_ended(probe);
        } else {
            self.probes_free.push(index);
        }
    }

    pub(super) fn probe_limit(&mut self, index: u32, turn: u32) {
        let probe = self.probes[index as usize];
        if probe.turn != turn {
            return;
        }
        if !probe.out {
            self.probes_free.push(index);
            return;
        }
        self.probes[index as usize].out = false;
        if probe.answer.is_none() {
            self.probes_free.push(index);
        }
        self.tell_probe(probe.gateway, probe.replica, &News::ProbeLost { after_us: self.now_us - probe.sent_us });
        self.probe_ended(probe);
    }

    pub(super) fn probe_ended(&mut self, probe: Probe) {
        if let Some(key) = probe.job {
            let job = self.job_mut(key);
            let Place::Probing(left) = job.place else { unreachable!("it waits for its probes") };
            job.place = Place::Probing(left - 1);
            if left == 1 {
                job.place = Place::Coming;
                job.probed = true;
                self.offer(key, true);
            }
        }
        self.pump(probe.gateway);
    }
}
