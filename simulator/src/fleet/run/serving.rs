//! The replicas' side of a run: jobs are taken, served, stopped, lost.
//! Invariant: of what a replica sends about a job, nothing overtakes.

use super::*;

impl Fleet {
    /// When a message that a replica sends now about this job arrives at its gateway. Nothing overtakes.
    pub(super) fn news_at(&mut self, key: JobKey, replica: ReplicaId, from_us: u64) -> u64 {
        let at = self.job(key).at;
        let (from, to) = (self.replicas[replica.index()].region, self.gateways[at.index()].region);
        let way = self.way_us(from, to);
        let job = self.job_mut(key);
        job.news_us = (from_us + way).max(job.news_us + 1);
        job.news_us
    }

    /// The load that rides on a message to the gateway, unless that sees the replica anyway.
    pub(super) fn ride(&self, key: JobKey, replica: ReplicaId) -> Option<Seen> {
        let job = self.job(key);
        (job.stranger && !self.setting.live).then(|| self.replicas[replica.index()].told(self.now_us))
    }

    pub(super) fn deliver(&mut self, key: JobKey) {
        let now_us = self.now_us;
        let Place::Sent(replica) = self.job(key).place else { unreachable!("it was sent") };
        let silence_us = self.setting.network.silence_ms * 1000;
        let job = self.jobs.get_mut(key).expect("alive");
        let there = &mut self.replicas[replica.index()];
        there.coming -= 1;
        there.coming_tokens -= u64::from(job.input());
        if !there.up {
            job.place = Place::Returning(replica);
            let noticed = now_us.max(job.sent_us + silence_us);
            self.events.push(noticed, Event::Silent(key));
            return;
        }
        let work = Work { key, input: job.input(), output: job.output_left(), prefix: &job.request.prefix };
        let admission = there.admit(now_us, work, job.stranger);
        job.place = match admission {
            Admission::Runs | Admission::RunsInstead(..) => Place::Running(replica),
            Admission::Waits => Place::Waiting(replica),
            Admission::Refused => Place::Returning(replica),
        };
        match admission {
            Admission::Runs => {}
            Admission::RunsInstead(cut, made) => {
                let at_us = self.news_at(cut, replica, now_us);
                let ride = self.ride(cut, replica);
                let job = self.job_mut(cut);
                job.place = Place::Returning(replica);
                job.made = made;
                job.rides[1] = ride;
                self.events.push(at_us, Event::Cut(cut));
            }
            Admission::Waits => return,
            Admission::Refused => {
                let at_us = self.news_at(key, replica, now_us);
                let ride = self.ride(key, replica);
                let job = self.job_mut(key);
                job.rides[1] = ride;
                job.rtt_us += at_us - now_us;
                self.events.push(at_us, Event::Refused(key));
                return;
            }
        }
        let next = self.replicas[replica.index()].engine.next_at();
        self.wakes.set(replica, next);
    }

    /// A replica's engine is due.
    pub(super) fn step(&mut self, replica: ReplicaId) {
        let mut told = std::mem::take(&mut self.told);
        told.clear();
        self.replicas[replica.index()].advance(self.now_us, &mut told);
        for progress in told.drain(..) {
            match progress {
                Progress::First { id, at_us, cached } => self.begun(JobKey::of(id), replica, at_us, cached),
                Progress::Done { id, at_us, .. } => self.finished(JobKey::of(id), replica, at_us),
                Progress::Tokens { .. } => {}
            }
        }
        self.told = told;
        let next = self.replicas[replica.index()].engine.next_at();
        self.wakes.set(replica, next);
        self.pump_watchers(replica);
    }

    pub(super) fn begun(&mut self, key: JobKey, replica: ReplicaId, from_us: u64, cached: u32) {
        let at_us = self.news_at(key, replica, from_us);
        let ride = self.ride(key, replica);
        let job = self.job(key);
        let hop = if job.at == job.home { 0 } else { self.hop_us(job) };
        let job = self.job_mut(key);
        job.cached = cached;
        job.rides[0] = ride;
        job.rtt_us += at_us - from_us;
        job.first_us.get_or_insert(at_us + hop);
        self.events.push(at_us, Event::First(key));
    }

    pub(super) fn finished(&mut self, key: JobKey, replica: ReplicaId, from_us: u64) {
        let at_us = self.news_at(key, replica, from_us);
        let job = self.job_mut(key);
        job.place = Place::Returning(replica);
        job.made = job.output_left();
        let stranger = job.stranger;
        let next = self.replicas[replica.index()].ended(key, stranger);
        if let Some(next) = next {
            let job = self.jobs.get_mut(next).expect("it waits, so it is alive");
            job.place = Place::Running(replica);
            let work = Work { key: next, input: job.input(), output: job.output_left(), prefix: &job.request.prefix };
            self.replicas[replica.index()].go_in(self.now_us, work);
        }
        let ride = self.ride(key, replica);
        self.job_mut(key).rides[1] = ride;
        self.events.push(at_us, Event::Done(key));
    }

    pub(super) fn down(&mut self, replica: ReplicaId) {
        let there = &mut self.replicas[replica.index()];
        if let Some(churn) = there.churn {
            let back = self.churn.wait(churn.down_s * 1_000_000);
            self.events.push(self.now_us + back, Event::Up(replica));
        }
        if !there.up {
            return; // A fixed absence and a drawn one overlap: it stays down until the first of them ends.
        }
        let lost = self.jobs.at(replica);
        let made = self.replicas[replica.index()].die(self.now_us, &lost);
        self.wakes.set(replica, None);
        let silence_us = self.setting.network.silence_ms * 1000;
        for (key, made) in lost.into_iter().zip(made) {
            let at_us = self.news_at(key, replica, self.now_us);
            let job = self.job_mut(key);
            job.place = Place::Returning(replica);
            job.made = made;
            self.events.push(at_us + silence_us, Event::Silent(key));
        }
    }

    pub(super) fn up(&mut self, replica: ReplicaId) {
        let there = &mut self.replicas[replica.index()];
        there.up = true;
        if let Some(churn) = there.churn {
            let life = self.churn.wait(churn.up_s * 1_000_000);
            self.events.push(self.now_us + life, Event::Down(replica));
        }
        self.pump_watchers(replica);
    }
}
