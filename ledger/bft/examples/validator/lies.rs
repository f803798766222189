//! Wrong blocks that a validator proposes on purpose, for the campaigns.
//! Invariant: each lie is written down before it is told, so that a campaign can look for it in the books.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use spillway_ledger::{
    Account, Action, Block, Credits, Digest, Entry, Replica, Replicator, SecretKey, Signed, SignedBytes,
};

/// What is wrong with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lie {
    /// The state root is another.
    StateRoot,
    /// One entry takes a stranger's credits under a signature that is not the stranger's.
    Forged,
    /// Two entries spend the same credits.
    DoubleSpend,
    /// Its time is an hour ahead.
    Future,
}

/// Tells the lies it was given, one after the other.
#[derive(Debug)]
pub struct Liar {
    lies: Vec<Lie>,
    told: Mutex<(usize, File)>,
}

impl Liar {
    /// Writes what it tells to `folder/lies.jsonl`.
    pub fn new(lies: Vec<Lie>, folder: &Path) -> std::io::Result<Liar> {
        let file = OpenOptions::new().create(true).append(true).open(folder.join("lies.jsonl"))?;
        Ok(Liar { lies, told: Mutex::new((0, file)) })
    }

    /// The next wrong block.
    pub fn propose(&self, replica: &mut Replica, key: &SecretKey, now_ms: u64) -> Block {
        let mut told = self.told.lock().expect("nobody panics with it");
        let lie = self.lies[told.0 % self.lies.len()];
        told.0 += 1;
        let honest =
            |replica: &mut Replica, now_ms| replica.propose(now_ms).unwrap_or_else(|| replica.propose_empty(now_ms));
        let mut block = match lie {
            Lie::StateRoot | Lie::Forged => honest(replica, now_ms),
            Lie::DoubleSpend => replica.propose_empty(now_ms),
            Lie::Future => honest(replica, now_ms + 3_600_000),
        };
        match lie {
            Lie::StateRoot => block.header.state_root = Digest::of("a wrong state", &[&now_ms.to_le_bytes()]),
            Lie::Forged => {
                let victim = SecretKey::generate([77; 32]).account();
                let mut wire = transfer(replica, key, victim, 0, Credits::new(1));
                wire.signer = victim.0;
                block.entries.push(wire);
            }
            Lie::DoubleSpend => {
                let all = replica.book().balance(&key.account());
                let twice = [0, 1].map(|more| transfer(replica, key, key.account(), more, all));
                block.entries.extend(twice);
            }
            Lie::Future => {}
        }
        block.header.entries_root = Block::entries_root(&block.entries);
        let line = serde_json::json!({
            "height": block.header.height, "block": block.header.digest(), "lie": lie, "entries": block.entries.len(),
        });
        writeln!(told.1, "{line}").expect("the folder can be written");
        block
    }
}

/// A transfer out of `from` that `key` signs.
fn transfer(replica: &Replica, key: &SecretKey, from: Account, more: u64, amount: Credits) -> SignedBytes {
    let nonce = replica.book().nonce(&from) + more;
    let mut business = [0; 16];
    business[..8].copy_from_slice(&nonce.to_le_bytes());
    let to = SecretKey::generate([78; 32]).account();
    let entry = Entry {
        network: replica.network(),
        account: from,
        nonce,
        expires_height: replica.height() + 100,
        business,
        action: Action::Transfer { to, amount },
    };
    Signed::sign(entry, key).to_wire()
}
