//! The ledger's tests, as tables over one small world of fixed keys.

mod chain;
mod committee;
mod custody;
mod damage;
mod histories;
mod hostile;
mod proofs;
mod rules;
mod shares;
mod wire;

use crate::*;

/// The grace after a session's expiry in the tests' network, in milliseconds.
const GRACE_MS: u64 = 1_000;
/// When the tests' network begins, in Unix milliseconds.
const START_MS: u64 = 1_700_000_000_000;

/// A key that is the same in every run.
fn key(number: u8) -> SecretKey {
    SecretKey::generate([number; 32])
}

/// Everyone who acts in the tests.
struct Cast {
    genesis: Genesis,
    issuer: SecretKey,
    authority: SecretKey,
    consumer: SecretKey,
    provider: SecretKey,
    gateway: SecretKey,
    voucher_key: SecretKey,
    stranger: SecretKey,
}

fn cast() -> Cast {
    let (issuer, authority) = (key(1), key(2));
    let genesis = Genesis {
        name: "test".to_owned(),
        time_ms: START_MS,
        issuer: issuer.account(),
        committee: vec![authority.public()],
        treasury: key(3).account(),
        validators: key(4).account(),
        split: Split::default(),
        grace_ms: GRACE_MS,
        mint_max_per_epoch: Credits::new(10_000_000),
        epoch_blocks: 100,
        validator_bond: Credits::new(1_000),
        unbond_ms: 5_000,
        payout_min: Credits::new(10),
        bootstrap: vec!["/ip4/127.0.0.1/udp/4001/quic-v1".to_owned()],
    };
    Cast {
        genesis,
        issuer,
        authority,
        consumer: key(5),
        provider: key(6),
        gateway: key(7),
        voucher_key: key(8),
        stranger: key(9),
    }
}

/// The price that the tests' sessions agree on.
fn price() -> Price {
    Price { input: Credits::new(1), cached: Credits::new(1), output: Credits::new(2) }
}

impl Cast {
    fn network(&self) -> NetworkId {
        self.genesis.network_id()
    }

    /// An entry whose business id is its nonce.
    fn entry(&self, key: &SecretKey, nonce: u64, action: Action) -> Entry {
        let mut business = [0; 16];
        business[..8].copy_from_slice(&nonce.to_le_bytes());
        Entry { network: self.network(), account: key.account(), nonce, expires_height: 1_000, business, action }
    }

    fn signed(&self, key: &SecretKey, nonce: u64, action: Action) -> Signed<Entry> {
        Signed::sign(self.entry(key, nonce, action), key)
    }

    fn mint(&self, nonce: u64, to: Account, micro: u64) -> Signed<Entry> {
        let reference = format!("deposit {nonce}");
        self.signed(&self.issuer, nonce, Action::Mint { to, amount: Credits::new(micro), reference })
    }

    fn transfer(&self, from: &SecretKey, nonce: u64, to: Account, micro: u64) -> Signed<Entry> {
        self.signed(from, nonce, Action::Transfer { to, amount: Credits::new(micro) })
    }

    /// The consumer opens a session with the provider that lasts for ten seconds of block time.
    fn open(&self, nonce: u64, micro: u64) -> Signed<Entry> {
        self.signed(&self.consumer, nonce, self.open_action(micro))
    }

    fn open_action(&self, micro: u64) -> Action {
        Action::Open {
            provider: self.provider.account(),
            gateway: self.gateway.account(),
            voucher_key: self.voucher_key.public(),
            deposit: Credits::new(micro),
            price_cap: price(),
            expires_ms: START_MS + 10_000,
        }
    }

    fn session(&self, nonce: u64) -> SessionId {
        SessionId::derive(&self.network(), &self.consumer.account(), nonce)
    }

    fn voucher(&self, session: SessionId, micro: u64) -> Voucher {
        Voucher { network: self.network(), session, sequence: micro, total: Credits::new(micro), input: 3, output: 4 }
    }

    fn settle_action(&self, voucher: SignedBytes, claim: u64, last: bool) -> Action {
        Action::Settle {
            voucher,
            claim: Credits::new(claim),
            usage: Usage { input: 1, cached: 2, output: 3 },
            receipts: merkle_root(&[]),
            last,
        }
    }

    /// The provider settles a good voucher for `total`.
    fn settle(&self, nonce: u64, session: SessionId, total: u64, claim: u64, last: bool) -> Signed<Entry> {
        let voucher = Signed::sign(self.voucher(session, total), &self.voucher_key);
        self.signed(&self.provider, nonce, self.settle_action(voucher.to_wire(), claim, last))
    }
}
