//! `spillway ledger verify`: the books of a node, of a copied folder, or one proof file.
//! Invariant: it trusts the genesis alone; it asks a running node only for blocks, and replays them itself. What fails is
//! named by block, entry and rule.

use super::books::keeper;
use super::{Listing, Place, Verdict, table};
use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};
use spillway_ledger::{Document, Fact, NetworkId, Proof, Proven, Verified, VerifyError, verify_blocks, verify_folder};
use spillway_node::run::{load_config, load_genesis};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(crate) struct VerifyArguments {
    /// A folder with genesis.json and ledger.redb, or a proof file; without it, --folder
    path: Option<PathBuf>,
    /// The network that it must be of, in hex: without it, compare the one that is printed
    #[arg(long, value_name = "ID")]
    network: Option<NetworkId>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    listing: Listing,
}

/// What was verified.
enum Sound {
    Books(Verified),
    Proof(Box<Proven>),
}

/// Runs `spillway ledger verify`.
pub(crate) async fn run(arguments: &VerifyArguments) -> Result<Verdict> {
    let path = arguments.path.as_ref().unwrap_or(&arguments.place.folder);
    let found = if path.is_file() {
        proof_file(path)?
    } else if path.is_dir() {
        books(path).await?.map(Sound::Books)
    } else {
        bail!("{}: neither a folder with books nor a proof file", path.display());
    };
    let found = found.and_then(|sound| match arguments.network {
        Some(wanted) if wanted != sound.network() => {
            Err(fault(format!("it is of network {}, not of {wanted}", sound.network())))
        }
        Some(_) | None => Ok(sound),
    });
    match found {
        Ok(sound) => {
            table::line(&if arguments.listing.json { sound.as_json().to_string() } else { sound.in_words() })?;
            Ok(Verdict::Done)
        }
        Err(fault) => {
            if arguments.listing.json {
                let fault = json!({"verified": false, "block": fault.block, "entry": fault.entry, "rule": fault.rule});
                table::line(&fault.to_string())?;
            } else {
                let what = if path.is_file() { "the proof does" } else { "the books do" };
                eprintln!("error: {what} not verify: {fault}");
            }
            Ok(Verdict::Failed)
        }
    }
}

fn fault(rule: String) -> VerifyError {
    VerifyError { block: 0, entry: None, rule }
}

fn proof_file(path: &Path) -> Result<Result<Sound, VerifyError>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(Proof::BYTES_MAX as u64 + 1).read_to_end(&mut bytes))
        .with_context(|| format!("cannot read {}", path.display()))?;
    let proven = Proof::verify_bytes(&bytes).map(|proven| Sound::Proof(Box::new(proven)));
    Ok(proven.map_err(|error| fault(error.to_string())))
}

async fn books(folder: &Path) -> Result<Result<Verified, VerifyError>> {
    match keeper(folder).await {
        Some(admin) => {
            let genesis = load_genesis(folder, &load_config(folder)?)?;
            let blocks = admin.blocks().await?;
            tokio::task::spawn_blocking(move || verify_blocks(&genesis, blocks)).await
        }
        None => {
            let folder = folder.to_owned();
            tokio::task::spawn_blocking(move || verify_folder(folder)).await
        }
    }
    .context("the replay was cut short")
}

impl Sound {
    fn network(&self) -> NetworkId {
        match self {
            Self::Books(verified) => verified.network,
            Self::Proof(proven) => proven.network,
        }
    }

    fn as_json(&self) -> Value {
        match self {
            Self::Books(verified) => books_json(verified),
            Self::Proof(proven) => proof_json(proven),
        }
    }

    fn in_words(&self) -> String {
        match self {
            Self::Books(verified) => books_words(verified),
            Self::Proof(proven) => proof_words(proven),
        }
    }
}

fn books_json(verified: &Verified) -> Value {
    json!({
        "verified": true,
        "network": verified.network.to_string(),
        "height": verified.height,
        "blocks": verified.blocks,
        "entries": verified.entries,
        "sessions": verified.sessions,
        "minted": verified.minted.micro(),
        "burned": verified.burned.micro(),
        "settled_gross": verified.settled_gross.micro(),
        "settled_provider": verified.settled_provider.micro(),
        "tip": verified.tip.to_string(),
        "state_root": verified.state_root.to_string(),
    })
}

fn books_words(verified: &Verified) -> String {
    let Verified { blocks, entries, sessions, minted, burned, settled_gross, settled_provider, .. } = verified;
    let Verified { state_root, network, .. } = verified;
    format!(
        "verified: {blocks} blocks, {entries} entries, {sessions} sessions\n\
         minted    {minted}\nburned    {burned}\n\
         settled   {settled_gross}, of which providers got {settled_provider}\n\
         state     {state_root}\nnetwork   {network}"
    )
}

fn proof_json(proven: &Proven) -> Value {
    let mut told = json!({
        "verified": true,
        "network": proven.network,
        "name": proven.name,
        "height": proven.height,
        "time_ms": proven.time_ms,
        "supply_micro": proven.supply,
    });
    match &proven.what {
        Fact::Account { account, state } => {
            told["account"] = json!({
                "account": account,
                "balance_micro": state.balance,
                "bond_micro": state.bond,
                "unbonding_micro": state.unbonding,
                "nonce": state.nonce,
                "open_sessions": state.open_sessions,
                "payouts": state.payouts,
            });
        }
        Fact::Receipt { receipt, provider, consumer } => {
            told["receipt"] = json!({
                "job": receipt.job,
                "leg": receipt.leg,
                "session": receipt.session,
                "provider": provider,
                "consumer": consumer,
                "model": receipt.model,
                "input": receipt.usage.input,
                "output": receipt.usage.output,
                "cost_micro": receipt.cost,
                "prompt": receipt.prompt,
                "transcript": receipt.transcript,
                "finish": receipt.finish,
                "time_ms": receipt.time_ms,
            });
        }
    }
    told
}

fn proof_words(proven: &Proven) -> String {
    let Proven { network, name, height, supply, .. } = proven;
    let what = match &proven.what {
        Fact::Account { account, state } => {
            format!("account   {account}\nbalance   {}\nbond      {}", state.balance, state.bond)
        }
        Fact::Receipt { receipt, provider, consumer } => format!(
            "job       {}, leg {}: {} in, {} out of {} for {}\nprovider  {provider}\nconsumer  {consumer}",
            receipt.job, receipt.leg, receipt.usage.input, receipt.usage.output, receipt.model, receipt.cost
        ),
    };
    format!("verified: after block {height} of {name}\n{what}\nsupply    {supply}\nnetwork   {network}")
}
