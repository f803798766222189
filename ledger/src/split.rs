//! How each payment is divided: at least 70 % to the provider.
//! Invariant: parts are taken on the cumulative total, so many small settlements pay exactly what one large one does,
//! and the provider never has less than its share of what was paid so far.

use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

use crate::money::Credits;

/// One hundred per cent, in basis points.
pub const WHOLE_BP: u32 = 10_000;
/// The provider's share is never below this, in basis points.
pub const PROVIDER_BP_MIN: u32 = 7_000;

/// Why shares are not a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// The provider would get less than 70 %.
    #[error("provider_bp is {0}, but a provider gets at least 7000")]
    ProviderTooLow(u32),
    /// The shares are not a whole.
    #[error("the shares add up to {0} basis points, not 10000")]
    NotWhole(u64),
}

/// The shares, in basis points; always a whole, with at least 7,000 for the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, SchemaRead, SchemaWrite)]
#[serde(try_from = "Shares")]
pub struct Split {
    provider_bp: u32,
    gateway_bp: u32,
    validators_bp: u32,
    treasury_bp: u32,
}

/// A split as it is written down, not yet checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Shares {
    provider_bp: u32,
    gateway_bp: u32,
    validators_bp: u32,
    treasury_bp: u32,
}

impl TryFrom<Shares> for Split {
    type Error = SplitError;

    fn try_from(shares: Shares) -> Result<Self, SplitError> {
        Split::new(shares.provider_bp, shares.gateway_bp, shares.validators_bp, shares.treasury_bp)
    }
}

impl Default for Split {
    /// 70 % provider; 10 % each to the gateway that brought the job, to validators and auditors, to the treasury.
    fn default() -> Self {
        Split { provider_bp: 7_000, gateway_bp: 1_000, validators_bp: 1_000, treasury_bp: 1_000 }
    }
}

/// One payment, divided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// To who did the work.
    pub provider: Credits,
    /// To the gateway that brought the job.
    pub gateway: Credits,
    /// To the validators' pool.
    pub validators: Credits,
    /// To the treasury, which pays relays and covers bad debt.
    pub treasury: Credits,
}

impl Split {
    /// A split of these shares, in basis points.
    pub fn new(provider_bp: u32, gateway_bp: u32, validators_bp: u32, treasury_bp: u32) -> Result<Self, SplitError> {
        if provider_bp < PROVIDER_BP_MIN {
            return Err(SplitError::ProviderTooLow(provider_bp));
        }
        let sum = [provider_bp, gateway_bp, validators_bp, treasury_bp].into_iter().map(u64::from).sum();
        if sum != u64::from(WHOLE_BP) {
            return Err(SplitError::NotWhole(sum));
        }
        Ok(Split { provider_bp, gateway_bp, validators_bp, treasury_bp })
    }

    /// The provider's share.
    pub fn provider_bp(&self) -> u32 {
        self.provider_bp
    }

    /// The gateway's share.
    pub fn gateway_bp(&self) -> u32 {
        self.gateway_bp
    }

    /// The validators' share.
    pub fn validators_bp(&self) -> u32 {
        self.validators_bp
    }

    /// The treasury's share.
    pub fn treasury_bp(&self) -> u32 {
        self.treasury_bp
    }

    /// Divides what is paid when a session's total goes from `before` to `after`. The parts add up to the difference.
    ///
    /// # Panics
    /// If `after` is below `before`: totals only grow.
    pub fn parts(&self, before: Credits, after: Credits) -> Parts {
        assert!(before <= after, "a session's total only grows");
        let (old, new) = (self.totals(before), self.totals(after));
        let grown = |old: u64, new: u64| Credits::new(new.checked_sub(old).expect("each part's total only grows"));
        Parts {
            provider: grown(old[0], new[0]),
            gateway: grown(old[1], new[1]),
            validators: grown(old[2], new[2]),
            treasury: grown(old[3], new[3]),
        }
    }

    /// Who has been paid what once `total` has been paid: provider, gateway, validators, treasury.
    ///
    /// The provider's share is rounded up. Each of the others takes its share of what is left before it, rounded down,
    /// and the treasury takes the remainder. One more micro-credit in `total` so adds one to exactly one part, and no
    /// part ever shrinks. (Largest remainders over all three would shrink one at times: the Alabama paradox.)
    fn totals(&self, total: Credits) -> [u64; 4] {
        let share = |amount: u64, bp: u32, of_bp: u32| -> u128 {
            if of_bp == 0 { 0 } else { u128::from(amount) * u128::from(bp) / u128::from(of_bp) }
        };
        let narrow = |amount: u128| u64::try_from(amount).expect("a share is at most the whole");

        let total = total.micro();
        let product = u128::from(total) * u128::from(self.provider_bp);
        let provider = narrow(product.div_ceil(u128::from(WHOLE_BP)));
        let rest = total - provider;
        let gateway = narrow(share(rest, self.gateway_bp, WHOLE_BP - self.provider_bp));
        let rest = rest - gateway;
        let validators = narrow(share(rest, self.validators_bp, self.validators_bp + self.treasury_bp));
        let treasury = rest - validators;
        [provider, gateway, validators, treasury]
    }
}
