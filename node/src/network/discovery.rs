//! Kademlia: who is where, and who provides a model, for nodes that start cold. Never on a job's path.
//! Invariant: an address enters the routing table only if a connection showed that the peer has that IP address, and at
//! most [`PEERS_PER_SUBNET_MAX`] peers of one subnet enter one bucket.

use super::address::{ADDRESSES_MAX, Reach, Subnet, ip, split};
use super::behaviour::kademlia_name;
use super::identity::node_id;
use libp2p::kad::store::RecordStore;
use libp2p::kad::{
    Behaviour, Event, GetClosestPeersError, GetClosestPeersOk, GetProvidersOk, InboundRequest, QueryId, QueryResult,
    RecordKey, store::MemoryStore,
};
use libp2p::{Multiaddr, PeerId, StreamProtocol, identify};
use spillway_ledger::{Digest, NetworkId, NodeId};
use spillway_protocol::discovery::Shard;
use std::collections::{BTreeSet, HashMap};
use tokio::sync::oneshot;

/// Peers of one subnet in one bucket.
const PEERS_PER_SUBNET_MAX: usize = 2;
/// Lookups of peers and of providers that may be under way at once, each.
const LOOKUPS_MAX: usize = 16;
/// Providers that one lookup connects to.
const PROVIDERS_MAX: usize = 8;
/// Models that this node announces.
const MODELS_MAX: usize = 256;

/// What is to be done after an event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Connect to this peer; the swarm may know its addresses.
    Provider(PeerId),
    /// A peer that was looked up has these addresses; none if nobody knows any.
    Peer(PeerId, Vec<Multiaddr>),
}

/// What peers let be known that they are there for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Provided {
    /// They serve a model.
    Model(String),
    /// They are on a topic of notices.
    Shard(Shard),
}

/// A lookup of who is there for something.
struct Search {
    found: Vec<NodeId>,
    reply: Option<oneshot::Sender<Vec<NodeId>>>,
}

/// The lookups under way and what is announced.
pub(crate) struct Discovery {
    network: NetworkId,
    reach: Reach,
    protocol: StreamProtocol,
    peers: HashMap<QueryId, PeerId>,
    searches: HashMap<QueryId, Search>,
    provided: BTreeSet<Provided>,
    /// The table has changed since the models were last announced.
    stale: bool,
}

impl Discovery {
    pub(crate) fn new(network: NetworkId, reach: Reach) -> Self {
        Self {
            network,
            reach,
            protocol: kademlia_name(&network),
            peers: HashMap::new(),
            searches: HashMap::new(),
            provided: BTreeSet::new(),
            stale: false,
        }
    }

    /// A peer said who it is over a connection from or to `remote`; `dialled` if this node dialled that address.
    pub(crate) fn identified(
        &mut self,
        kad: &mut Behaviour<MemoryStore>,
        peer: PeerId,
        remote: &Multiaddr,
        dialled: bool,
        info: &identify::Info,
    ) {
        if !info.protocols.contains(&self.protocol) {
            return; // It does not route.
        }
        let seen = ip(remote);
        let claimed = info.listen_addrs.iter().take(4 * ADDRESSES_MAX).map(|address| split(address.clone()).0);
        let mut verified: Vec<Multiaddr> =
            claimed.filter(|address| seen.is_some() && ip(address) == seen && self.reach.may_dial(address)).collect();
        let remote = split(remote.clone()).0;
        if dialled && !verified.contains(&remote) {
            verified.insert(0, remote);
        }
        verified.truncate(ADDRESSES_MAX);
        for address in verified {
            if !crowded(kad, peer, &address) {
                kad.add_address(&peer, address);
            }
        }
    }

    /// Announces exactly these models from now on.
    pub(crate) fn provide(&mut self, kad: &mut Behaviour<MemoryStore>, models: Vec<String>) {
        let mut wanted: BTreeSet<Provided> = models.into_iter().take(MODELS_MAX).map(Provided::Model).collect();
        wanted.extend(self.provided.iter().filter(|it| matches!(it, Provided::Shard(_))).cloned());
        for gone in self.provided.difference(&wanted) {
            kad.stop_providing(&self.key(gone));
        }
        for new in wanted.difference(&self.provided) {
            self.announce(kad, new);
        }
        self.provided = wanted;
    }

    /// Lets it be known that this node is on a topic of notices.
    pub(crate) fn join(&mut self, kad: &mut Behaviour<MemoryStore>, shard: Shard) {
        let joined = Provided::Shard(shard);
        if !self.provided.contains(&joined) {
            self.announce(kad, &joined);
            self.provided.insert(joined);
        }
    }

    /// Takes back [`Discovery::join`].
    pub(crate) fn part(&mut self, kad: &mut Behaviour<MemoryStore>, shard: Shard) {
        let parted = Provided::Shard(shard);
        if self.provided.remove(&parted) {
            kad.stop_providing(&self.key(&parted));
        }
    }

    /// Looks for peers on a topic of notices: each is a [`Found::Provider`]. Nothing happens when too many lookups run.
    pub(crate) fn seek(&mut self, kad: &mut Behaviour<MemoryStore>, shard: Shard) {
        if self.searches.len() < LOOKUPS_MAX {
            let key = self.key(&Provided::Shard(shard));
            self.searches.insert(kad.get_providers(key), Search { found: Vec::new(), reply: None });
        }
    }

    /// Announces anew if peers have turned up since: what was announced to nobody was not announced.
    pub(crate) fn renew(&mut self, kad: &mut Behaviour<MemoryStore>) {
        if std::mem::take(&mut self.stale) {
            for provided in &self.provided {
                self.announce(kad, provided);
            }
        }
    }

    /// Looks for providers of a model: each is a [`Found::Provider`], and `reply` gets them all. Nobody, when too many
    /// lookups run.
    pub(crate) fn find_model(
        &mut self,
        kad: &mut Behaviour<MemoryStore>,
        model: &str,
        reply: oneshot::Sender<Vec<NodeId>>,
    ) {
        if self.searches.len() < LOOKUPS_MAX {
            let key = self.key(&Provided::Model(model.to_owned()));
            self.searches.insert(kad.get_providers(key), Search { found: Vec::new(), reply: Some(reply) });
        }
    }

    /// Looks for a peer's addresses; `false` when too many lookups run. Answered by [`Found::Peer`].
    pub(crate) fn find_peer(&mut self, kad: &mut Behaviour<MemoryStore>, peer: PeerId) -> bool {
        if self.peers.values().any(|sought| *sought == peer) {
            return true;
        }
        if self.peers.len() >= LOOKUPS_MAX {
            return false;
        }
        self.peers.insert(kad.get_closest_peers(peer), peer);
        true
    }

    /// Takes Kademlia's events; returns what follows from one.
    pub(crate) fn handle(&mut self, kad: &mut Behaviour<MemoryStore>, event: Event) -> Vec<Found> {
        match event {
            Event::InboundRequest { request: InboundRequest::AddProvider { record: Some(mut record) } } => {
                // Kademlia has checked that the provider is the sender. Its addresses are hints and no more.
                record.addresses.retain(|address| self.reach.may_dial(&split(address.clone()).0));
                record.addresses.truncate(ADDRESSES_MAX);
                if let Err(error) = kad.store_mut().add_provider(record) {
                    tracing::debug!(%error, "a provider record is not kept");
                }
                Vec::new()
            }
            Event::RoutingUpdated { is_new_peer: true, .. } => {
                self.stale = true;
                Vec::new()
            }
            Event::OutboundQueryProgressed { id, result, step, .. } => self.progressed(id, result, step.last),
            // Other requests are answered by Kademlia itself, and values are never stored; the rest is for statistics.
            Event::InboundRequest { .. }
            | Event::RoutingUpdated { .. }
            | Event::UnroutablePeer { .. }
            | Event::RoutablePeer { .. }
            | Event::PendingRoutablePeer { .. }
            | Event::ModeChanged { .. } => Vec::new(),
        }
    }

    fn progressed(&mut self, id: QueryId, result: QueryResult, last: bool) -> Vec<Found> {
        let mut found = Vec::new();
        match result {
            QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { providers, .. })) => {
                if let Some(search) = self.searches.get_mut(&id) {
                    for peer in providers {
                        let Ok(node) = node_id(&peer) else { continue };
                        if search.found.len() < PROVIDERS_MAX && !search.found.contains(&node) {
                            search.found.push(node);
                            found.push(Found::Provider(peer));
                        }
                    }
                }
            }
            QueryResult::GetClosestPeers(
                Ok(GetClosestPeersOk { peers, .. }) | Err(GetClosestPeersError::Timeout { peers, .. }),
            ) => {
                if last && let Some(sought) = self.peers.remove(&id) {
                    let known = peers.into_iter().find(|info| info.peer_id == sought);
                    let addresses = known.into_iter().flat_map(|info| info.addrs);
                    let addresses = addresses.map(|address| split(address).0).filter(|to| self.reach.may_dial(to));
                    found.push(Found::Peer(sought, addresses.take(ADDRESSES_MAX).collect()));
                }
            }
            QueryResult::GetProviders(_)
            | QueryResult::Bootstrap(_)
            | QueryResult::StartProviding(_)
            | QueryResult::RepublishProvider(_)
            | QueryResult::GetRecord(_)
            | QueryResult::PutRecord(_)
            | QueryResult::RepublishRecord(_) => {}
        }
        if last
            && let Some(search) = self.searches.remove(&id)
            && let Some(reply) = search.reply
        {
            let _ = reply.send(search.found);
        }
        found
    }

    fn announce(&self, kad: &mut Behaviour<MemoryStore>, provided: &Provided) {
        if let Err(error) = kad.start_providing(self.key(provided)) {
            tracing::debug!(?provided, %error, "it is not announced");
        }
    }

    /// Where it is recorded who is there for something; another network's are elsewhere.
    fn key(&self, provided: &Provided) -> RecordKey {
        let network = self.network.0.as_bytes();
        let digest = match provided {
            Provided::Model(model) => Digest::of("spillway/provide/1", &[network, model.as_bytes()]),
            Provided::Shard(shard) => Digest::of("spillway/shard/1", &[network, &shard.number().to_le_bytes()]),
        };
        RecordKey::new(digest.as_bytes())
    }
}

/// Whether the bucket of `peer` holds its share of the address's subnet already.
fn crowded(kad: &mut Behaviour<MemoryStore>, peer: PeerId, address: &Multiaddr) -> bool {
    let Some(subnet) = Subnet::of(address) else { return false };
    let Some(bucket) = kad.kbucket(peer) else { return false };
    let others = bucket.iter().filter(|entry| {
        *entry.node.key.preimage() != peer && entry.node.value.iter().any(|known| Subnet::of(known) == Some(subnet))
    });
    others.count() >= PEERS_PER_SUBNET_MAX
}
