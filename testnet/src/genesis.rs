//! Makes the keys and the genesis of a new network.
//! Invariant: a key file is readable by its owner only, and an existing one is never overwritten.

use anyhow::{Context, Result};
use spillway_ledger::{Account, Credits, Genesis, SecretKey, Split};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A node's peer identity.
pub const NODE_KEY: &str = "node.key";
/// The account that pays and is paid.
pub const ACCOUNT_KEY: &str = "account.key";
/// Signs the blocks of a solo ledger.
pub const AUTHORITY_KEY: &str = "authority.key";
/// The file of a validator's key.
pub const VALIDATOR_KEY: &str = "validator.key";
/// The genesis file's usual name.
pub const GENESIS_FILE: &str = "genesis.json";

/// Blocks of one minting epoch.
const EPOCH_BLOCKS: u64 = 1_000;
/// What a validator of a testnet has at stake.
const VALIDATOR_BOND: Credits = Credits::new(100_000_000);
/// A bond of a testnet comes back after a minute.
const UNBOND_MS: u64 = 60_000;
/// The least that a testnet pays out: one credit.
const PAYOUT_MIN: Credits = Credits::new(1_000_000);
/// The most that one epoch may mint: a million credits.
const MINT_MAX_PER_EPOCH: Credits = Credits::new(1_000_000_000_000);
/// How long after a session's end its deposit can be taken back, in milliseconds; `MarketConfig::session_grace`.
const GRACE_MS: u64 = 3_600_000;

/// A fresh key from the system's random source.
///
/// # Errors
/// If the system has none.
pub fn fresh_key() -> Result<SecretKey> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
    Ok(SecretKey::generate(seed))
}

/// The key in `path`, made and written there if the file is missing. Hex, one line, mode 0600.
///
/// # Errors
/// An unreadable or malformed file, or a folder that cannot be written.
pub fn key_file(path: &Path) -> Result<SecretKey> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let bytes: [u8; 32] = hex::decode(text.trim())
                .ok()
                .and_then(|bytes| bytes.try_into().ok())
                .with_context(|| format!("{}: not 64 hexadecimal digits", path.display()))?;
            Ok(SecretKey::from_bytes(&bytes))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key = fresh_key()?;
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)
                .with_context(|| format!("cannot create {}", path.display()))?;
            writeln!(file, "{}", hex::encode(key.to_bytes().as_slice()))
                .and_then(|()| file.sync_all())
                .with_context(|| format!("cannot write {}", path.display()))?;
            Ok(key)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Writes the keys of the node that keeps the books into `folder`, and gives the genesis that they found.
/// The pools for validators and the treasury get keys of their own beside them, so that what they earn can be spent.
///
/// # Errors
/// As [`key_file`].
pub fn found(folder: &Path, name: &str) -> Result<Genesis> {
    let issuer = Account(key_file(&folder.join(ACCOUNT_KEY))?.public());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).context("the clock is before 1970")?;
    let genesis = Genesis {
        name: name.into(),
        time_ms: u64::try_from(now.as_millis()).context("the clock is out of range")?,
        issuer,
        committee: vec![key_file(&folder.join(AUTHORITY_KEY))?.public()],
        treasury: Account(key_file(&folder.join("treasury.key"))?.public()),
        validators: Account(key_file(&folder.join("validators.key"))?.public()),
        split: Split::default(),
        grace_ms: GRACE_MS,
        mint_max_per_epoch: MINT_MAX_PER_EPOCH,
        epoch_blocks: EPOCH_BLOCKS,
        validator_bond: VALIDATOR_BOND,
        unbond_ms: UNBOND_MS,
        payout_min: PAYOUT_MIN,
        bootstrap: Vec::new(),
    };
    genesis.validate().context("genesis")?;
    Ok(genesis)
}

/// Makes a genesis one of a committee, whose keys are written into `folders`, one each.
///
/// # Errors
/// As [`key_file`].
pub fn with_committee(mut genesis: Genesis, folders: &[PathBuf]) -> Result<Genesis> {
    let keys: Result<Vec<_>> =
        folders.iter().map(|folder| Ok(key_file(&folder.join(VALIDATOR_KEY))?.public())).collect();
    genesis.committee = keys?;
    genesis.committee.sort_unstable();
    genesis.validate().context("genesis")?;
    Ok(genesis)
}

/// Writes `genesis` as JSON to `path`.
///
/// # Errors
/// If the file cannot be written.
pub fn write(genesis: &Genesis, path: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(genesis).context("genesis as JSON")?;
    std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
}

/// Reads and checks the genesis in `path`.
///
/// # Errors
/// A missing or malformed file, or a field that does not hold.
pub fn read(path: &Path) -> Result<Genesis> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let genesis: Genesis = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    genesis.validate().with_context(|| path.display().to_string())?;
    Ok(genesis)
}
