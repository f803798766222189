//! What lies between the nodes: distance, loss, cuts, and the streams that are open.
//! Invariant: what arrives on a stream arrives in the order it was sent; a stream ends once at each side.

use crate::data::regions;
use crate::draws::Draws;
use crate::scenario::NetworkRules;
use serde::{Deserialize, Serialize};
use spillway_protocol::{Now, StreamId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Where the nodes of drawn scenarios are, so that a seed keeps its scenario. Any of [`regions::REGIONS`] will do.
pub const DRAWN_REGIONS: [&str; 6] = ["us-east", "us-west", "france", "india", "asia-southeast", "australia"];

/// How long both sides wait for a vanished peer before their connection to it counts as lost, in microseconds.
pub const IDLE_US: u64 = 10_000_000;
/// What a frame's bytes take on the wire: 100 Mbit/s.
const NANOS_PER_BYTE: u64 = 80;

/// A node's number in the world.
pub type HostId = usize;

/// Numbers streams in the world.
pub type LinkId = u64;

/// The side of a stream: 0 opened it, 1 was called.
pub type Side = usize;

/// What travels on a stream.
#[derive(Clone, Debug)]
pub enum Parcel {
    /// The call, to the side that is called.
    Knock,
    /// The answer to the call.
    Opened,
    /// A frame as on the wire, its length before it.
    Frame(Vec<u8>),
    /// The end.
    Closed,
}

/// One side of a stream.
#[derive(Clone, Debug)]
pub struct End {
    /// Who.
    pub host: HostId,
    /// What it calls the stream.
    pub stream: StreamId,
    /// It has closed its side, or was told of the end.
    pub closed: bool,
    /// What is on its way here, and when it is due.
    coming: VecDeque<(Now, Parcel)>,
}

/// A stream between two nodes.
#[derive(Clone, Debug)]
pub struct Link {
    /// Who opened it, and who was called.
    pub ends: [End; 2],
    /// The call was answered.
    pub opened: bool,
    /// A lost frame broke it; nothing more passes.
    pub broken: bool,
}

/// How a node can be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Nat {
    /// By everyone.
    #[default]
    Open,
    /// Through a relay, which all that it says and hears takes longer.
    Relayed,
    /// Through a relay, and by nobody who is like it.
    Closed,
}

/// What a relay adds to each way, in microseconds.
const RELAY_US: u64 = 30_000;

/// A cut of the network.
#[derive(Clone, Debug)]
struct Cut {
    side: BTreeSet<HostId>,
    /// What the side says does not get out; what others say gets in.
    one_way: bool,
}

/// A link that is slow for a while.
#[derive(Clone, Copy, Debug)]
struct Slow {
    bytes_per_s: u64,
    until: Now,
    /// When what was sent so far has left.
    busy: Now,
}

/// The network's state.
#[derive(Debug)]
pub struct Network {
    rules: NetworkRules,
    draws: Draws,
    regions: Vec<usize>,
    /// Nothing gets lost from then on.
    whole_from: Now,
    cuts: BTreeMap<u64, Cut>,
    nat: Vec<Nat>,
    slow: BTreeMap<HostId, Slow>,
    links: BTreeMap<LinkId, Link>,
    by_stream: BTreeMap<(HostId, StreamId), (LinkId, Side)>,
    opened: u64,
}

impl Network {
    /// Nodes in those regions (places in [`regions::REGIONS`]), nothing open, nothing cut; nothing gets lost from `whole_from`.
    #[must_use]
    pub fn new(seed: u64, rules: NetworkRules, regions: Vec<usize>, whole_from: Now) -> Self {
        let draws = Draws::new(seed, "network");
        Self {
            rules,
            draws,
            regions,
            whole_from,
            cuts: BTreeMap::new(),
            nat: Vec::new(),
            slow: BTreeMap::new(),
            links: BTreeMap::new(),
            by_stream: BTreeMap::new(),
            opened: 0,
        }
    }

    /// Says how each node can be reached; all others by everyone.
    #[must_use]
    pub fn with_nat(mut self, nat: Vec<Nat>) -> Self {
        self.nat = nat;
        self
    }

    fn nat(&self, host: HostId) -> Nat {
        self.nat.get(host).copied().unwrap_or_default()
    }

    /// Whether two nodes can ever talk to each other.
    #[must_use]
    pub fn can_meet(&self, a: HostId, b: HostId) -> bool {
        self.nat(a) != Nat::Closed || self.nat(b) != Nat::Closed
    }

    /// Whether what one node says gets to another now, as far as cuts are concerned.
    #[must_use]
    pub fn carries(&self, from: HostId, to: HostId) -> bool {
        self.cuts.values().all(|cut| {
            let (inside, wanted) = (cut.side.contains(&from), cut.side.contains(&to));
            inside == wanted || (cut.one_way && wanted)
        })
    }

    /// Whether two nodes hear each other.
    #[must_use]
    pub fn connected(&self, a: HostId, b: HostId) -> bool {
        self.carries(a, b) && self.carries(b, a)
    }

    /// Separates `side` from the rest, or only lets nothing of what it says get out.
    pub fn cut(&mut self, cut: u64, side: BTreeSet<HostId>, one_way: bool) {
        self.cuts.insert(cut, Cut { side, one_way });
    }

    /// Ends a cut; gives the side that it separated.
    pub fn heal(&mut self, cut: u64) -> Option<BTreeSet<HostId>> {
        self.cuts.remove(&cut).map(|cut| cut.side)
    }

    /// What a node says goes out no faster than this, until then.
    pub fn slow_down(&mut self, host: HostId, bytes_per_s: u64, until: Now) {
        self.slow.insert(host, Slow { bytes_per_s: bytes_per_s.max(1), until, busy: Now(0) });
    }

    /// Whether a node's link is slow.
    #[must_use]
    pub fn is_slow(&self, now: Now, host: HostId) -> bool {
        self.slow.get(&host).is_some_and(|slow| now < slow.until.max(slow.busy))
    }

    /// Whether the cut is still open.
    #[must_use]
    pub fn is_cut(&self, cut: u64) -> bool {
        self.cuts.contains_key(&cut)
    }

    /// The longest round trip of something small, in microseconds.
    #[must_use]
    pub fn round_trip_us(&self, a: HostId, b: HostId) -> u64 {
        regions::rtt_us(self.regions[a], self.regions[b]) + 2 * (self.rules.jitter_us + self.relay_us(a, b))
    }

    fn relay_us(&self, a: HostId, b: HostId) -> u64 {
        if self.nat(a) == Nat::Open && self.nat(b) == Nat::Open { 0 } else { RELAY_US }
    }

    /// How long something of that size that leaves now takes from `from` to `to`, in microseconds, jitter drawn.
    pub fn delay(&mut self, now: Now, from: HostId, to: HostId, bytes: usize) -> u64 {
        let way = regions::rtt_us(self.regions[from], self.regions[to]) / 2 + self.relay_us(from, to);
        let jitter = self.rules.jitter_us;
        let jitter = if jitter == 0 { 0 } else { self.draws.below(jitter) };
        let queued = match self.slow.get_mut(&from) {
            Some(slow) if now < slow.until.max(slow.busy) => {
                slow.busy = Now(slow.busy.max(now).0 + bytes as u64 * 1_000_000 / slow.bytes_per_s);
                slow.busy.0 - now.0
            }
            Some(_) | None => 0,
        };
        way + jitter + queued + bytes as u64 * NANOS_PER_BYTE / 1000
    }

    /// Whether a single message gets lost.
    pub fn drops(&mut self, now: Now) -> bool {
        now < self.whole_from && self.draws.happens(self.rules.drop_per_million)
    }

    /// Whether a single message comes twice.
    pub fn doubles(&mut self, now: Now) -> bool {
        now < self.whole_from && self.draws.happens(self.rules.double_per_million)
    }

    /// How much longer a single message takes than others, in microseconds: those after it may overtake it.
    pub fn lags(&mut self, now: Now) -> u64 {
        let lags = now < self.whole_from && self.draws.happens(self.rules.lag_per_million);
        if lags { self.draws.below(self.rules.lag_us.saturating_add(1)) } else { 0 }
    }

    /// Whether a frame breaks its stream.
    pub fn breaks(&mut self, now: Now) -> bool {
        now < self.whole_from && self.draws.happens(self.rules.break_per_million)
    }

    /// Enters a stream that `caller` opens under the name `out`; the called side knows it as `called`.
    pub fn open(&mut self, caller: (HostId, StreamId), called: (HostId, StreamId)) -> LinkId {
        self.opened += 1;
        let end = |(host, stream)| End { host, stream, closed: false, coming: VecDeque::new() };
        self.links.insert(self.opened, Link { ends: [end(caller), end(called)], opened: false, broken: false });
        self.by_stream.insert(caller, (self.opened, 0));
        self.by_stream.insert(called, (self.opened, 1));
        self.opened
    }

    /// The stream that a node knows by that name, and which side the node is.
    #[must_use]
    pub fn find(&self, host: HostId, stream: StreamId) -> Option<(LinkId, Side)> {
        self.by_stream.get(&(host, stream)).copied()
    }

    /// A stream.
    #[must_use]
    pub fn link(&self, link: LinkId) -> Option<&Link> {
        self.links.get(&link)
    }

    /// Notes that the call was answered.
    pub fn answered(&mut self, link: LinkId) {
        if let Some(link) = self.links.get_mut(&link) {
            link.opened = true;
        }
    }

    /// Notes that a frame got lost for good.
    pub fn broke(&mut self, link: LinkId) {
        if let Some(link) = self.links.get_mut(&link) {
            link.broken = true;
        }
    }

    /// Sends a parcel to that side, and says when it is due there: after all that was sent before. `None` if the side
    /// takes nothing any more.
    pub fn send(&mut self, now: Now, link: LinkId, side: Side, parcel: Parcel) -> Option<Now> {
        let ends = &self.links.get(&link).filter(|found| !found.ends[side].closed)?.ends;
        let (from, to) = (ends[1 - side].host, ends[side].host);
        let bytes = if let Parcel::Frame(bytes) = &parcel { bytes.len() } else { 0 };
        let at = Now(now.0 + self.delay(now, from, to, bytes));
        let coming = &mut self.links.get_mut(&link)?.ends[side].coming;
        let due = coming.back().map_or(at, |(last, _)| Now(last.0 + 1).max(at));
        coming.push_back((due, parcel));
        Some(due)
    }

    /// The next parcel that has arrived at that side, if frames pass.
    pub fn take(&mut self, now: Now, link: LinkId, side: Side) -> Option<Parcel> {
        let ends = &self.links.get(&link)?.ends;
        if !self.carries(ends[1 - side].host, ends[side].host) {
            return None;
        }
        let coming = &mut self.links.get_mut(&link)?.ends[side].coming;
        coming.front().filter(|(due, _)| *due <= now)?;
        coming.pop_front().map(|(_, parcel)| parcel)
    }

    /// Sides where parcels are overdue, and how long after a cut has healed they get there, in microseconds.
    pub fn overdue(&mut self, now: Now) -> Vec<(LinkId, Side, u64)> {
        let mut late = Vec::new();
        for (id, link) in &self.links {
            for (side, end) in link.ends.iter().enumerate() {
                if end.coming.front().is_some_and(|(due, _)| *due <= now) {
                    late.push((*id, side, link.ends[1 - side].host, end.host));
                }
            }
        }
        late.into_iter().map(|(id, side, from, to)| (id, side, self.delay(now, from, to, 0))).collect()
    }

    /// Marks a side as ended, and forgets the stream once both are. Gives whether the side was open.
    pub fn close(&mut self, link: LinkId, side: Side) -> bool {
        let Some(found) = self.links.get_mut(&link) else { return false };
        let end = &mut found.ends[side];
        let was_open = !std::mem::replace(&mut end.closed, true);
        end.coming.clear();
        self.by_stream.remove(&(end.host, end.stream));
        if found.ends[1 - side].closed {
            self.links.remove(&link);
        }
        was_open
    }

    /// Streams for which `pick` holds.
    pub fn links(&self, pick: impl Fn(&Link) -> bool) -> Vec<LinkId> {
        self.links.iter().filter(|(_, link)| pick(link)).map(|(id, _)| *id).collect()
    }

    /// Streams across any cut.
    #[must_use]
    pub fn severed(&self) -> Vec<LinkId> {
        self.links(|link| !self.connected(link.ends[0].host, link.ends[1].host))
    }

    /// How many streams have a side that is open.
    #[cfg(test)]
    fn open_streams(&self) -> usize {
        self.links.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(jitter_us: u64) -> Network {
        let places = ["us-east", "us-west", "france"].map(|name| regions::region(name).unwrap()).to_vec();
        Network::new(1, NetworkRules { jitter_us, ..NetworkRules::default() }, places, Now(0))
    }

    #[test]
    fn a_frame_never_overtakes_another() {
        let mut network = network(50_000);
        let link = network.open((0, StreamId::Out(1)), (1, StreamId::In(1)));
        let mut last = Now(0);
        for _ in 0..500 {
            let at = network.send(Now(1000), link, 1, Parcel::Frame(vec![0; 10])).unwrap();
            assert!(at > last);
            last = at;
        }
        assert!(last.0 >= 1000 + 37_500);
    }

    #[test]
    fn cuts_separate_and_heal() {
        let mut network = network(0);
        network.cut(1, BTreeSet::from([0]), false);
        network.cut(2, BTreeSet::from([0, 1]), false);
        let reach = |network: &Network| [(0, 1), (0, 2), (1, 2)].map(|(a, b)| network.connected(a, b));
        assert_eq!(reach(&network), [false, false, false]);
        network.heal(1);
        assert_eq!(reach(&network), [true, false, false]);
        network.heal(2);
        assert_eq!(reach(&network), [true, true, true]);
    }

    #[test]
    fn a_cut_one_way_lets_the_other_way_pass() {
        let mut network = network(0);
        network.cut(1, BTreeSet::from([0]), true);
        assert_eq!((network.carries(0, 1), network.carries(1, 0), network.carries(1, 2)), (false, true, true));
        assert!(!network.connected(0, 1));
    }

    #[test]
    fn a_slow_link_sends_one_thing_after_the_other() {
        let mut network = network(0);
        let fast = network.delay(Now(0), 0, 1, 1000);
        network.slow_down(0, 10_000, Now(1_000_000));
        let slow: Vec<u64> = (0..3).map(|_| network.delay(Now(0), 0, 1, 1000)).collect();
        assert_eq!(slow, [fast + 100_000, fast + 200_000, fast + 300_000]);
        assert_eq!(network.delay(Now(0), 1, 0, 1000), fast, "the other way is as fast as ever");
        assert_eq!(network.delay(Now(2_000_000), 0, 1, 1000), fast);
    }

    #[test]
    fn two_that_nobody_can_call_never_meet() {
        let mut network = network(0).with_nat(vec![Nat::Closed, Nat::Closed, Nat::Open]);
        assert!(!network.can_meet(0, 1) && network.can_meet(0, 2) && network.can_meet(2, 1));
        let plain = self::network(0).delay(Now(0), 0, 2, 0);
        assert_eq!(network.delay(Now(0), 0, 2, 0), plain + RELAY_US);
    }

    #[test]
    fn what_a_cut_holds_comes_out_in_order_before_what_came_later() {
        let mut network = network(0);
        let link = network.open((0, StreamId::Out(1)), (1, StreamId::In(1)));
        let first = network.send(Now(0), link, 1, Parcel::Frame(vec![1])).unwrap();
        network.cut(1, BTreeSet::from([0]), false);
        assert!(network.take(first, link, 1).is_none());
        let last = network.send(Now(first.0 + 1), link, 1, Parcel::Closed).unwrap();
        network.heal(1);
        assert_eq!(network.overdue(first), vec![(link, 1, 37_500)]);
        assert!(matches!(network.take(last, link, 1), Some(Parcel::Frame(_))));
        assert!(matches!(network.take(last, link, 1), Some(Parcel::Closed)));
        assert!(network.take(last, link, 1).is_none());
    }

    #[test]
    fn a_stream_is_forgotten_once_both_sides_ended() {
        let mut network = network(0);
        let link = network.open((0, StreamId::Out(1)), (1, StreamId::In(7)));
        assert_eq!(network.find(1, StreamId::In(7)), Some((link, 1)));
        assert!(network.close(link, 0));
        assert!(!network.close(link, 0));
        assert_eq!(network.open_streams(), 1);
        assert!(network.close(link, 1));
        assert_eq!((network.open_streams(), network.find(1, StreamId::In(7))), (0, None));
    }
}
