//! The fixed keys and the network that the frozen vectors are of, so that a fuzzer's entries can mean something.

use spillway_ledger::{Account, Credits, Genesis, NetworkId, PublicKey, SecretKey, Split};

/// When the vectors' network begins, in Unix milliseconds.
pub const START_MS: u64 = 1_700_000_000_000;

/// Everyone who acts in the vectors.
pub struct Cast {
    /// The network's constitution, without bootstrap addresses.
    pub genesis: Genesis,
    /// Its id.
    pub network: NetworkId,
    /// Everyone's keys: issuer, authority, two pools, consumer, provider, gateway, voucher key, stranger,
    /// and the four of the proofs' committee.
    pub keys: Vec<SecretKey>,
}

/// The tests' world, as `ledger/src/tests/mod.rs` has it.
pub fn cast() -> Cast {
    let keys: Vec<SecretKey> = (1..=9).chain(20..24).map(|number| SecretKey::generate([number; 32])).collect();
    let genesis = Genesis {
        name: "test".to_owned(),
        time_ms: START_MS,
        issuer: keys[0].account(),
        committee: vec![keys[1].public()],
        treasury: keys[2].account(),
        validators: keys[3].account(),
        split: Split::default(),
        grace_ms: 1_000,
        mint_max_per_epoch: Credits::new(10_000_000),
        epoch_blocks: 100,
        validator_bond: Credits::new(1_000),
        unbond_ms: 5_000,
        payout_min: Credits::new(10),
        bootstrap: Vec::new(),
    };
    Cast { network: genesis.network_id(), genesis, keys }
}

impl Cast {
    /// The key that signs for `account`; for a stranger's account, the issuer's.
    pub fn key_of(&self, account: &Account) -> &SecretKey {
        self.key(&account.0)
    }

    /// The secret half of `public`; for a stranger's key, the issuer's.
    pub fn key(&self, public: &PublicKey) -> &SecretKey {
        self.known(public).unwrap_or(&self.keys[0])
    }

    /// The secret half of `public`, if it is one of ours.
    pub fn known(&self, public: &PublicKey) -> Option<&SecretKey> {
        self.keys.iter().find(|key| key.public() == *public)
    }

    /// The lone validator.
    pub fn authority(&self) -> &SecretKey {
        &self.keys[1]
    }
}
