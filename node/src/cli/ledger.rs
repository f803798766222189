//! `spillway ledger`: the books for those who pay, are paid, keep the till or check it.
//! Invariant: `verify` trusts the genesis alone, and replays all that it is given; a command that changes something goes
//! through the running node, and the ledger judges it.

mod account;
mod books;
mod payouts;
mod proof;
mod verify;

use super::limits::micro;
use super::table::{self, Show};
use super::{Listing, Place, Verdict};
use account::{PayeeCommand, RedeemArguments, StakeArguments, TransferArguments};
use anyhow::{Context, Result, bail};
use books::Books;
use clap::{Args, Subcommand};
use payouts::PayoutsCommand;
use proof::ProofArguments;
use serde_json::{Value, json};
use spillway_ledger::{Account, Credits, JobId, SessionId};
use spillway_node::gateway::ledger_log::{KINDS, LogQuery};
use spillway_testnet::Admin;
use verify::VerifyArguments;

#[derive(Debug, Subcommand)]
pub(crate) enum LedgerCommand {
    /// What an account can spend, and what is locked, at stake or on its way out
    Balance(BalanceArguments),
    /// The entries of the books, or those asked for
    Log(LogArguments),
    /// The receipts of a job, signed by both sides, and the settlement that pays for each
    Receipt(ReceiptArguments),
    /// Write a file that proves what an account has, or that a job was done and settled
    Proof(ProofArguments),
    /// Check the books from the first block, or a proof file: every signature, hash and sum
    Verify(VerifyArguments),
    /// Ask to be paid in cash
    Redeem(RedeemArguments),
    /// Bank details for payouts, in a file
    #[command(subcommand)]
    Payee(PayeeCommand),
    /// Payouts that wait: list, export, burn, reject
    #[command(subcommand)]
    Payouts(PayoutsCommand),
    /// Give credits to another account
    Transfer(TransferArguments),
    /// Put credits at stake
    Bond(StakeArguments),
    /// Ask for some of the stake back
    Unbond(StakeArguments),
    /// Create credits; for the issuer's node only
    Mint(MintArguments),
}

#[derive(Debug, Args)]
pub(crate) struct BalanceArguments {
    /// The account, in hex; without it, the node's own
    account: Option<Account>,
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
    /// End with this block
    #[arg(long, value_name = "HEIGHT")]
    to: Option<u64>,
    /// Only entries that this account signed or is named in, in hex
    #[arg(long)]
    account: Option<Account>,
    /// Only entries of this kind
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(KINDS))]
    kind: Option<String>,
    /// Only entries about this session, in hex
    #[arg(long)]
    session: Option<SessionId>,
    /// Only the last N of them
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    listing: Listing,
}

#[derive(Debug, Args)]
pub(crate) struct ReceiptArguments {
    /// The job's id; without it, every receipt the node holds
    job: Option<JobId>,
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
        LedgerCommand::Receipt(arguments) => receipt(&arguments).await,
        LedgerCommand::Proof(arguments) => proof::run(&arguments).await,
        LedgerCommand::Verify(arguments) => verify::run(&arguments).await,
        LedgerCommand::Redeem(arguments) => account::redeem(&arguments).await,
        LedgerCommand::Payee(command) => account::payee(&command),
        LedgerCommand::Payouts(command) => payouts::run(command).await,
        LedgerCommand::Transfer(arguments) => account::transfer(&arguments).await,
        LedgerCommand::Bond(arguments) => account::bond(&arguments).await,
        LedgerCommand::Unbond(arguments) => account::unbond(&arguments).await,
        LedgerCommand::Mint(arguments) => mint(&arguments).await,
    }
}

/// Puts an entry of the running node's account on the ledger.
async fn submit(admin: &Admin, wish: Value) -> Result<Value> {
    admin.post("/admin/ledger/entries", &wish).await
}

/// Prints what became of an entry: as the node said it, or in words that are given the block's height.
fn print(done: &Value, listing: Listing, words: impl FnOnce(u64) -> String) -> Result<Verdict> {
    if listing.json {
        table::line(&serde_json::to_string_pretty(done)?)?;
    } else {
        table::line(&words(done.get("height").and_then(Value::as_u64).context("the node's answer has no `height`")?))?;
    }
    Ok(Verdict::Done)
}

async fn balance(arguments: &BalanceArguments) -> Result<Verdict> {
    let status = Books::open(&arguments.place).await?.account(arguments.account).await?;
    if arguments.listing.json {
        table::line(&serde_json::to_string_pretty(&status)?)?;
        return Ok(Verdict::Done);
    }
    let number = |field: &str| status.get(field).and_then(Value::as_u64).unwrap_or(0);
    let money = |field: &str| Credits::new(number(field));
    table::line(&format!("account  {}", status.get("account").and_then(Value::as_str).unwrap_or("-")))?;
    table::line(&format!("balance  {}", money("balance_micro")))?;
    table::line(&format!("locked   {} in open sessions", money("locked_micro")))?;
    for (field, words) in [
        ("payouts_micro", "payouts  {} on the way out"),
        ("bond_micro", "bond     {} at stake"),
        ("unbonding_micro", "unbonds  {} later"),
    ] {
        if number(field) > 0 {
            table::line(&words.replace("{}", &money(field).to_string()))?;
        }
    }
    Ok(Verdict::Done)
}

async fn log(arguments: &LogArguments) -> Result<Verdict> {
    let LogArguments { from, to, account, kind, session, limit, place, listing } = arguments;
    if to.is_some_and(|to| to < *from) {
        bail!("--to: it lies before --from");
    }
    let query =
        LogQuery { from: *from, to: *to, account: *account, kind: kind.clone(), session: *session, limit: *limit };
    let log = Books::open(place).await?.log(query).await?;
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
    table::list(&log, "entries", listing.json, &columns, "the books have no such entries")?;
    let cut = log.get("more").and_then(Value::as_bool) == Some(true);
    if cut && limit.is_none() && !listing.json {
        eprintln!("there are more; narrow it down with --from, --to, --account, --kind or --session");
    }
    Ok(Verdict::Done)
}

async fn receipt(arguments: &ReceiptArguments) -> Result<Verdict> {
    let path = match &arguments.job {
        Some(job) => format!("/admin/ledger/receipts?job={job}"),
        None => "/admin/ledger/receipts".into(),
    };
    let receipts = arguments.place.admin()?.get(&path).await?;
    let mut columns = vec![
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
    if arguments.job.is_some() {
        columns.push(("SETTLED IN BLOCK", "/settled/height", Show::Plain));
    }
    let none = "no receipts: own hardware writes none, and a job that still runs has none yet";
    table::list(&receipts, "receipts", arguments.listing.json, &columns, none)?;
    Ok(Verdict::Done)
}

async fn mint(arguments: &MintArguments) -> Result<Verdict> {
    let amount = micro("--amount", arguments.amount)?;
    let wanted = json!({"to": arguments.to.to_string(), "amount_micro": amount, "reference": arguments.reference});
    let minted = arguments.place.admin()?.post("/admin/ledger/mint", &wanted).await?;
    print(&minted, arguments.listing, |height| format!("minted {} in block {height}", Credits::new(amount)))
}
