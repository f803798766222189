//! Keeps a conversation where it is: rendezvous hashing on the session.
//! Invariant: a replica that comes or goes moves no session but those it had or gets.
//!
//! Source: Thaler and Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", IEEE/ACM ToN 6(1), 1998.

use super::common::lowest;
use crate::draws::Draws;
use crate::fleet::{Ask, Choice, GatewayId, Policy, View};

/// Sessions by hash.
pub struct SessionHash(Draws);

impl SessionHash {
    /// For a gateway.
    #[must_use]
    pub fn new(seed: u64, gateway: GatewayId) -> Self {
        Self(super::common::draws(seed, gateway))
    }
}

/// Mixes two numbers into one. The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
const fn mix(one: u64, other: u64) -> u64 {
    let mut mixed = one ^ other.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

impl Policy for SessionHash {
    fn route(&mut self, _: u64, ask: &Ask<'_>, view: &mut View<'_>) -> Choice {
        let session = mix(ask.session, 1);
        let chosen = lowest(&mut self.0, view, view.candidates(), |id| mix(session, u64::from(id.0) + 2));
        chosen.map_or(Choice::Wait, Choice::Replica)
    }
}
