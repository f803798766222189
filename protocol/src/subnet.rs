//! The part of the internet that one operator commonly holds whole: a /24 (IPv4) or a /48 (IPv6).
//! Invariant: near addresses have none, since many peers in one of those subnets are nothing odd.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The network part of a public address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subnet {
    /// The first three bytes.
    V4([u8; 3]),
    /// The first six bytes.
    V6([u8; 6]),
}

impl Subnet {
    /// The subnet of a multiaddress such as `/ip4/198.51.100.7/udp/4600/quic-v1`; `None` for names, for loopback,
    /// private and link-local addresses, and for what is no address.
    #[must_use]
    pub fn of(multiaddress: &str) -> Option<Self> {
        let mut parts = multiaddress.split('/').skip(1);
        let ip = match (parts.next()?, parts.next()?) {
            ("ip4", text) => IpAddr::V4(text.parse().ok()?),
            ("ip6", text) => {
                let ip: Ipv6Addr = text.parse().ok()?;
                ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4)
            }
            _ => return None,
        };
        Self::of_ip(ip)
    }

    fn of_ip(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(ip) => (!near_v4(ip)).then(|| {
                let [a, b, c, _] = ip.octets();
                Self::V4([a, b, c])
            }),
            IpAddr::V6(ip) => {
                if ip.is_loopback() || ip.is_unspecified() || ip.is_unique_local() || ip.is_unicast_link_local() {
                    return None;
                }
                let [a, b, c, d, e, f, ..] = ip.octets();
                Some(Self::V6([a, b, c, d, e, f]))
            }
        }
    }
}

const fn near_v4(ip: Ipv4Addr) -> bool {
    ip.is_loopback() || ip.is_private() || ip.is_link_local() || ip.is_unspecified()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_have_a_subnet() {
        let cases = [
            ("/ip4/8.8.8.8/tcp/1", Some(Subnet::V4([8, 8, 8]))),
            ("/ip6/2001:db8:7::1/tcp/1", Some(Subnet::V6([0x20, 0x01, 0x0d, 0xb8, 0, 7]))),
            ("/ip6/::ffff:8.8.8.8/tcp/1", Some(Subnet::V4([8, 8, 8]))),
            ("/ip4/10.0.0.1/tcp/1", None),
            ("/ip4/127.0.0.1/tcp/1", None),
            ("/ip6/::1/tcp/1", None),
            ("/dns4/example.org/tcp/1", None),
            ("/ip4/300.0.0.1/tcp/1", None),
            ("nonsense", None),
            ("", None),
        ];
        for (text, subnet) in cases {
            assert_eq!(Subnet::of(text), subnet, "{text}");
        }
    }
}
