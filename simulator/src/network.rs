//! What lies between the nodes: distance, loss, cuts, and the streams that are open.
//! Invariant: what arrives on a stream arrives in the order it was sent; a stream ends once at each side.

use crate::data::regions;
use crate::draws::Draws;
use crate::scenario::NetworkRules;
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

/// The network's state.
#[derive(Debug)]
pub struct Network {
    rules: NetworkRules,
    draws: Draws,
    regions: Vec<usize>,
    /// Nothing gets lost from then on.
    whole_from: Now,
    cuts: BTreeMap<u64, BTreeSet<HostId>>,
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
            links: BTreeMap::new(),
            by_stream: BTreeMap::new(),
            opened: 0,
        }
    }

    /// Whether frames pass between two nodes.
    #[must_use]
    pub fn connected(&self, a: HostId, b: HostId) -> bool {
        self.cuts.values().all(|side| side.contains(&a) == side.contains(&b))
    }

    /// Separates `side` from the rest.
    pub fn cut(&mut self, cut: u64, side: BTreeSet<HostId>) {
        self.cuts.insert(cut, side);
    }

    /// Ends a cut; gives the side that it separated.
    pub fn heal(&mut self, cut: u64) -> Option<BTreeSet<HostId>> {
        self.cuts.remove(&cut)
    }

    /// Whether the cut is still open.
    #[must_use]
    pub fn is_cut(&self, cut: u64) -> bool {
        self.cuts.contains_key(&cut)
    }

    /// The longest round trip of something small, in microseconds.
    #[must_use]
    pub fn round_trip_us(&self, a: HostId, b: HostId) -> u64 {
        regions::rtt_us(self.regions[a], self.regions[b]) + 2 * self.rules.jitter_us
    }

    /// How long something of that size takes from `a` to `b`, in microseconds, jitter drawn.
    pub fn delay(&mut self, a: HostId, b: HostId, bytes: usize) -> u64 {
        let way = regions::rtt_us(self.regions[a], self.regions[b]) / 2;
        let jitter = self.rules.jitter_us;
        let jitter = if jitter == 0 { 0 } else { self.draws.below(jitter) };
        way + jitter + bytes as u64 * NANOS_PER_BYTE / 1000
    }

    /// Whether a single message gets lost.
    pub fn drops(&mut self, now: Now) -> bool {
        now < self.whole_from && self.draws.happens(self.rules.drop_per_million)
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
        let at = Now(now.0 + self.delay(from, to, bytes));
        let coming = &mut self.links.get_mut(&link)?.ends[side].coming;
        let due = coming.back().map_or(at, |(last, _)| Now(last.0 + 1).max(at));
        coming.push_back((due, parcel));
        Some(due)
    }

    /// The next parcel that has arrived at that side, if frames pass.
    pub fn take(&mut self, now: Now, link: LinkId, side: Side) -> Option<Parcel> {
        let ends = &self.links.get(&link)?.ends;
        if !self.connected(ends[0].host, ends[1].host) {
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
        late.into_iter().map(|(id, side, from, to)| (id, side, self.delay(from, to, 0))).collect()
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
        network.cut(1, BTreeSet::from([0]));
        network.cut(2, BTreeSet::from([0, 1]));
        let reach = |network: &Network| [(0, 1), (0, 2), (1, 2)].map(|(a, b)| network.connected(a, b));
        assert_eq!(reach(&network), [false, false, false]);
        network.heal(1);
        assert_eq!(reach(&network), [true, false, false]);
        network.heal(2);
        assert_eq!(reach(&network), [true, true, true]);
    }

    #[test]
    fn what_a_cut_holds_comes_out_in_order_before_what_came_later() {
        let mut network = network(0);
        let link = network.open((0, StreamId::Out(1)), (1, StreamId::In(1)));
        let first = network.send(Now(0), link, 1, Parcel::Frame(vec![1])).unwrap();
        network.cut(1, BTreeSet::from([0]));
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
