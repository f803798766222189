//! Keeps one subnet from taking all connections: an attacker has many keys, but rarely many subnets.
//! Invariant: at most [`CONNECTIONS_PER_SUBNET_MAX`] connections with one subnet, near addresses excepted.

use super::address::Subnet;
use super::settings::CONNECTIONS_PER_SUBNET_MAX;
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
    dummy,
};
use libp2p::{Multiaddr, PeerId};
use std::collections::HashMap;
use std::convert::Infallible;
use std::task::{Context, Poll};

/// Counts connections by subnet.
#[derive(Default)]
pub(crate) struct Behaviour {
    established: HashMap<ConnectionId, Subnet>,
}

/// The subnet has as many connections as it may.
#[derive(Debug, thiserror::Error)]
#[error("more than {CONNECTIONS_PER_SUBNET_MAX} connections with {0:?}")]
struct Crowded(Subnet);

impl Behaviour {
    fn admit(&self, remote: &Multiaddr) -> Result<(), ConnectionDenied> {
        let Some(subnet) = Subnet::of(remote) else { return Ok(()) };
        if self.established.values().filter(|taken| **taken == subnet).count() >= CONNECTIONS_PER_SUBNET_MAX {
            return Err(ConnectionDenied::new(Crowded(subnet)));
        }
        Ok(())
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.admit(remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(remote).map(|()| dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        remote: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(remote).map(|()| dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        // Only these two concern a count of connections; the list of others grows with libp2p.
        if let FromSwarm::ConnectionEstablished(opened) = event {
            if let Some(subnet) = Subnet::of(opened.endpoint.get_remote_address()) {
                self.established.insert(opened.connection_id, subnet);
            }
        } else if let FromSwarm::ConnectionClosed(closed) = event {
            self.established.remove(&closed.connection_id);
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}
