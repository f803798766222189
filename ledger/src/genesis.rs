//! What a network agrees on before its first block.
//! Invariant: the network's id is the digest of everything here but the bootstrap addresses, which may change.

use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

use crate::block::{VALIDATORS_MAX, ValidatorSet};
use crate::codec::{Document, encode};
use crate::keys::{Account, Digest, PublicKey};
use crate::money::Credits;
use crate::split::Split;
use crate::voucher::NetworkId;

/// The longest network name, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// The most bootstrap addresses, and the longest one in bytes.
pub const BOOTSTRAP_MAX: (usize, usize) = (64, 256);
/// The longest grace after a session's expiry: 30 days, in milliseconds.
pub const GRACE_MS_MAX: u64 = 30 * 24 * 3_600_000;
/// The longest time that a bond stays at stake after its owner asked for it back: 90 days, in milliseconds.
pub const UNBOND_MS_MAX: u64 = 90 * 24 * 3_600_000;

/// What is wrong with a genesis: the field's name and the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("genesis field `{field}`: {rule}")]
pub struct GenesisError {
    /// The field, as in the file.
    pub field: &'static str,
    /// What it must be.
    pub rule: &'static str,
}

/// The network's constitution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Genesis {
    /// What people call the network; 1 to 64 printable ASCII characters.
    pub name: String,
    /// When it began, in Unix milliseconds; the first block is not earlier.
    pub time_ms: u64,
    /// Who may mint.
    pub issuer: Account,
    /// Who makes the first blocks final: one authority, or a committee that need not trust each other. Strictly sorted.
    pub committee: Vec<PublicKey>,
    /// Gets the treasury's share.
    pub treasury: Account,
    /// The pool that gets the validators' and auditors' share.
    pub validators: Account,
    /// How payments are divided.
    #[serde(default)]
    pub split: Split,
    /// How long after a session's expiry the provider may still settle before the consumer can take the deposit back,
    /// in milliseconds.
    pub grace_ms: u64,
    /// The most that may be minted in one epoch.
    pub mint_max_per_epoch: Credits,
    /// How many blocks an epoch has.
    pub epoch_blocks: u64,
    /// The least that a validator must have bonded to be elected.
    #[serde(default)]
    pub validator_bond: Credits,
    /// How long a bond stays at stake after its owner asked for it back, in milliseconds of block time.
    #[serde(default)]
    pub unbond_ms: u64,
    /// The least that can be paid out at once.
    #[serde(default)]
    pub payout_min: Credits,
    /// Where a new node first knocks; not part of the network's id.
    #[serde(default)]
    pub bootstrap: Vec<String>,
}

/// The part of a genesis that its id covers.
#[derive(SchemaRead, SchemaWrite)]
struct Identity {
    name: String,
    time_ms: u64,
    issuer: Account,
    committee: Vec<PublicKey>,
    treasury: Account,
    validators: Account,
    split: Split,
    grace_ms: u64,
    mint_max_per_epoch: Credits,
    epoch_blocks: u64,
    validator_bond: Credits,
    unbond_ms: u64,
    payout_min: Credits,
}

impl Document for Identity {
    const DOMAIN: &'static str = "spillway/genesis/1";
    const BYTES_MAX: usize = 512 + VALIDATORS_MAX * 32;
}

impl Genesis {
    /// Checks every field; the error names the first that is wrong.
    pub fn validate(&self) -> Result<(), GenesisError> {
        let err = |field, rule| Err(GenesisError { field, rule });
        let printable = |text: &str| text.bytes().all(|b| (0x20..0x7f).contains(&b));
        if self.name.is_empty() || self.name.len() > NAME_BYTES_MAX || !printable(&self.name) {
            return err("name", "must be 1 to 64 printable ASCII characters");
        }
        for (field, key) in
            [("issuer", &self.issuer.0), ("treasury", &self.treasury.0), ("validators", &self.validators.0)]
        {
            if !key.is_strong() {
                return err(field, "must be a valid ed25519 public key that is not weak");
            }
        }
        if !(1..=VALIDATORS_MAX).contains(&self.committee.len()) {
            return err("committee", "must have 1 to 128 keys");
        }
        if !self.committee.iter().all(PublicKey::is_strong) {
            return err("committee", "must hold valid ed25519 public keys that are not weak");
        }
        if !self.committee.is_sorted_by(|a, b| a < b) {
            return err("committee", "must be strictly sorted");
        }
        if self.grace_ms > GRACE_MS_MAX {
            return err("grace_ms", "must be at most 30 days");
        }
        if self.mint_max_per_epoch.is_zero() {
            return err("mint_max_per_epoch", "must be above zero, or no credit can ever exist");
        }
        if self.epoch_blocks == 0 {
            return err("epoch_blocks", "must be at least 1");
        }
        if self.unbond_ms > UNBOND_MS_MAX {
            return err("unbond_ms", "must be at most 90 days");
        }
        let (count_max, bytes_max) = BOOTSTRAP_MAX;
        if self.bootstrap.len() > count_max {
            return err("bootstrap", "must have at most 64 addresses");
        }
        if self.bootstrap.iter().any(|address| address.is_empty() || address.len() > bytes_max || !printable(address)) {
            return err("bootstrap", "each address must be 1 to 256 printable ASCII characters");
        }
        Ok(())
    }

    /// Who makes the first blocks final.
    ///
    /// # Panics
    /// If the committee is not valid: see [`Genesis::validate`].
    pub fn first_validators(&self) -> ValidatorSet {
        ValidatorSet::new(self.committee.clone()).expect("a valid genesis has a committee")
    }

    /// The network's id.
    pub fn network_id(&self) -> NetworkId {
        let identity = Identity {
            name: self.name.clone(),
            time_ms: self.time_ms,
            issuer: self.issuer,
            committee: self.committee.clone(),
            treasury: self.treasury,
            validators: self.validators,
            split: self.split,
            grace_ms: self.grace_ms,
            mint_max_per_epoch: self.mint_max_per_epoch,
            epoch_blocks: self.epoch_blocks,
            validator_bond: self.validator_bond,
            unbond_ms: self.unbond_ms,
            payout_min: self.payout_min,
        };
        NetworkId(Digest::of(Identity::DOMAIN, &[&encode(&identity)]))
    }
}
