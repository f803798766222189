//! Multiaddresses: reading them, and telling the near from the far.
//! Invariant: an address that a peer merely claims is dialled only if [`Reach::may_dial`] says so.

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use std::net::IpAddr;

/// Addresses of one peer that are looked at; the rest are ignored.
pub(crate) const ADDRESSES_MAX: usize = 8;

/// The IP address that a multiaddress begins with; `None` for names.
pub(crate) fn ip(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(IpAddr::V4(ip)),
        // An IPv4 peer seen through a dual-stack socket is an IPv4 peer.
        Protocol::Ip6(ip) => Some(ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4)),
        _ => None,
    }
}

/// Whether only this machine or this site can reach it.
pub(crate) fn is_near(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

/// The part of the network that one operator commonly holds whole: a /24 (IPv4) or a /48 (IPv6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Subnet {
    /// The first three bytes.
    V4([u8; 3]),
    /// The first six bytes.
    V6([u8; 6]),
}

impl Subnet {
    /// The subnet of an address; `None` for near ones, where many peers in one subnet are nothing odd.
    pub(crate) fn of(address: &Multiaddr) -> Option<Self> {
        let ip = ip(address)?;
        if is_near(ip) {
            return None;
        }
        Some(match ip {
            IpAddr::V4(ip) => {
                let [a, b, c, _] = ip.octets();
                Self::V4([a, b, c])
            }
            IpAddr::V6(ip) => {
                let octets = ip.octets();
                Self::V6([octets[0], octets[1], octets[2], octets[3], octets[4], octets[5]])
            }
        })
    }
}

/// How far this node means to be reached, judged by where it was told to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Only loopback or private addresses: a test network, or one site. Everyone can reach everyone, so it takes part in
    /// routing at once, and loopback addresses of others are dialled.
    Near,
    /// Anything else. It takes part in routing once somebody from outside has reached it.
    Far,
}

impl Reach {
    /// Judges addresses, commonly those to listen on. The unspecified address (`0.0.0.0`) is far: who gives it means everyone.
    pub(crate) fn of(listen: &[Multiaddr]) -> Self {
        let near = |address: &Multiaddr| ip(address).is_some_and(is_near);
        if !listen.is_empty() && listen.iter().all(near) { Self::Near } else { Self::Far }
    }

    /// Whether an address that a peer claims may be dialled: a plain IP address with a transport of ours, and no way to
    /// make this node knock at its own loopback services.
    pub(crate) fn may_dial(self, address: &Multiaddr) -> bool {
        let Some(ip) = ip(address) else { return false };
        let relayed = address.iter().any(|part| matches!(part, Protocol::P2pCircuit));
        let transport = match address.iter().nth(1) {
            Some(Protocol::Tcp(port)) => port != 0,
            Some(Protocol::Udp(port)) => port != 0 && matches!(address.iter().nth(2), Some(Protocol::QuicV1)),
            _ => false,
        };
        transport && !relayed && !ip.is_unspecified() && !ip.is_multicast() && (self == Self::Near || !ip.is_loopback())
    }

    /// Of the addresses that a peer claims, those to dial: readable, allowed, without a peer id, the first few.
    pub(crate) fn dialable(self, claimed: &[String]) -> Vec<Multiaddr> {
        let parsed = claimed.iter().take(ADDRESSES_MAX).filter_map(|text| text.parse::<Multiaddr>().ok());
        parsed.map(|address| split(address).0).filter(|address| self.may_dial(address)).collect()
    }
}

/// Takes the `/p2p/<peer id>` off an address's end, if there is one.
pub(crate) fn split(mut address: Multiaddr) -> (Multiaddr, Option<PeerId>) {
    match address.pop() {
        Some(Protocol::P2p(peer)) => (address, Some(peer)),
        Some(other) => {
            address.push(other);
            (address, None)
        }
        None => (address, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Multiaddr {
        text.parse().expect("a multiaddress")
    }

    #[test]
    fn reach_follows_the_addresses_to_listen_on() {
        let cases: [(&[&str], Reach); 6] = [
            (&[], Reach::Far),
            (&["/ip4/0.0.0.0/udp/4600/quic-v1"], Reach::Far),
            (&["/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0"], Reach::Near),
            (&["/ip4/10.1.2.3/udp/0/quic-v1"], Reach::Near),
            (&["/ip4/127.0.0.1/tcp/0", "/ip4/8.8.8.8/tcp/1"], Reach::Far),
            (&["/ip6/::1/tcp/0"], Reach::Near),
        ];
        for (listen, reach) in cases {
            let listen: Vec<_> = listen.iter().map(|text| parsed(text)).collect();
            assert_eq!(Reach::of(&listen), reach, "{listen:?}");
        }
    }

    #[test]
    fn claimed_addresses_are_dialled_only_where_they_can_do_no_harm() {
        let cases = [
            ("/ip4/8.8.8.8/udp/4600/quic-v1", true, true),
            ("/ip4/8.8.8.8/tcp/4600", true, true),
            ("/ip6/2001:db8::1/tcp/4600", true, true),
            ("/ip4/192.168.1.2/tcp/4600", true, true),
            ("/ip4/127.0.0.1/tcp/4600", true, false),
            ("/ip6/::1/udp/4600/quic-v1", true, false),
            ("/ip6/::ffff:127.0.0.1/tcp/4600", true, false),
            ("/ip4/0.0.0.0/tcp/4600", false, false),
            ("/ip4/224.0.0.251/udp/5353/quic-v1", false, false),
            ("/ip4/8.8.8.8/tcp/0", false, false),
            ("/ip4/8.8.8.8/udp/4600", false, false),
            ("/dns4/example.org/tcp/4600", false, false),
            (
                "/ip4/8.8.8.8/tcp/4600/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN/p2p-circuit",
                false,
                false,
            ),
        ];
        for (text, near, far) in cases {
            let found = (Reach::Near.may_dial(&parsed(text)), Reach::Far.may_dial(&parsed(text)));
            assert_eq!(found, (near, far), "{text}");
        }
    }

    #[test]
    fn subnets_are_counted_only_outside() {
        let cases = [
            ("/ip4/8.8.8.8/tcp/1", Some(Subnet::V4([8, 8, 8]))),
            ("/ip6/2001:db8:7::1/tcp/1", Some(Subnet::V6([0x20, 0x01, 0x0d, 0xb8, 0, 7]))),
            ("/ip6/::ffff:8.8.8.8/tcp/1", Some(Subnet::V4([8, 8, 8]))),
            ("/ip4/10.0.0.1/tcp/1", None),
            ("/ip4/127.0.0.1/tcp/1", None),
            ("/dns4/example.org/tcp/1", None),
        ];
        for (text, subnet) in cases {
            assert_eq!(Subnet::of(&parsed(text)), subnet, "{text}");
        }
    }
}
