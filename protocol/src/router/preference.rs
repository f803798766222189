//! What a user wants of providers, beside price and time: the names people know from other gateways.
//! Invariant: preferences that passed [`Preferences::check`] are bounded.

use serde::{Deserialize, Serialize};

/// What to sort by instead of weighing price against time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sort {
    /// The cheapest.
    Price,
    /// The fastest once it runs: most output per second.
    Throughput,
    /// The soonest first text.
    Latency,
}

/// Whether a provider may keep what it is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataCollection {
    /// Whatever its terms are.
    #[default]
    Allow,
    /// Only providers whose offer promises to keep nothing.
    Deny,
}

/// Which providers a job may go to, and in which order. Empty lists say nothing.
///
/// A provider's name is its node id, its account, or `region:` and a region; a node id or account may be shortened to its
/// first 8 characters or more. `own` names own hardware.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Preferences {
    /// Tried first, in this order.
    pub order: Vec<String>,
    /// No other is tried.
    pub only: Vec<String>,
    /// Never tried.
    pub ignore: Vec<String>,
    /// Whether others may be tried once all of `order` failed.
    pub allow_fallbacks: bool,
    /// What to sort by.
    pub sort: Option<Sort>,
    /// Quantisations that will do, as offers name them.
    pub quantizations: Vec<String>,
    /// Whether providers may keep what they are sent.
    pub data_collection: DataCollection,
    /// Output units per second that a provider must be expected to reach to come first; slower ones come after.
    pub preferred_min_throughput: Option<u32>,
    /// Milliseconds to the first text that a provider must be expected to meet to come first; slower ones come after.
    pub preferred_max_latency_ms: Option<u32>,
}

impl Default for Preferences {
    fn default() -> Self {
        Self {
            order: Vec::new(),
            only: Vec::new(),
            ignore: Vec::new(),
            allow_fallbacks: true,
            sort: None,
            quantizations: Vec::new(),
            data_collection: DataCollection::Allow,
            preferred_min_throughput: None,
            preferred_max_latency_ms: None,
        }
    }
}

/// Names in one list.
pub const NAMES_MAX: usize = 32;
/// Bytes of one name.
pub const NAME_BYTES_MAX: usize = 128;
/// Fewest characters that stand for a whole id.
const SHORT_MIN: usize = 8;

/// A provider as preferences see it.
#[derive(Clone, Copy, Debug)]
pub struct Named<'a> {
    /// Its node id, in hex.
    pub node: &'a str,
    /// Its account, in hex.
    pub account: &'a str,
    /// Its region.
    pub region: &'a str,
    /// The model's quantisation; empty where unknown.
    pub quantization: &'a str,
    /// Whether it promises to keep nothing.
    pub keeps_nothing: bool,
}

impl Preferences {
    /// Checks the bounds.
    ///
    /// # Errors
    /// The list that does not hold, and why.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let lists = [
            ("order", &self.order),
            ("only", &self.only),
            ("ignore", &self.ignore),
            ("quantizations", &self.quantizations),
        ];
        for (name, list) in lists {
            if list.len() > NAMES_MAX {
                return Err((name, "more than 32 entries"));
            }
            if list.iter().any(|entry| entry.is_empty() || entry.len() > NAME_BYTES_MAX) {
                return Err((name, "an entry is empty or over 128 bytes"));
            }
        }
        Ok(())
    }

    /// Whether nothing is said.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The provider's place in the user's order, or `None` if it may not be used.
    #[must_use]
    pub fn rank(&self, named: &Named<'_>) -> Option<u16> {
        let listed = |list: &[String]| list.iter().position(|name| matches(name, named));
        let terms = self.data_collection == DataCollection::Allow || named.keeps_nothing;
        let quantized = self.quantizations.is_empty()
            || self.quantizations.iter().any(|name| name.eq_ignore_ascii_case(named.quantization));
        if !terms || !quantized || listed(&self.ignore).is_some() {
            return None;
        }
        if !self.only.is_empty() && listed(&self.only).is_none() {
            return None;
        }
        match listed(&self.order) {
            Some(place) => u16::try_from(place).ok(),
            None if !self.order.is_empty() && !self.allow_fallbacks => None,
            None => u16::try_from(self.order.len()).ok(),
        }
    }

    /// Whether own hardware may be used.
    #[must_use]
    pub fn allows_own(&self) -> bool {
        let named = |list: &[String]| list.iter().any(|name| name == "own");
        !named(&self.ignore)
            && (self.only.is_empty() || named(&self.only))
            && (self.allow_fallbacks || self.order.is_empty() || named(&self.order))
    }
}

fn matches(name: &str, named: &Named<'_>) -> bool {
    if let Some(region) = name.strip_prefix("region:") {
        return region == named.region;
    }
    let short =
        |id: &str| name.len() >= SHORT_MIN && id.len() >= name.len() && id[..name.len()].eq_ignore_ascii_case(name);
    name.is_ascii() && (short(named.node) || short(named.account))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMED: Named<'static> = Named {
        node: "aabbccddeeff00112233",
        account: "0011223344556677",
        region: "france",
        quantization: "Q8_0",
        keeps_nothing: false,
    };

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn lists_mean_what_people_know() {
        let any = Preferences::default;
        for (what, preferences, rank) in [
            ("nothing said", any(), Some(0)),
            ("only it", Preferences { only: list(&["aabbccdd"]), ..any() }, Some(0)),
            ("only another", Preferences { only: list(&["ffffffff"]), ..any() }, None),
            ("its region", Preferences { only: list(&["region:france"]), ..any() }, Some(0)),
            ("its account ignored", Preferences { ignore: list(&["0011223344556677"]), ..any() }, None),
            ("too short to mean it", Preferences { ignore: list(&["aabb"]), ..any() }, Some(0)),
            ("second", Preferences { order: list(&["ffffffff", "AABBCCDD"]), ..any() }, Some(1)),
            ("after the order", Preferences { order: list(&["ffffffff"]), ..any() }, Some(1)),
            ("no fallback", Preferences { order: list(&["ffffffff"]), allow_fallbacks: false, ..any() }, None),
            ("quantised so", Preferences { quantizations: list(&["q8_0"]), ..any() }, Some(0)),
            ("not so", Preferences { quantizations: list(&["F16"]), ..any() }, None),
            ("keeps what it gets", Preferences { data_collection: DataCollection::Deny, ..any() }, None),
        ] {
            assert_eq!(preferences.rank(&NAMED), rank, "{what}");
        }
        assert!(any().allows_own() && !Preferences { only: list(&["aabbccdd"]), ..any() }.allows_own());
        assert!(Preferences { only: list(&["own", "aabbccdd"]), ..any() }.allows_own());
    }

    #[test]
    fn lists_are_bounded() {
        let long = Preferences { only: vec!["x".repeat(129)], ..Preferences::default() };
        assert_eq!(long.check(), Err(("only", "an entry is empty or over 128 bytes")));
        let many = Preferences { ignore: vec!["region:x".into(); 33], ..Preferences::default() };
        assert_eq!(many.check(), Err(("ignore", "more than 32 entries")));
        assert_eq!(Preferences::default().check(), Ok(()));
    }
}
