//! Notices: what is gossiped of an offer, and the signs of life that keep it.
//! Invariant: only who signed a notice can show its next sign of life, and nobody can show one before its time.

use super::{AHEAD_MAX, LIVES, PERIOD_MAX, PERIOD_MIN};
use crate::time::Now;
use spillway_ledger::{Digest, Document, NetworkId, NodeId, SecretKey};
use std::time::Duration;

/// Into how many topics the models of a market are sorted.
pub const SHARDS: u16 = 64;
/// Most notices that providers put into the lobby, each by its own count: a sample of the market, for who browses.
pub const LOBBY_NOTICES: usize = 64;
/// Most models of one notice; as of an offer.
pub const NOTICE_MODELS_MAX: usize = 8;
/// The number of the sign that is a farewell.
pub const FAREWELL: u8 = u8::MAX;

/// One topic: the models whose tags fall into it, or the lobby, which is of all models. Not above [`SHARDS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shard(u16);

impl Shard {
    /// The topic of a sample of all offers.
    pub const LOBBY: Self = Self(SHARDS);

    /// The shard of that number, if there is one.
    #[must_use]
    pub const fn new(number: u16) -> Option<Self> {
        if number <= SHARDS { Some(Self(number)) } else { None }
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0
    }

    /// The shard of a model.
    #[must_use]
    pub fn of(network: &NetworkId, model: &str) -> Self {
        ModelTag::of(network, model).shard()
    }

    /// Every shard, and the lobby.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..=SHARDS).map(Self)
    }
}

/// A model's name, short. Two models may share one: that costs an offer asked for in vain, and no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, wincode::SchemaRead, wincode::SchemaWrite)]
pub struct ModelTag(u32);

impl ModelTag {
    /// The tag of a model in a market.
    #[must_use]
    pub fn of(network: &NetworkId, model: &str) -> Self {
        let digest = Digest::of("spillway/model-tag/1", &[network.0.as_bytes(), model.as_bytes()]);
        Self(u32::from_le_bytes(first(&digest)))
    }

    /// The topic it belongs to.
    #[must_use]
    pub fn shard(self) -> Shard {
        Shard(u16::try_from(self.0 % u32::from(SHARDS)).expect("below the number of shards"))
    }
}

/// What an offer says, short: the first half of [`Offer::content`](crate::Offer::content).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, wincode::SchemaRead, wincode::SchemaWrite)]
pub struct ContentId([u8; 16]);

impl ContentId {
    /// Of an offer.
    #[must_use]
    pub fn of(offer: &crate::Offer) -> Self {
        Self(first(&offer.content()))
    }
}

/// One link of a chain of hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, wincode::SchemaRead, wincode::SchemaWrite)]
pub struct Link([u8; 12]);

impl Link {
    /// The link before this one. Nobody can go the other way: that takes some 2^96 tries.
    #[must_use]
    pub fn before(self) -> Self {
        Self(first(&Digest::of("spillway/beat/1", &[&self.0])))
    }

    /// The link `steps` before this one.
    #[must_use]
    pub fn back(self, steps: u8) -> Self {
        (0..steps).fold(self, |link, _| link.before())
    }

    /// Names the notice whose chain begins here, among those of a shard.
    #[must_use]
    pub fn tag(self) -> u32 {
        let [a, b, c, d, ..] = self.0;
        u32::from_le_bytes([a, b, c, d])
    }
}

/// The chain that an issuer keeps to itself and shows link by link.
#[derive(Clone)]
pub struct Chain {
    last: Link,
}

impl Chain {
    /// The chain of one notice. Follows from the issuer's key, so that nothing of it need be kept.
    #[must_use]
    pub fn new(key: &SecretKey, sequence: u64, content: ContentId) -> Self {
        let parts: [&[u8]; 3] = [&*key.to_bytes(), &sequence.to_le_bytes(), &content.0];
        Self { last: Link(first(&Digest::of("spillway/chain/1", &parts))) }
    }

    /// Its link of that number: 0 stands in the notice.
    #[must_use]
    pub fn link(&self, number: u8) -> Link {
        self.last.back(FAREWELL - number)
    }
}

/// Says that an offer exists and will be kept alive; at most 200 bytes with its signature. Who wants the offer asks.
#[derive(Clone, Debug, PartialEq, Eq, wincode::SchemaRead, wincode::SchemaWrite)]
pub struct Notice {
    /// The market: the first eight bytes of its id.
    pub market: u64,
    /// Grows with each notice of its signer.
    pub sequence: u64,
    /// When it was issued, Unix milliseconds.
    pub issued_ms: u64,
    /// How often its signer shows a sign of life, in seconds. It lapses after three periods without one.
    pub period_s: u32,
    /// What the offer says.
    pub content: ContentId,
    /// Where the chain of signs begins.
    pub anchor: Link,
    /// The offer's models, strictly sorted, at least one.
    pub models: Vec<ModelTag>,
}

impl Notice {
    /// How a market is named in notices.
    #[must_use]
    pub fn market(network: &NetworkId) -> u64 {
        u64::from_le_bytes(first(&network.0))
    }

    /// The time between two signs.
    #[must_use]
    pub fn period(&self) -> Duration {
        Duration::from_secs(u64::from(self.period_s))
    }

    /// When the sign of that number is due, Unix milliseconds.
    #[must_use]
    pub fn due_ms(&self, number: u8) -> u64 {
        self.issued_ms.saturating_add(u64::from(number) * u64::from(self.period_s) * 1000)
    }

    /// When it lapses if that sign is the last, Unix milliseconds.
    #[must_use]
    pub fn until_ms(&self, number: u8) -> u64 {
        self.due_ms(number).saturating_add(u64::from(LIVES) * u64::from(self.period_s) * 1000)
    }

    /// From when on the sign after that one is late by more than a period, Unix milliseconds.
    #[must_use]
    pub fn late_ms(&self, number: u8) -> u64 {
        self.due_ms(number).saturating_add(2 * u64::from(self.period_s) * 1000)
    }

    /// The number of the sign that is due at `now`, of a notice that was issued before.
    #[must_use]
    pub fn number_at(&self, now: Now) -> u64 {
        now.ms().saturating_sub(self.issued_ms) / (u64::from(self.period_s).max(1) * 1000)
    }

    /// Whether a sign of that number may be shown: a clock may run ahead by [`AHEAD_MAX`].
    #[must_use]
    pub fn may_show(&self, now: Now, number: u8) -> bool {
        number == FAREWELL || self.due_ms(number) <= now.after(AHEAD_MAX).ms()
    }

    /// Whether it may be on a topic: one of its models belongs to it, or it is the lobby.
    #[must_use]
    pub fn is_of(&self, shard: Shard) -> bool {
        shard == Shard::LOBBY || self.models.iter().any(|model| model.shard() == shard)
    }
}

impl Document for Notice {
    const DOMAIN: &'static str = "spillway/notice/1";
    const BYTES_MAX: usize = 64 + 4 * NOTICE_MODELS_MAX;

    fn check(&self) -> Result<(), &'static str> {
        if self.models.is_empty() || self.models.len() > NOTICE_MODELS_MAX {
            return Err("models: none, or more than 8");
        }
        if !self.models.is_sorted_by(|a, b| a < b) {
            return Err("models: not strictly sorted");
        }
        if !(PERIOD_MIN..=PERIOD_MAX).contains(&self.period()) {
            return Err("period_s: not between a minute and an hour");
        }
        Ok(())
    }
}

/// A sign of life, 17 bytes: the next link of a notice's chain. It needs no signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, wincode::SchemaRead, wincode::SchemaWrite)]
pub struct Beat {
    /// Which notice: [`Link::tag`] of its anchor.
    pub tag: u32,
    /// Which link, from 1; [`FAREWELL`] takes the offer back.
    pub number: u8,
    /// The link.
    pub link: Link,
}

/// The first bytes of a digest.
fn first<const N: usize>(digest: &Digest) -> [u8; N] {
    *digest.as_bytes().first_chunk().expect("a digest has 32 bytes")
}

/// A number that only this node knows of a node, uniform whatever keys others make: by it a fair sample is drawn.
pub(crate) fn rank(secret: &[u8; 32], node: &NodeId) -> u32 {
    u32::from_le_bytes(first(&Digest::of("spillway/rank/1", &[secret, node.0.as_bytes()])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice() -> Notice {
        Notice {
            market: 1,
            sequence: 2,
            issued_ms: 1_000_000,
            period_s: 60,
            content: ContentId([3; 16]),
            anchor: Link([4; 12]),
            models: vec![ModelTag(5)],
        }
    }

    #[test]
    fn a_chain_leads_back_to_its_anchor() {
        let key = SecretKey::from_bytes(&[1; 32]);
        let chain = Chain::new(&key, 7, ContentId([0; 16]));
        for number in [0, 1, 2, 100, 254, FAREWELL] {
            assert_eq!(chain.link(number).back(number), chain.link(0), "{number}");
        }
        assert_ne!(chain.link(1), chain.link(2));
        assert_ne!(Chain::new(&key, 8, ContentId([0; 16])).link(0), chain.link(0), "each notice has its own");
    }

    #[test]
    fn a_sign_has_its_time() {
        let notice = notice();
        let at = |ms: u64| Now::from_ms(1_000_000 + ms);
        assert_eq!(notice.until_ms(0), 1_180_000);
        assert_eq!(notice.until_ms(2), 1_300_000);
        assert_eq!([notice.late_ms(0), notice.late_ms(2)], [1_120_000, 1_240_000]);
        let cases = [(0, 0, true), (1, 29_999, false), (1, 30_000, true), (2, 89_000, false), (FAREWELL, 0, true)];
        for (number, ms, may) in cases {
            assert_eq!(notice.may_show(at(ms), number), may, "sign {number} after {ms} ms");
        }
        assert_eq!([0, 59_999, 60_000, 600_000].map(|ms| notice.number_at(at(ms))), [0, 0, 1, 10]);
        let forever = Notice { issued_ms: u64::MAX, ..notice };
        assert_eq!(forever.until_ms(200), u64::MAX);
    }

    #[test]
    fn bad_notices_name_the_field() {
        let bad = |spoil: fn(&mut Notice)| {
            let mut notice = notice();
            spoil(&mut notice);
            notice.check().map_err(|why| why.split(':').next().expect("a field"))
        };
        assert_eq!(bad(|_| {}), Ok(()));
        assert_eq!(bad(|it| it.models.clear()), Err("models"));
        assert_eq!(bad(|it| it.models = vec![ModelTag(2), ModelTag(1)]), Err("models"));
        assert_eq!(bad(|it| it.models = (0..9).map(ModelTag).collect()), Err("models"));
        assert_eq!(bad(|it| it.period_s = 59), Err("period_s"));
        assert_eq!(bad(|it| it.period_s = 3_601), Err("period_s"));
    }
}
