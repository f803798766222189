//! The gateways' side of a run: jobs come in, wait, are sent, come back.
//! Invariant: a job is in one queue, or at one replica, or on its way, or waits for its probes.

use super::*;

impl Fleet {
    /// A client asks.
    pub(super) fn arrive(&mut self, key: JobKey) {
        let queue = &self.gateways[self.job(key).at.index()].queue;
        let behind = queue.front().is_some_and(|first| self.job(*first).not_before_us <= self.now_us);
        // A full queue is no reason to refuse what could go somewhere.
        if behind && queue.len() < self.setting.queue.length_max as usize {
            self.enqueue(key, false);
        } else {
            self.offer(key, false);
        }
    }

    /// Asks the policy about a job that is in no queue, and does what it says. `front`: it goes first if it is to wait.
    pub(super) fn offer(&mut self, key: JobKey, front: bool) {
        let (refusals_max, retry_us) = (self.setting.queue.refusals_max, self.setting.queue.retry_ms * 1000);
        let now_us = self.now_us;
        // A job whose probes are back is asked about once more, even if its time ran out meanwhile.
        if self.too_late(key) && !self.job(key).probed {
            return self.refuse(key);
        }
        let asks = self.job(key).refusals < refusals_max;
        if asks {
            let choice = self.ask(key);
            if choice != Choice::Wait {
                return self.carry(key, choice);
            }
        }
        let job = self.job_mut(key);
        if !job.refused_by.is_empty() {
            // It has asked around: strangers are left alone for a while. Those it has not asked come first then.
            if asks {
                job.refused_by.clear();
            }
            job.refusals = 0;
            job.not_before_us = now_us + retry_us;
        }
        self.enqueue(key, front);
    }

    pub(super) fn too_late(&self, key: JobKey) -> bool {
        self.now_us > self.job(key).waits_since_us + self.setting.queue.wait_ms * 1000
    }

    /// Does what the policy says with a job that is in no queue. `Wait` is the caller's.
    pub(super) fn carry(&mut self, key: JobKey, choice: Choice) {
        match choice {
            Choice::Replica(replica) => self.send(key, replica),
            Choice::Refuse => self.refuse(key),
            Choice::Forward(to) => self.forward(key, to),
            Choice::Probe(replicas) => self.probe_for(key, &replicas),
            Choice::Wait => unreachable!("the caller lets it wait"),
        }
    }

    pub(super) fn enqueue(&mut self, key: JobKey, front: bool) {
        let gateway = self.job(key).at;
        let late = self.too_late(key);
        let queue = &mut self.gateways[gateway.index()].queue;
        if late || queue.len() >= self.setting.queue.length_max as usize {
            return self.refuse(key);
        }
        if front {
            queue.push_front(key);
        } else {
            queue.push_back(key);
        }
        let job = self.job_mut(key);
        job.place = Place::Queued;
        job.waited = true;
        let until = job.waits_since_us;
        self.events.push(until + self.setting.queue.wait_ms * 1000 + 1, Event::Expire(key));
        self.retry_later(gateway);
    }

    pub(super) fn retry_later(&mut self, id: GatewayId) {
        let at = self.now_us + self.setting.queue.retry_ms * 1000;
        let gateway = &mut self.gateways[id.index()];
        if !gateway.retrying && !gateway.queue.is_empty() {
            gateway.retrying = true;
            self.events.push(at, Event::Retry(id));
        }
    }

    /// A job's time in the queue may be up.
    pub(super) fn expire(&mut self, key: JobKey) {
        let waits = self.jobs.get(key).is_some_and(|job| job.place == Place::Queued);
        if waits && self.too_late(key) {
            let at = self.job(key).at;
            let queue = &mut self.gateways[at.index()].queue;
            let place = queue.iter().position(|it| *it == key).expect("a queued job is in its gateway's queue");
            queue.remove(place);
            // A last try, of all.
            let job = self.job_mut(key);
            job.refused_by.clear();
            job.not_before_us = 0;
            match self.ask(key) {
                Choice::Wait => self.refuse(key),
                choice => self.carry(key, choice),
            }
        }
    }

    /// Places what can be placed of a gateway's queue, in order, up to the first that the policy lets wait.
    pub(super) fn pump(&mut self, id: GatewayId) {
        let mut index = 0;
        while let Some(key) = self.gateways[id.index()].queue.get(index).copied() {
            let backs_off = self.job(key).not_before_us > self.now_us;
            if backs_off && !self.own_open(id) {
                index += 1;
                continue;
            }
            match self.ask(key) {
                Choice::Wait if backs_off => index += 1,
                Choice::Wait => return,
                choice => {
                    self.gateways[id.index()].queue.remove(index);
                    self.carry(key, choice);
                }
            }
        }
    }

    /// Whether an own replica has room, so that jobs that leave strangers alone can be asked about.
    pub(super) fn own_open(&self, id: GatewayId) -> bool {
        self.gateways[id.index()].own.iter().any(|own| {
            let replica = &self.replicas[own.index()];
            replica.slots_free(false) > replica.coming && replica.engine.load().waiting == 0
        })
    }

    /// Pumps the gateways that see this replica as it is.
    pub(super) fn pump_watchers(&mut self, replica: ReplicaId) {
        if self.setting.live || self.sees_all {
            for index in 0..self.gateways.len() {
                if !self.gateways[index].queue.is_empty() {
                    self.pump(self.gateways[index].id);
                }
            }
            return;
        }
        let owner = self.replicas[replica.index()].owner;
        for index in 0..self.gateways_of[owner].len() {
            let id = self.gateways_of[owner][index];
            if !self.gateways[id.index()].queue.is_empty() {
                self.pump(id);
            }
        }
    }

    pub(super) fn ask(&mut self, key: JobKey) -> Choice {
        let Self { jobs, gateways, replicas, policies, setting, ways, now_us, ordered, chosen, context_min, .. } = self;
        let job = jobs.get(key).expect("alive");
        let id = job.at;
        let gateway = &gateways[id.index()];
        let policy = &mut policies[id.index()];
        let ask = ask_of(key, job, setting);
        let backs_off = job.not_before_us > *now_us;
        let mut candidates = if backs_off { &gateway.own[..] } else { &gateway.all[..] };
        let open = |id: &ReplicaId| replicas[id.index()].rules().kv_tokens > ask.input && !job.refused_by.contains(id);
        chosen.clear();
        if setting.own_first && !policy.places_own() {
            let own = gateway.own.iter().copied().filter(open);
            chosen.extend(own.filter(|own| free(&replicas[own.index()], &ask)));
            if !chosen.is_empty() || backs_off {
                candidates = chosen;
            } else if !gateway.network.is_empty() {
                candidates = &gateway.network;
            }
        }
        // What is too long for some replica, or was refused by some, goes to the others.
        if ask.input >= *context_min || !job.refused_by.is_empty() {
            let left: Vec<_> = candidates.iter().copied().filter(open).collect();
            *chosen = left;
            candidates = chosen;
        }
        let sees_all = policy.sees_all();
        let scene = Scene { setting, gateways, replicas, ways, jobs };
        ordered.clear();
        let mut view = View { now_us: *now_us, scene, gateway, candidates, sees_all, probes: ordered };
        let choice = if candidates.is_empty() { Choice::Wait } else { policy.route(*now_us, &ask, &mut view) };
        match &choice {
            Choice::Replica(replica) => {
                assert!(candidates.binary_search(replica).is_ok(), "{replica:?} is no candidate of {id:?}");
            }
            Choice::Forward(to) => assert!(!ask.forwarded && *to != id, "{id:?} cannot forward to {to:?}"),
            Choice::Wait | Choice::Refuse | Choice::Probe(_) => {}
        }
        self.send_probes(id);
        // To probe nobody is to wait.
        if matches!(&choice, Choice::Probe(replicas) if replicas.is_empty()) { Choice::Wait } else { choice }
    }

    /// Tells the policy of the gateway that routes this job what was learned.
    pub(super) fn tell(
        &mut self,
        key: JobKey,
        replica: ReplicaId,
        news: impl for<'a> FnOnce(Ask<'a>, &Job) -> News<'a>,
    ) {
        let Self { jobs, gateways, replicas, policies, setting, ways, now_us, ordered, .. } = self;
        let job = jobs.get(key).expect("alive");
        let id = job.at;
        let news = news(ask_of(key, job, setting), job);
        let policy = &mut policies[id.index()];
        let gateway = &gateways[id.index()];
        let scene = Scene { setting, gateways, replicas, ways, jobs };
        let sees_all = policy.sees_all();
        ordered.clear();
        let mut view = View { now_us: *now_us, scene, gateway, candidates: &gateway.all, sees_all, probes: ordered };
        policy.told(*now_us, replica, &news, &mut view);
        self.send_probes(id);
    }

    pub(super) fn tell_probe(&mut self, id: GatewayId, replica: ReplicaId, news: &News<'_>) {
        let Self { jobs, gateways, replicas, policies, setting, ways, now_us, ordered, .. } = self;
        let policy = &mut policies[id.index()];
        let gateway = &gateways[id.index()];
        let scene = Scene { setting, gateways, replicas, ways, jobs };
        let sees_all = policy.sees_all();
        ordered.clear();
        let mut view = View { now_us: *now_us, scene, gateway, candidates: &gateway.all, sees_all, probes: ordered };
        policy.told(*now_us, replica, news, &mut view);
        self.send_probes(id);
    }

    pub(super) fn send(&mut self, key: JobKey, replica: ReplicaId) {
        let now_us = self.now_us;
        let at = self.job(key).at;
        let organisation = self.gateways[at.index()].organisation;
        let there = &mut self.replicas[replica.index()];
        let (to, stranger) = (there.region, there.owner != organisation);
        there.coming += 1;
        let job = self.jobs.get_mut(key).expect("alive");
        there.coming_tokens += u64::from(job.input());
        job.place = Place::Sent(replica);
        job.sent_us = now_us;
        job.news_us = 0;
        job.probed = false;
        job.cached = 0;
        job.made = 0;
        job.stranger = stranger;
        job.rides = [None; 2];
        let gateway = &mut self.gateways[at.index()];
        gateway.known[replica.index()].in_flight += 1;
        let from = gateway.region;
        let way = self.way_us(from, to);
        self.job_mut(key).rtt_us = way;
        self.events.push(now_us + way, Event::Deliver(key));
    }

    pub(super) fn forward(&mut self, key: JobKey, to: GatewayId) {
        let (from, there) = (self.job(key).at, self.gateways[to.index()].region);
        let way = self.way_us(self.gateways[from.index()].region, there);
        let job = self.job_mut(key);
        job.at = to;
        job.place = Place::Coming;
        self.events.push(self.now_us + way, Event::Forwarded(key));
    }

    /// The job comes back to its gateway from the replica it was sent to.
    pub(super) fn back(&mut self, key: JobKey) -> ReplicaId {
        let job = self.job(key);
        let Place::Returning(replica) = job.place else { unreachable!("news of a leg comes while it returns") };
        let (at, rtt_us, ride) = (job.at, job.rtt_us, job.rides[1]);
        let known = &mut self.gateways[at.index()].known[replica.index()];
        known.in_flight -= 1;
        if let Some(seen) = ride {
            known.measured(rtt_us);
            known.learned(seen);
        }
        replica
    }

    pub(super) fn first(&mut self, key: JobKey) {
        let job = self.job(key);
        let replica = job.place.replica().expect("it is at the replica that began it");
        let (at, rtt_us, ride, sent_us) = (job.at, job.rtt_us, job.rides[0], job.sent_us);
        if let Some(seen) = ride {
            let known = &mut self.gateways[at.index()].known[replica.index()];
            known.measured(rtt_us);
            known.learned(seen);
        }
        let after_us = self.now_us - sent_us;
        self.tell(key, replica, |ask, job| News::First { ask, after_us, cached: job.cached });
        self.pump(at);
    }

    pub(super) fn done(&mut self, key: JobKey) {
        let replica = self.back(key);
        let job = self.job(key);
        let at = job.at;
        let after_us = self.now_us - job.sent_us;
        self.gateways[at.index()].known[replica.index()].served();
        self.bill(key, replica);
        self.tell(key, replica, |ask, job| News::Done { ask, after_us, made: job.made, cached: job.cached });
        self.end(key, Some(replica), End::Served);
        self.pump(at);
    }

    pub(super) fn refused(&mut self, key: JobKey) {
        let replica = self.back(key);
        let counted = self.metrics.counts(self.job(key).request.at_us);
        self.metrics.counts.turned_away += u64::from(counted);
        let job = self.job_mut(key);
        job.attempts += 1;
        job.refusals += 1;
        job.refused_by.push(replica);
        job.place = Place::Coming;
        let at = job.at;
        self.tell(key, replica, |ask, _| News::Refused { ask });
        self.offer(key, true);
        self.pump(at);
    }

    /// The leg broke off: the replica died, or stopped it. The job goes on elsewhere with the text so far.
    pub(super) fn broken(&mut self, key: JobKey, died: bool) {
        let replica = self.back(key);
        let now_us = self.now_us;
        self.bill(key, replica);
        let counted = self.metrics.counts(self.job(key).request.at_us);
        let count = if died { &mut self.metrics.counts.died } else { &mut self.metrics.counts.cut };
        *count += u64::from(counted);
        let at = self.job(key).at;
        if died {
            self.gateways[at.index()].known[replica.index()].ban(now_us);
            self.tell(key, replica, |ask, _| News::Died { ask });
        } else {
            self.tell(key, replica, |ask, _| News::Cut { ask });
        }
        let job = self.job_mut(key);
        job.delivered += job.made;
        job.refused_by.clear();
        job.refusals = 0;
        job.attempts += 1;
        job.place = Place::Coming;
        job.waits_since_us = now_us;
        self.offer(key, true);
        self.pump(at);
    }

    /// Counts and charges what the present leg delivered.
    pub(super) fn bill(&mut self, key: JobKey, replica: ReplicaId) {
        let there = &self.replicas[replica.index()];
        let job = self.jobs.get_mut(key).expect("alive");
        let price: PriceRules = if job.stranger { there.price } else { self.setting.own_cost };
        let cost = self.metrics.bill(job, price, there.owner, job.made);
        job.cost_micro += cost;
        job.spilled |= job.stranger && job.made > 0;
    }

    pub(super) fn refuse(&mut self, key: JobKey) {
        let job = self.job(key);
        let end = if job.delivered == 0 { End::Refused } else { End::Failed };
        let gateway = &self.gateways[job.at.index()];
        let idle = gateway.all.iter().any(|id| {
            let replica = &self.replicas[id.index()];
            replica.slots_free(replica.owner != gateway.organisation) > replica.coming
                && replica.engine.fits(job.input(), job.output_left())
        });
        if idle && self.metrics.counts(job.request.at_us) {
            self.metrics.counts.refused_while_free += 1;
        }
        self.end(key, None, end);
    }

    pub(super) fn end(&mut self, key: JobKey, last: Option<ReplicaId>, end: End) {
        let job = self.jobs.remove(key).expect("it ends once");
        // A forwarded job's text has still to get from the gateway that routed it to its client's.
        let hop = if job.at == job.home { 0 } else { self.hop_us(&job) };
        let at_us = (self.now_us + hop).max(job.first_us.unwrap_or(0));
        self.metrics.ended(at_us, &job, last, end, &self.setting);
        if let Some(request) = self.workload.ended(at_us, &job.request)
            && request.at_us < self.setting.duration_s * 1_000_000
        {
            let at_us = request.at_us.max(self.now_us);
            let key = self.enter(request);
            self.events.push(at_us, Event::Arrive(key));
        }
        if self.next.is_none() {
            self.next = self.workload.next();
        }
    }

    pub(super) fn hop_us(&self, job: &Job) -> u64 {
        self.ways.us(self.gateways[job.at.index()].region, self.gateways[job.home.index()].region)
    }
}

fn ask_of<'a>(key: JobKey, job: &'a Job, setting: &Setting) -> Ask<'a> {
    Ask {
        job: key.number(),
        client: job.request.client,
        session: job.request.session,
        input: job.input(),
        prefix: &job.request.prefix,
        prefix_block: setting.prefix_block,
        since_us: job.request.at_us,
        attempts: job.attempts,
        delivered: job.delivered,
        probed: job.probed,
        forwarded: job.at != job.home,
        ttft_limit_us: setting.slo.ttft_limit_us(job.request.input),
    }
}

/// Whether an own replica is free for a job: nothing pends there, a slot is open for the owner, and the first token is
/// predicted to be in time. An idle one is free whatever it predicts. Source: `docs/routing.md`, as `protocol` has it.
fn free(replica: &Replica, ask: &Ask<'_>) -> bool {
    let load = replica.engine.load();
    let open = replica.slots_free(false) > replica.coming && load.waiting == 0;
    open && (load.running + replica.coming == 0 || replica.predict_ttft_us(ask.input, ask.prefix) <= ask.ttft_limit_us)
}
