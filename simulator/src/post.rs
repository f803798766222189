//! What is on its way between nodes, and to and from the ledger: how it arrives.
//! Invariant: nothing arrives across a cut.

use crate::books::{RESUBMIT_US, Verdict};
use crate::check::Rule;
use crate::network::{HostId, LinkId, Parcel, Side};
use crate::oracle;
use crate::world::{Happening, World};
use spillway_ledger::{Applied, Entry, Signed, decode};
use spillway_protocol::{Event, Frame, Now, Probe, ProbeId};
use std::time::Duration;

impl World {
    // ---- streams and probes ----

    pub(crate) fn arrive(&mut self, link: LinkId, side: Side) {
        while let Some(parcel) = self.network.take(self.line.now(), link, side) {
            let Some(found) = self.network.link(link) else { return };
            let (me, other) = (&found.ends[side], &found.ends[1 - side]);
            let (host, stream, from) = (me.host, me.stream, other.host);
            let life = self.hosts[host].life;
            match parcel {
                Parcel::Knock if self.hosts[host].peer.is_some() => {
                    self.network.answered(link);
                    self.send_parcel(link, 0, Parcel::Opened);
                }
                Parcel::Knock if self.hosts[host].silent => {} // Until the caller gives up.
                Parcel::Knock => {
                    self.network.close(link, 1);
                    self.idle.arrives(self.line.now(), link);
                    self.send_parcel(link, 0, Parcel::Closed);
                }
                Parcel::Opened => self.deliver(host, life, Event::StreamOpened(stream)),
                Parcel::Frame(bytes) => {
                    let frame = Frame::from_wire(&bytes[4..]).expect("checked when it was sent");
                    self.frame_arrives(from, host, stream, &frame);
                    if matches!(frame, Frame::Open(_)) {
                        self.idle.arrives(self.line.now(), link);
                    }
                    if side == 0 {
                        self.idle.hears(link, &frame);
                    }
                    let text = if let Frame::Chunk { bytes, .. } = &frame {
                        oracle::text_of(bytes).to_vec()
                    } else {
                        Vec::new()
                    };
                    let peer = self.hosts[from].node;
                    self.deliver(host, life, Event::FrameReceived { stream, peer, frame, text });
                }
                Parcel::Closed => self.end_stream(link, side),
            }
        }
    }

    /// Sends a parcel to that side.
    pub(crate) fn send_parcel(&mut self, link: LinkId, side: Side, parcel: Parcel) {
        if let Some(due) = self.network.send(self.line.now(), link, side, parcel) {
            self.line.at(due, Happening::Arrive(link, side));
        }
    }

    /// Whether the node of an account keeps to the rules.
    pub(crate) fn honest(&self, account: &spillway_ledger::Account) -> bool {
        self.by_account.get(account).is_none_or(|hosts| hosts.iter().all(|host| self.hosts[*host].adversary.is_none()))
    }

    /// Whether the node of an account has left for good.
    pub(crate) fn left(&self, account: &spillway_ledger::Account) -> bool {
        self.by_account.get(account).is_some_and(|hosts| hosts.iter().any(|host| self.hosts[*host].left.is_some()))
    }

    /// Sends a single message: it may get lost, come twice, or be overtaken.
    pub(crate) fn post(&mut self, from: HostId, to: HostId, bytes: usize, what: Happening) {
        if !self.passes(from, to) {
            return;
        }
        let now = self.line.now();
        if self.network.doubles(now) {
            let wait = self.network.delay(now, from, to, bytes) + self.network.lags(now);
            self.line.after(wait, what.clone());
        }
        let lag = self.network.lags(now);
        if lag > 0 {
            self.idle.troubled(now, from, to);
        }
        let wait = self.network.delay(now, from, to, bytes) + lag;
        self.line.after(wait, what);
    }

    /// Whether a single message gets from one place to another.
    pub(crate) fn passes(&mut self, from: HostId, to: HostId) -> bool {
        let now = self.line.now();
        if self.network.drops(now) {
            self.idle.troubled(now, from, to);
            return false;
        }
        self.network.carries(from, to)
    }

    /// Notes that the ways between `side` and everyone else were in trouble until now.
    pub(crate) fn trouble_across(&mut self, side: &std::collections::BTreeSet<HostId>) {
        for from in side {
            for to in (0..=self.hosts.len()).filter(|to| !side.contains(to)) {
                self.idle.troubled(self.line.now(), *from, to);
            }
        }
    }

    /// Ends a stream at one side, and tells its node.
    pub(crate) fn end_stream(&mut self, link: LinkId, side: Side) {
        let Some(found) = self.network.link(link) else { return };
        let (host, stream) = (found.ends[side].host, found.ends[side].stream);
        let provider = found.ends[1].host;
        self.idle.arrives(self.line.now(), link);
        if self.network.close(link, side) {
            if side == 0 {
                self.idle.ends(host, stream, link, provider);
            }
            let life = self.hosts[host].life;
            self.deliver(host, life, Event::StreamClosed(stream));
        }
    }

    pub(crate) fn probed(&mut self, from: HostId, to: HostId, life: u32, probe: ProbeId, bytes: &[u8]) {
        let host = &mut self.hosts[to];
        if host.peer.is_none() || !self.network.carries(from, to) {
            return;
        }
        host.called += 1;
        let number = ProbeId(host.called);
        host.probed.insert(number, (from, life, probe));
        let request = decode::<Probe>(bytes).expect("encoded by a peer");
        let (peer, life) = (self.hosts[from].node, self.hosts[to].life);
        self.deliver(to, life, Event::ProbeReceived { probe: number, peer, request });
    }

    // ---- the ledger ----

    /// Hands the clerk's next entry in, if none is in flight.
    pub(crate) fn bring(&mut self, id: HostId) {
        let host = &mut self.hosts[id];
        if let Some(entry) = host.clerk.next(self.market, &host.account_secret, &self.authority) {
            self.hand_in(id, entry);
        }
    }

    pub(crate) fn hand_in(&mut self, id: HostId, entry: Signed<Entry>) {
        let (life, authority) = (self.hosts[id].life, self.hosts.len());
        self.line.after(RESUBMIT_US, Happening::Resubmit(id, life, entry.value().business));
        self.post(id, authority, 512, Happening::Submitted(id, life, Box::new(entry)));
    }

    pub(crate) fn plan_block(&mut self) {
        if !self.authority.is_idle() && !std::mem::replace(&mut self.authority.block_planned, true) {
            let soonest = self.line.now().after(Duration::from_millis(self.scenario.market.block_ms));
            self.line.at(soonest.max(self.authority.paused_until), Happening::Block);
        }
    }

    pub(crate) fn block(&mut self) {
        self.authority.block_planned = false;
        if self.authority.paused_until > self.line.now() {
            return self.plan_block();
        }
        let made = self.authority.block(self.line.now());
        if let Err(violation) = self.authority.book.check() {
            self.checks.broken(Rule::Conservation, violation.to_string());
        }
        let held: u128 = self.authority.book.accounts().map(|(_, balance)| u128::from(balance.micro())).sum();
        let (locked, minted) = (self.authority.book.locked().micro(), self.authority.book.minted().micro());
        if held + u128::from(locked) != u128::from(minted) {
            let what = format!("{held} held and {locked} locked are not the {minted} minted");
            self.checks.broken(Rule::Conservation, what);
        }
        for applied in &made.applied {
            if let Applied::Settled { session, claim, .. } = applied {
                let seen = self.authority.session(session).expect("the authority has just noted it");
                let honest = self.honest(&seen.provider);
                self.checks.settled(*session, seen.deposit, *claim, seen.to_provider, honest);
            }
        }
        for (host, life, business, verdict) in made.verdicts {
            if self.trace {
                let name = &self.hosts[host].name;
                eprintln!("{:>10.6} ledger       {name}: {verdict:?}", self.line.elapsed().as_secs_f64());
            }
            self.post(self.hosts.len(), host, 256, Happening::Heard(host, life, business, verdict));
        }
        for (account, event) in made.news {
            if let Event::Balance(balance) = event {
                self.idle.balance(self.line.now(), account, balance);
            }
            for host in self.by_account.get(&account).cloned().unwrap_or_default() {
                self.tell_news(host, event.clone());
            }
        }
    }

    pub(crate) fn heard(&mut self, id: HostId, life: u32, business: [u8; 16], verdict: &Verdict) {
        if self.hosts[id].life != life || !self.hosts[id].clerk.hear(business, verdict) {
            return; // Late, not wrong.
        }
        self.bring(id);
        if let Verdict::Refused(why) = verdict {
            self.deliver(id, life, Event::EntryRefused { business, why: why.clone() });
        }
    }

    /// Sends news from the ledger to a node that is up, behind what was sent before.
    pub(crate) fn tell_news(&mut self, id: HostId, event: Event) {
        if self.hosts[id].peer.is_none() {
            return; // It will read all of it when it starts.
        }
        let now = self.line.now();
        let at = Now(now.0 + self.network.delay(now, self.hosts.len(), id, 256));
        let host = &mut self.hosts[id];
        let due = host.news.back().map_or(at, |(last, _)| Now(last.0 + 1).max(at));
        host.news.push_back((due, event));
        self.line.at(due, Happening::News(id, host.life));
    }

    /// Tells a node the news that has arrived, unless it is cut off from the authority.
    pub(crate) fn read_news(&mut self, id: HostId) {
        let (now, authority) = (self.line.now(), self.hosts.len());
        while self.network.carries(authority, id) {
            let host = &mut self.hosts[id];
            if host.news.front().is_none_or(|(due, _)| *due > now) {
                return;
            }
            let Some((_, event)) = host.news.pop_front() else { return };
            let life = host.life;
            self.deliver(id, life, event);
        }
    }
}
