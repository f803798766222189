//! The libp2p behaviours of a node, each with its limits.
//! Invariant: limits come first, so that a connection over a limit reaches nothing behind them.

use super::address::Reach;
use super::calls::{CallKind, Codec};
use super::event::Topic;
use super::settings::{
    CONNECTIONS_MAX, CONNECTIONS_PER_PEER_MAX, GOSSIP_BYTES_MAX, MEMORY_SHARE_MAX, NetworkError, PENDING_MAX,
    PING_EVERY,
};
use super::{streams, subnet};
use libp2p::identity::Keypair;
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{
    PeerId, StreamProtocol, connection_limits, gossipsub, identify, kad, mdns, memory_connection_limits, ping,
    request_response,
};
use spillway_ledger::NetworkId;
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// Provider records of others that are kept.
const PROVIDERS_KEYS_MAX: usize = 4096;
/// How long a provider record lives, unless renewed.
const PROVIDER_LIFETIME: Duration = Duration::from_secs(1800);
/// How often this node's own provider records are renewed.
const PROVIDER_RENEWAL: Duration = Duration::from_secs(600);

/// Everything the swarm does.
#[derive(NetworkBehaviour)]
pub(crate) struct Node {
    limits: connection_limits::Behaviour,
    memory: memory_connection_limits::Behaviour,
    subnets: subnet::Behaviour,
    pub(crate) streams: streams::Behaviour,
    pub(crate) identify: identify::Behaviour,
    pub(crate) ping: ping::Behaviour,
    pub(crate) kad: kad::Behaviour<kad::store::MemoryStore>,
    pub(crate) gossip: gossipsub::Behaviour,
    pub(crate) probes: request_response::Behaviour<Codec>,
    pub(crate) offers: request_response::Behaviour<Codec>,
    pub(crate) ledger: request_response::Behaviour<Codec>,
    pub(crate) mdns: Toggle<mdns::tokio::Behaviour>,
}

impl Node {
    pub(crate) fn new(
        key: &Keypair,
        network: &NetworkId,
        reach: Reach,
        mdns: bool,
        streams: streams::Behaviour,
    ) -> Result<Self, NetworkError> {
        let peer = key.public().to_peer_id();
        let local_discovery = if mdns {
            let behaviour = mdns::tokio::Behaviour::new(mdns::Config::default(), peer);
            Some(behaviour.map_err(|error| NetworkError::Setup { part: "mdns", why: error.to_string() })?)
        } else {
            None
        };
        Ok(Self {
            limits: connection_limits::Behaviour::new(
                connection_limits::ConnectionLimits::default()
                    .with_max_pending_incoming(Some(PENDING_MAX))
                    .with_max_pending_outgoing(Some(PENDING_MAX))
                    .with_max_established_incoming(Some(CONNECTIONS_MAX))
                    .with_max_established_outgoing(Some(CONNECTIONS_MAX))
                    .with_max_established_per_peer(Some(CONNECTIONS_PER_PEER_MAX)),
            ),
            memory: memory_connection_limits::Behaviour::with_max_percentage(MEMORY_SHARE_MAX),
            subnets: subnet::Behaviour::default(),
            streams,
            identify: identify::Behaviour::new(
                identify::Config::new(identify_name(network), key.public())
                    .with_agent_version(concat!("spillway/", env!("CARGO_PKG_VERSION")).into())
                    .with_push_listen_addr_updates(true),
            ),
            ping: ping::Behaviour::new(ping::Config::new().with_interval(PING_EVERY).with_timeout(PING_EVERY)),
            kad: kademlia(peer, network, reach),
            gossip: gossip(key, network)?,
            probes: Codec::behaviour(CallKind::Probe),
            offers: Codec::behaviour(CallKind::Offers),
            ledger: Codec::behaviour(CallKind::Ledger),
            mdns: local_discovery.into(),
        })
    }

    /// The behaviour that carries calls of `kind`.
    pub(crate) fn calls(&mut self, kind: CallKind) -> &mut request_response::Behaviour<Codec> {
        match kind {
            CallKind::Probe => &mut self.probes,
            CallKind::Offers => &mut self.offers,
            CallKind::Ledger => &mut self.ledger,
        }
    }
}

/// What a peer of this network calls itself in `identify`.
pub(crate) fn identify_name(network: &NetworkId) -> String {
    format!("/spillway/{}/1", network.0)
}

/// The name under which this network's peers route.
pub(crate) fn kademlia_name(network: &NetworkId) -> StreamProtocol {
    StreamProtocol::try_from_owned(format!("/spillway/{}/kad/1", network.0)).expect("begins with a slash")
}

fn kademlia(peer: PeerId, network: &NetworkId, reach: Reach) -> kad::Behaviour<kad::store::MemoryStore> {
    let mut config = kad::Config::new(kademlia_name(network));
    config
        .disjoint_query_paths(true)
        // Peers enter the table only after `discovery` has checked their addresses.
        .set_kbucket_inserts(kad::BucketInserts::Manual)
        // Records of others are stored only after `discovery` has looked at them; values never are.
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        .set_provider_record_ttl(Some(PROVIDER_LIFETIME))
        .set_provider_publication_interval(Some(PROVIDER_RENEWAL))
        .set_query_timeout(Duration::from_secs(10));
    let store = kad::store::MemoryStoreConfig {
        max_records: 0,
        max_value_bytes: 0,
        max_provided_keys: PROVIDERS_KEYS_MAX,
        ..kad::store::MemoryStoreConfig::default()
    };
    let mut kad = kad::Behaviour::with_config(peer, kad::store::MemoryStore::with_config(peer, store), config);
    match reach {
        // Everybody here can reach everybody: nothing needs to be confirmed.
        Reach::Near => kad.set_mode(Some(kad::Mode::Server)),
        // Kademlia's own rule: a client until an external address is confirmed.
        Reach::Far => kad.set_mode(None),
    }
    kad
}

fn gossip(key: &Keypair, network: &NetworkId) -> Result<gossipsub::Behaviour, NetworkError> {
    let setup = |why: String| NetworkError::Setup { part: "gossip", why };
    let config = gossipsub::ConfigBuilder::default()
        .validate_messages()
        .validation_mode(gossipsub::ValidationMode::Strict)
        .max_transmit_size(GOSSIP_BYTES_MAX)
        // The same offer from two peers is one message.
        .message_id_fn(|message| {
            let mut hash = blake3::Hasher::new();
            hash.update(message.topic.as_str().as_bytes()).update(&[0]).update(&message.data);
            gossipsub::MessageId::new(hash.finalize().as_bytes())
        })
        .build()
        .map_err(|error| setup(error.to_string()))?;
    let mut gossip = gossipsub::Behaviour::new(gossipsub::MessageAuthenticity::Signed(key.clone()), config)
        .map_err(|error| setup(error.into()))?;
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let score = gossipsub::PeerScoreParams {
        // Many peers at one address are a Sybil elsewhere, and a test network on loopback.
        ip_colocation_factor_whitelist: HashSet::from(loopback),
        topics: Topic::all().map(|topic| (ident(topic, network).hash(), topic_score())).collect(),
        ..gossipsub::PeerScoreParams::default()
    };
    gossip.with_peer_score(score, gossipsub::PeerScoreThresholds::default()).map_err(setup)?;
    gossip.subscribe(&ident(Topic::Blocks, network)).map_err(|error| setup(error.to_string()))?;
    Ok(gossip)
}

/// A topic as gossipsub knows it.
pub(crate) fn ident(topic: Topic, network: &NetworkId) -> gossipsub::IdentTopic {
    gossipsub::IdentTopic::new(topic.name(network))
}

/// Who sends bad messages loses; who is merely quiet on a quiet topic does not.
fn topic_score() -> gossipsub::TopicScoreParams {
    gossipsub::TopicScoreParams {
        time_in_mesh_quantum: Duration::from_secs(1),
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        ..gossipsub::TopicScoreParams::default()
    }
}
