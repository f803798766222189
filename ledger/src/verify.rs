//! Checks a ledger folder offline: every signature, every rule, every root, from the genesis to the last block.
//! Invariant: it trusts nothing but the genesis file, and says which block and entry breaks which rule.

use std::path::Path;

use crate::block::CertifiedBlock;
use crate::chain::{LEDGER_FILE, OpenError, TIP_FILE, check_tip, for_each_block, read_genesis};
use crate::codec::Document;
use crate::entry::Entry;
use crate::genesis::Genesis;
use crate::keys::Digest;
use crate::money::Credits;
use crate::replay::{BlockError, Replay, Signatures};
use crate::signed::Signed;
use crate::store::Store;
use crate::tip::TipFile;
use crate::voucher::NetworkId;

/// What a folder holds, all of it verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The network.
    pub network: NetworkId,
    /// How many blocks.
    pub blocks: u64,
    /// How many entries.
    pub entries: u64,
    /// How many sessions were opened.
    pub sessions: u64,
    /// What was minted.
    pub minted: Credits,
    /// What was burned: paid out in cash.
    pub burned: Credits,
    /// What was settled, all shares together.
    pub settled_gross: Credits,
    /// What providers had of that.
    pub settled_provider: Credits,
    /// The height of the last block.
    pub height: u64,
    /// The digest of the last block.
    pub tip: Digest,
    /// The state after it.
    pub state_root: Digest,
}

/// What does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{rule}", Place(*block, *entry))]
pub struct VerifyError {
    /// The first block in which something is wrong; 0 for the folder itself.
    pub block: u64,
    /// The entry in it, from 0, where one is to blame.
    pub entry: Option<usize>,
    /// The rule that is broken, in words.
    pub rule: String,
}

/// Where something is wrong, for people.
struct Place(u64, Option<usize>);

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Place(0, _) => Ok(()),
            Place(block, None) => write!(f, "block {block}: "),
            Place(block, Some(entry)) => write!(f, "block {block}, entry {entry}: "),
        }
    }
}

impl From<OpenError> for VerifyError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Damaged { height, what } => VerifyError { block: height, entry: None, rule: what },
            other => VerifyError { block: 0, entry: None, rule: other.to_string() },
        }
    }
}

/// Executes the ledger in `folder` from its genesis on. No node may have it open. Nothing is written, so the folder may be
/// a copy on a read-only disk.
pub fn verify_folder(folder: impl AsRef<Path>) -> Result<Verified, VerifyError> {
    let folder = folder.as_ref();
    let missing =
        |what: &str| VerifyError { block: 0, entry: None, rule: format!("{} has no {what}", folder.display()) };
    let genesis = read_genesis(folder)?.ok_or_else(|| missing(crate::chain::GENESIS_FILE))?;
    let path = folder.join(LEDGER_FILE);
    if !path.is_file() {
        return Err(missing(LEDGER_FILE));
    }
    let store = Store::open_read_only(&path).map_err(OpenError::Store)?;

    let mut replay = Replay::new(&genesis);
    let mut fault = None;
    let walked = for_each_block(&store, |height, bytes| {
        let read = CertifiedBlock::from_bytes(bytes);
        let read = read.map_err(|error| VerifyError { block: height, entry: None, rule: error.to_string() });
        read.and_then(|block| verify_block(&mut replay, &block)).map_err(|error| {
            let what = error.rule.clone();
            fault = Some(error);
            OpenError::Damaged { height, what }
        })
    });
    if let Some(fault) = fault {
        return Err(fault);
    }
    walked?;

    let path = folder.join(TIP_FILE);
    let had = TipFile::read(&path).map_err(|source| OpenError::Io { path, source })?;
    check_tip(had, &replay)?;
    verified(&genesis, replay)
}

/// Executes `blocks`, which must begin with the first, as [`verify_folder`] does. Where they end is not known to be the
/// end of the chain: compare the height or the tip.
pub fn verify_blocks(
    genesis: &Genesis,
    blocks: impl IntoIterator<Item = CertifiedBlock>,
) -> Result<Verified, VerifyError> {
    genesis.validate().map_err(OpenError::Genesis)?;
    let mut replay = Replay::new(genesis);
    for block in blocks {
        block.check().map_err(|rule| VerifyError { block: replay.height + 1, entry: None, rule: rule.to_owned() })?;
        verify_block(&mut replay, &block)?;
    }
    verified(genesis, replay)
}

/// Counts the whole book once more, and sums up.
fn verified(genesis: &Genesis, mut replay: Replay) -> Result<Verified, VerifyError> {
    replay.book.check().map_err(|violation| VerifyError {
        block: replay.height,
        entry: None,
        rule: violation.to_string(),
    })?;
    let totals = replay.book.totals();
    Ok(Verified {
        network: genesis.network_id(),
        blocks: replay.height,
        entries: totals.entries,
        sessions: totals.sessions,
        minted: totals.minted,
        burned: totals.burned,
        settled_gross: totals.settled_gross,
        settled_provider: totals.settled_provider,
        height: replay.height,
        tip: replay.parent,
        state_root: replay.book.state_root(),
    })
}

fn verify_block(replay: &mut Replay, block: &CertifiedBlock) -> Result<(), VerifyError> {
    let height = replay.height + 1;
    let fault = |entry, rule: String| VerifyError { block: height, entry, rule };
    let Err(error) = replay.follow(block, Signatures::Verify) else { return Ok(()) };
    Err(match error {
        BlockError::Entry { index, error } => fault(Some(index), error.to_string()),
        BlockError::Apply { index, error } => fault(Some(index), error.to_string()),
        BlockError::EntriesRoot => {
            // If one entry was altered, its own signature shows which.
            let altered = block.block.entries.iter().position(|entry| Signed::<Entry>::open(entry.clone()).is_err());
            fault(altered, error.to_string())
        }
        BlockError::Height { .. }
        | BlockError::Parent
        | BlockError::Time
        | BlockError::Validators
        | BlockError::Certificate(_)
        | BlockError::Supply
        | BlockError::NextValidators
        | BlockError::StateRoot => fault(None, error.to_string()),
    })
}
