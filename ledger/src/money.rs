//! Amounts of credits, prices, and the work they are paid for.
//! Invariant: no amount ever wraps. Sums are checked, products are taken in `u128`.

use std::fmt;

use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

/// Micro-credits per credit; one credit is priced like one US dollar by the issuer.
pub const MICRO_PER_CREDIT: u64 = 1_000_000;

/// Work units that a [`Price`] is quoted for.
pub const UNITS_PER_PRICE: u128 = 1_000_000;

/// An amount in micro-credits.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, SchemaRead, SchemaWrite,
)]
#[serde(transparent)]
pub struct Credits(u64);

impl Credits {
    /// Nothing.
    pub const ZERO: Credits = Credits(0);
    /// The largest amount that can be written down.
    pub const MAX: Credits = Credits(u64::MAX);

    /// An amount of `micro` micro-credits.
    pub const fn new(micro: u64) -> Self {
        Credits(micro)
    }

    /// The amount in micro-credits.
    pub const fn micro(self) -> u64 {
        self.0
    }

    /// The sum, or `None` where it would not fit.
    pub fn checked_add(self, other: Credits) -> Option<Credits> {
        self.0.checked_add(other.0).map(Credits)
    }

    /// The difference, or `None` where `other` is larger.
    pub fn checked_sub(self, other: Credits) -> Option<Credits> {
        self.0.checked_sub(other.0).map(Credits)
    }

    /// The difference, or zero where `other` is larger.
    pub fn saturating_sub(self, other: Credits) -> Credits {
        Credits(self.0.saturating_sub(other.0))
    }

    /// Whether this is nothing.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Credits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06} cr", self.0 / MICRO_PER_CREDIT, self.0 % MICRO_PER_CREDIT)
    }
}

/// Units of work: tokens, or what else a model counts.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, SchemaRead, SchemaWrite,
)]
pub struct Usage {
    /// Units read that were not found in a prefix cache.
    pub input: u64,
    /// Units read that a prefix cache already held; not part of `input`.
    pub cached: u64,
    /// Units delivered.
    pub output: u64,
}

impl Usage {
    /// The sum, field by field, or `None` where one would not fit.
    pub fn checked_add(self, other: Usage) -> Option<Usage> {
        Some(Usage {
            input: self.input.checked_add(other.input)?,
            cached: self.cached.checked_add(other.cached)?,
            output: self.output.checked_add(other.output)?,
        })
    }
}

/// What a provider asks, each per million units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub struct Price {
    /// For a million units of fresh input.
    pub input: Credits,
    /// For a million units of input that a cache already held.
    pub cached: Credits,
    /// For a million units of output.
    pub output: Credits,
}

impl Price {
    /// Nothing.
    pub const ZERO: Price = Price { input: Credits::ZERO, cached: Credits::ZERO, output: Credits::ZERO };

    /// What `usage` costs, rounded up once over the whole sum; `None` where it does not fit.
    pub fn cost(&self, usage: Usage) -> Option<Credits> {
        let product = |price: Credits, units: u64| u128::from(price.0) * u128::from(units);
        let sum = product(self.input, usage.input)
            .checked_add(product(self.cached, usage.cached))?
            .checked_add(product(self.output, usage.output))?;
        u64::try_from(sum.div_ceil(UNITS_PER_PRICE)).ok().map(Credits)
    }

    /// Whether each part is at most the same part of `cap`.
    pub fn within(&self, cap: &Price) -> bool {
        self.input <= cap.input && self.cached <= cap.cached && self.output <= cap.output
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn price(input: u64, cached: u64, output: u64) -> Price {
        Price { input: Credits(input), cached: Credits(cached), output: Credits(output) }
    }

    #[test]
    fn cost_rounds_up_once_and_never_wraps() {
        let max = u64::MAX;
        // price, usage, cost
        let cases = [
            (price(0, 0, 0), (max, max, max), Some(0)),
            (price(1, 1, 1), (0, 0, 0), Some(0)),
            (price(1, 0, 0), (1, 0, 0), Some(1)),
            (price(1, 1, 1), (1, 1, 1), Some(1)), // three millionths are one micro-credit, not three
            (price(2_000_000, 500_000, 6_000_000), (10, 4, 3), Some(20 + 2 + 18)),
            (price(1_000_000, 0, 1), (7, 0, 1), Some(8)),
            (price(1_000_000, 0, 0), (max, 0, 0), Some(max)),
            (price(1_000_001, 0, 0), (max, 0, 0), None),
            (price(max, max, max), (max, max, max), None),
        ];
        for (price, (input, cached, output), want) in cases {
            let got = price.cost(Usage { input, cached, output });
            assert_eq!(got, want.map(Credits), "{price:?} for {input}/{cached}/{output}");
        }
    }

    #[test]
    fn price_within_compares_every_part() {
        let cap = price(5, 5, 5);
        for (price, want) in [
            (price(5, 5, 5), true),
            (price(0, 0, 0), true),
            (price(6, 0, 0), false),
            (price(0, 6, 0), false),
            (price(0, 0, 6), false),
        ] {
            assert_eq!(price.within(&cap), want, "{price:?}");
        }
    }

    #[test]
    fn credits_are_shown_with_six_places_and_kept_as_an_integer() {
        for (micro, shown) in [(0, "0.000000 cr"), (1_234, "0.001234 cr"), (12_000_001, "12.000001 cr")] {
            assert_eq!(Credits(micro).to_string(), shown);
            assert_eq!(serde_json::to_string(&Credits(micro)).expect("an integer is JSON"), micro.to_string());
        }
    }

    #[test]
    fn arithmetic_at_the_edges_gives_none() {
        assert_eq!(Credits::MAX.checked_add(Credits(1)), None);
        assert_eq!(Credits(1).checked_sub(Credits(2)), None);
        assert_eq!(Credits(1).saturating_sub(Credits(2)), Credits::ZERO);
        let full = Usage { input: u64::MAX, cached: 0, output: 0 };
        assert_eq!(full.checked_add(Usage { input: 1, cached: 0, output: 0 }), None);
    }
}
