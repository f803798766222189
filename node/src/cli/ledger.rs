//! `spillway ledger`: the books: balance, log, receipts, minting, verification.
//! Invariant: `verify` trusts the genesis file alone; it asks a running node only for blocks, and replays them itself.

use super::keys::micro;
use super::table::{self, Show};
use super::{Listing, Place, Verdict};
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use spillway_ledger::{Account, Credits, Verified, verify_blocks, verify_folder};
use spillway_node::run::{load_config, load_genesis};
use spillway_testnet::Admin;
use std::path::Path;

#[derive(Debug, Subcommand)]
pub(crate) enum LedgerCommand {
    /// What the node's account can spend, and what is locked in sessions
    Balance(PlainArguments),
    /// Every entry of the books, or the last ones
    Log(LogArguments),
    /// Replay the books from the first block: every signature, hash and sum
    Verify(PlainArguments),
    /// The receipts of a job, signed by both sides
    Receipt(ReceiptArguments),
    /// Create credits; for the issuer's node only
    Mint(MintArguments),
}

#[derive(Debug, Args)]
pub(crate) struct PlainArguments {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    listing: Listing,
}

#[derive(Debug, Args)]
pub(crate) struct LogArguments {
    /// Begin at this block
    #[arg(long, value_name = "HEIGHT", default_value_t = 0)]
    from: u64,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    listing: Listing,
}

#[derive(Debug, Args)]
pub(crate) struct ReceiptArguments {
    /// The job's id; without it, every receipt the node holds
    job: Option<String>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    listing: Listing,
}

#[derive(Debug, Args)]
pub(crate) struct MintArguments {
    /// The account that gets them, in hex
    #[arg(long)]
    to: Account,
    /// How many credits
    #[arg(long, value_name = "CREDITS")]
    amount: f64,
    /// What they stand for, such as a bank transfer's number; each counts once
    #[arg(long)]
    reference: String,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    listing: Listing,
}

/// Runs `spillway ledger …`.
pub(crate) async fn run(command: LedgerCommand) -> Result<Verdict> {
    match command {
        LedgerCommand::Balance(arguments) => balance(&arguments).await,
        LedgerCommand::Log(arguments) => log(&arguments).await,
        LedgerCommand::Verify(arguments) => verify(&arguments).await,
        LedgerCommand::Receipt(arguments) => receipt(&arguments).await,
        LedgerCommand::Mint(arguments) => mint(&arguments).await,
    }
}

async fn balance(arguments: &PlainArguments) -> Result<Verdict> {
    let account = arguments.place.admin()?.get("/admin/ledger/account").await?;
    if arguments.listing.json {
        table::line(&serde_json::to_string_pretty(&account)?)?;
        return Ok(Verdict::Done);
    }
    let money = |field: &str| Credits::new(account.get(field).and_then(Value::as_u64).unwrap_or(0));
    table::line(&format!("account  {}", account.get("account").and_then(Value::as_str).unwrap_or("-")))?;
    table::line(&format!("balance  {}", money("balance_micro")))?;
    table::line(&format!("locked   {} in open sessions", money("locked_micro")))?;
    Ok(Verdict::Done)
}

async fn log(arguments: &LogArguments) -> Result<Verdict> {
    let log = arguments.place.admin()?.get(&format!("/admin/ledger/log?from={}", arguments.from)).await?;
    let columns = [
        ("BLOCK", "/height", Show::Plain),
        ("BY", "/account", Show::Short),
        ("ENTRY", "/action", Show::Plain),
        ("SESSION", "/session", Show::Short),
        ("TO", "/to", Show::Short),
        ("AMOUNT", "/amount_micro", Show::Money),
        ("PROVIDER", "/parts/provider", Show::Money),
        ("GATEWAY", "/parts/gateway", Show::Money),
        ("VALIDATORS", "/parts/validators", Show::Money),
        ("TREASURY", "/parts/treasury", Show::Money),
    ];
    table::list(&log, "entries", arguments.listing.json, &columns, "the books have no entries from there on")?;
    Ok(Verdict::Done)
}

async fn receipt(arguments: &ReceiptArguments) -> Result<Verdict> {
    let path = match &arguments.job {
        Some(job) if !job.is_empty() && job.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            format!("/admin/ledger/receipts?job={job}")
        }
        Some(job) => bail!("JOB: {job:?} is no job id: those are hexadecimal digits"),
        None => "/admin/ledger/receipts".into(),
    };
    let receipts = arguments.place.admin()?.get(&path).await?;
    let columns = [
        ("JOB", "/job", Show::Short),
        ("LEG", "/leg", Show::Plain),
        ("PROVIDER", "/provider", Show::Short),
        ("CONSUMER", "/consumer", Show::Short),
        ("MODEL", "/model", Show::Plain),
        ("IN", "/input", Show::Plain),
        ("OUT", "/output", Show::Plain),
        ("COST", "/cost_micro", Show::Money),
        ("FIRST", "/first_token_ms", Show::Millis),
        ("TOTAL", "/total_ms", Show::Millis),
        ("END", "/finish", Show::Plain),
        ("BOTH SIGNED", "/both", Show::Flag),
    ];
    let none = "no receipts: own hardware writes none, and a job that still runs has none yet";
    table::list(&receipts, "receipts", arguments.listing.json, &columns, none)?;
    Ok(Verdict::Done)
}

async fn mint(arguments: &MintArguments) -> Result<Verdict> {
    let amount = micro("--amount", arguments.amount)?;
    let wanted = json!({"to": arguments.to.to_string(), "amount_micro": amount, "reference": arguments.reference});
    let minted = arguments.place.admin()?.post("/admin/ledger/mint", &wanted).await?;
    if arguments.listing.json {
        table::line(&serde_json::to_string_pretty(&minted)?)?;
    } else {
        let height = minted.get("height").and_then(Value::as_u64).context("the node's answer has no `height`")?;
        table::line(&format!("minted {} in block {height}", Credits::new(amount)))?;
    }
    Ok(Verdict::Done)
}

/// The node that has the books open, if one does and answers.
async fn keeper(folder: &Path) -> Option<Admin> {
    let admin = Admin::in_folder(folder).ok()?;
    // After a crash the file of a node that ran is still there; nobody answers for it.
    admin.get("/admin/status").await.ok().map(|_| admin)
}

async fn verify(arguments: &PlainArguments) -> Result<Verdict> {
    let folder = &arguments.place.folder;
    let verified = match keeper(folder).await {
        Some(admin) => {
            let genesis = load_genesis(folder, &load_config(folder)?)?;
            let blocks = admin.blocks().await?;
            tokio::task::spawn_blocking(move || verify_blocks(&genesis, blocks)).await
        }
        None => {
            let folder = folder.clone();
            tokio::task::spawn_blocking(move || verify_folder(folder)).await
        }
    }
    .context("the replay was cut short")?;
    match verified {
        Ok(verified) => {
            table::line(&if arguments.listing.json { as_json(&verified).to_string() } else { in_words(&verified) })?;
            Ok(Verdict::Done)
        }
        Err(fault) => {
            if arguments.listing.json {
                let fault = json!({"verified": false, "block": fault.block, "entry": fault.entry, "rule": fault.rule});
                table::line(&fault.to_string())?;
            } else {
                eprintln!("error: the books do not verify: {fault}");
            }
            Ok(Verdict::Failed)
        }
    }
}

fn as_json(verified: &Verified) -> Value {
    json!({
        "verified": true,
        "height": verified.height,
        "blocks": verified.blocks,
        "entries": verified.entries,
        "sessions": verified.sessions,
        "minted": verified.minted.micro(),
        "settled_gross": verified.settled_gross.micro(),
        "settled_provider": verified.settled_provider.micro(),
        "tip": verified.tip.to_string(),
        "state_root": verified.state_root.to_string(),
    })
}

fn in_words(verified: &Verified) -> String {
    let Verified { blocks, entries, sessions, minted, settled_gross, settled_provider, state_root, .. } = verified;
    format!(
        "verified: {blocks} blocks, {entries} entries, {sessions} sessions\n\
         minted    {minted}\nsettled   {settled_gross}, of which providers got {settled_provider}\n\
         state     {state_root}"
    )
}
