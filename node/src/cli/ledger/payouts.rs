//! `spillway ledger payouts`: what waits to be paid out, the file for the bank, and what became of it.
//! Invariant: a file is written once and whole, and tells of every waiting payout that is not in it.

use super::{Listing, Place, Verdict, print, submit};
use crate::cli::table::{self, Show};
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use spillway_ledger::{Account, RejectReason};
use spillway_node::payouts::{
    Batch, BatchError, Date, Debtor, Left, Payee, Waiting, now_ms, read_payees, to_csv, to_pain001, write_private,
};
use spillway_testnet::Admin;
use std::path::{Path, PathBuf};

/// The largest list of payouts that is read from a file, in bytes.
const LIST_BYTES_MAX: u64 = 64 << 20;
/// The fewest digits that may stand for a payout's id.
const PREFIX_MIN: usize = 8;

#[derive(Debug, Subcommand)]
pub(crate) enum PayoutsCommand {
    /// Show the payouts that wait for the issuer
    List(ListArguments),
    /// Write the payments as a file for a bank
    Export(ExportArguments),
    /// Say that a payout was paid: its credits are gone; for the issuer's node only
    Burn(BurnArguments),
    /// Give a payout's credits back; for the issuer's node only
    Reject(RejectArguments),
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// Only this account's, in hex
    #[arg(long)]
    account: Option<Account>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    listing: Listing,
}

/// What the bank takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Comma-separated values
    Csv,
    /// ISO 20022 pain.001.001.09
    Pain001,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArguments {
    /// The payees' files: a folder of .json files, or one file
    #[arg(long, value_name = "PATH")]
    payees: PathBuf,
    /// Who pays, from which account and at which rate: a file of JSON
    #[arg(long, value_name = "FILE")]
    debtor: PathBuf,
    /// What the bank takes
    #[arg(long, value_enum)]
    format: Format,
    /// Where the payments go; an existing file is not replaced
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The day on which the bank is to pay; without it, today
    #[arg(long, value_name = "YYYY-MM-DD")]
    date: Option<Date>,
    /// Only this payout; repeat for more
    #[arg(long = "payout", value_name = "PAYOUT")]
    payouts: Vec<String>,
    /// Pay amounts that are no whole number of cents rounded down, and tell what is left; otherwise they are left out
    #[arg(long)]
    round_down: bool,
    /// Take the payouts from what `payouts list --json` printed, for a machine without a node
    #[arg(long, value_name = "FILE")]
    list: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    listing: Listing,
}

#[derive(Debug, Args)]
pub(crate) struct BurnArguments {
    /// The payout's id, or its first digits as the bank's statement has them
    payout: String,
    /// The bank's or processor's reference for the payment; each counts once
    #[arg(long, value_name = "TEXT")]
    reference: String,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    listing: Listing,
}

/// Why a payout is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Reason {
    /// Nobody showed a payee file with its digest
    UnknownPayee,
    /// The bank or processor said no
    Returned,
    /// The law, or the issuer's rules, forbid it
    Compliance,
    /// The account asked for it
    Withdrawn,
}

#[derive(Debug, Args)]
pub(crate) struct RejectArguments {
    /// The payout's id, or its first digits
    payout: String,
    /// Why
    #[arg(long, value_enum)]
    reason: Reason,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    listing: Listing,
}

/// Runs `spillway ledger payouts …`.
pub(crate) async fn run(command: PayoutsCommand) -> Result<Verdict> {
    match command {
        PayoutsCommand::List(arguments) => list(&arguments).await,
        PayoutsCommand::Export(arguments) => export(&arguments).await,
        PayoutsCommand::Burn(arguments) => burn(&arguments).await,
        PayoutsCommand::Reject(arguments) => reject(&arguments).await,
    }
}

async fn told(admin: &Admin) -> Result<Value> {
    admin.get("/admin/ledger/payouts").await
}

fn waiting_in(body: &Value) -> Result<Vec<Waiting>> {
    let list = body.get("payouts").context("no `payouts` in it")?;
    serde_json::from_value(list.clone()).context("`payouts`")
}

async fn list(arguments: &ListArguments) -> Result<Verdict> {
    let mut body = told(&arguments.place.admin()?).await?;
    if let (Some(account), Some(payouts)) = (&arguments.account, body.get_mut("payouts").and_then(Value::as_array_mut))
    {
        let account = account.to_string();
        payouts.retain(|payout| payout.get("account").and_then(Value::as_str) == Some(&account));
    }
    let columns = [
        ("PAYOUT", "/payout", Show::Plain),
        ("ACCOUNT", "/account", Show::Short),
        ("AMOUNT", "/amount_micro", Show::Money),
        ("PAYEE", "/payee", Show::Short),
        ("BLOCK", "/height", Show::Plain),
    ];
    table::list(&body, "payouts", arguments.listing.json, &columns, "no payout waits")?;
    Ok(Verdict::Done)
}

/// The waiting payout that `text` begins.
fn find<'a>(waiting: &'a [Waiting], text: &str) -> Result<&'a Waiting> {
    let text = text.to_ascii_lowercase();
    if text.len() < PREFIX_MIN || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        bail!("PAYOUT: {text:?} is no payout's id: at least its first {PREFIX_MIN} hexadecimal digits");
    }
    let mut found = waiting.iter().filter(|waiting| waiting.payout.to_string().starts_with(&text));
    let Some(first) = found.next() else {
        bail!("PAYOUT: no payout {text} waits: it was never asked for, or is burned or rejected already")
    };
    if found.next().is_some() {
        bail!("PAYOUT: {text} begins more than one payout's id; give more digits");
    }
    Ok(first)
}

fn read_list(path: &Path) -> Result<Vec<Waiting>> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(LIST_BYTES_MAX).read_to_string(&mut text))
        .with_context(|| format!("cannot read {}", path.display()))?;
    let body: Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    waiting_in(&body).with_context(|| path.display().to_string())
}

/// A payee file that pays nobody, and why.
struct Refused {
    file: PathBuf,
    why: String,
}

/// The payees that some waiting payout names, and the files of all others.
fn payees(path: &Path, waiting: &[Waiting]) -> Result<(Vec<Payee>, Vec<Refused>)> {
    let (mut payees, mut refused) = (Vec::new(), Vec::new());
    for (file, payee) in read_payees(path)? {
        match payee {
            Ok(payee) if waiting.iter().any(|waiting| waiting.payee == payee.digest()) => payees.push(payee),
            Ok(payee) => {
                let why = format!("no waiting payout names its digest {}", payee.digest());
                refused.push(Refused { file, why });
            }
            Err(error) => refused.push(Refused { file, why: error.to_string() }),
        }
    }
    if let (true, [only]) = (!path.is_dir(), refused.as_slice()) {
        bail!("--payees: {}: {}", only.file.display(), only.why);
    }
    Ok((payees, refused))
}

async fn export(arguments: &ExportArguments) -> Result<Verdict> {
    let debtor = Debtor::read(&arguments.debtor).context("--debtor")?;
    let mut waiting = match &arguments.list {
        Some(path) => read_list(path).context("--list")?,
        None => waiting_in(&told(&arguments.place.admin()?).await?).context("the node's answer")?,
    };
    if !arguments.payouts.is_empty() {
        let chosen: Result<Vec<Waiting>> = arguments.payouts.iter().map(|text| find(&waiting, text).cloned()).collect();
        waiting = chosen?;
    }
    let (payees, refused) = payees(&arguments.payees, &waiting)?;
    let (batch, left) = Batch::new(debtor, waiting, payees, arguments.round_down);
    let batch = match batch {
        Ok(batch) => batch,
        Err(error @ (BatchError::Nothing | BatchError::TooMany(_))) => {
            tell_left(&left, &refused);
            bail!("{error}; no file was written");
        }
    };
    let date = arguments.date.unwrap_or_else(Date::today);
    let text = match arguments.format {
        Format::Csv => to_csv(&batch),
        Format::Pain001 => to_pain001(&batch, date, now_ms()),
    };
    write_private(&arguments.out, text.as_bytes()).context("--out")?;
    if arguments.listing.json {
        table::line(&serde_json::to_string_pretty(&summary(&batch, &left, &refused, &arguments.out))?)?;
        return Ok(Verdict::Done);
    }
    let currency = batch.debtor.currency;
    table::line(&format!(
        "wrote {} payments of {} {currency} in all for {} to {}",
        batch.lines.len(),
        currency.text(batch.total_minor()),
        batch.total_credits(),
        arguments.out.display(),
    ))?;
    table::line(&format!("message  {}", batch.message_id()))?;
    if !batch.total_remainder().is_zero() {
        table::line(&format!("left     {} by rounding down; see the file, or --json", batch.total_remainder()))?;
    }
    tell_left(&left, &refused);
    Ok(Verdict::Done)
}

/// Says on standard error what is not in the file.
fn tell_left(left: &[Left], refused: &[Refused]) {
    for left in left {
        let Waiting { payout, amount_micro, .. } = &left.waiting;
        eprintln!("not paid: {} {amount_micro}: {}", payout.short(), left.why.words());
    }
    for refused in refused {
        eprintln!("not used: {}: {}", refused.file.display(), refused.why);
    }
}

fn summary(batch: &Batch, left: &[Left], refused: &[Refused], out: &Path) -> Value {
    let currency = batch.debtor.currency;
    let paid: Vec<Value> = batch
        .lines
        .iter()
        .map(|line| {
            json!({
                "payout": line.waiting.payout,
                "end_to_end_id": line.end_to_end(),
                "account": line.waiting.account,
                "credits_micro": line.waiting.amount_micro,
                "amount": currency.text(line.minor),
                "remainder_micro": line.remainder,
            })
        })
        .collect();
    let refused: Vec<Value> = refused.iter().map(|refused| json!({"file": refused.file, "why": refused.why})).collect();
    json!({
        "out": out,
        "message_id": batch.message_id(),
        "currency": currency,
        "rate": batch.debtor.rate,
        "payments": batch.lines.len(),
        "total": currency.text(batch.total_minor()),
        "credits_micro": batch.total_credits(),
        "remainder_micro": batch.total_remainder(),
        "paid": paid,
        "left": left,
        "refused": refused,
    })
}

async fn burn(arguments: &BurnArguments) -> Result<Verdict> {
    let admin = arguments.place.admin()?;
    let waiting = waiting_in(&told(&admin).await?)?;
    let payout = find(&waiting, &arguments.payout)?;
    let order = json!({"action": "burn", "payout": payout.payout, "reference": arguments.reference});
    let done = submit(&admin, order).await?;
    let words =
        |height| format!("burned {} of payout {} in block {height}", payout.amount_micro, payout.payout.short());
    print(&done, arguments.listing, words)
}

async fn reject(arguments: &RejectArguments) -> Result<Verdict> {
    let admin = arguments.place.admin()?;
    let waiting = waiting_in(&told(&admin).await?)?;
    let payout = find(&waiting, &arguments.payout)?;
    let reason = match arguments.reason {
        Reason::UnknownPayee => RejectReason::UnknownPayee,
        Reason::Returned => RejectReason::Returned,
        Reason::Compliance => RejectReason::Compliance,
        Reason::Withdrawn => RejectReason::Withdrawn,
    };
    let order = json!({"action": "payout_reject", "payout": payout.payout, "reason": reason});
    let done = submit(&admin, order).await?;
    let words = |height| {
        let Waiting { amount_micro, account, .. } = payout;
        format!("gave {amount_micro} back to {} in block {height}", account.0.short())
    };
    print(&done, arguments.listing, words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use spillway_ledger::{Credits, Digest, SecretKey};

    fn waiting(payout: &str) -> Waiting {
        Waiting {
            payout: format!("{payout:0<64}").parse().expect("hexadecimal"),
            account: SecretKey::from_bytes(&[1; 32]).account(),
            amount_micro: Credits::new(1),
            payee: Digest::ZERO,
            height: 1,
            time_ms: 1,
        }
    }

    #[test]
    fn a_payout_is_found_by_its_first_digits() {
        let all = [waiting("aabbccdd01"), waiting("aabbccdd02"), waiting("11223344")];
        for (text, found) in [
            ("aabbccdd01", Ok(0)),
            ("AABBCCDD02", Ok(1)),
            ("1122334400000000000", Ok(2)),
            ("11223344", Ok(2)),
            ("aabbccdd", Err("more than one")),
            ("1122334", Err("at least its first 8")),
            ("112233zz", Err("hexadecimal")),
            ("99999999", Err("no payout 99999999 waits")),
        ] {
            match (find(&all, text), found) {
                (Ok(got), Ok(index)) => assert_eq!(got, &all[index], "{text}"),
                (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{text}: {error}"),
                (got, found) => panic!("{text}: {got:?}, where {found:?} was expected"),
            }
        }
    }

    #[test]
    fn a_list_is_read_as_it_was_printed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("list.json");
        let all = vec![waiting("aabbccdd01")];
        std::fs::write(&path, json!({"payouts": all, "height": 3}).to_string()).expect("written");
        assert_eq!(read_list(&path).expect("a list"), all);
        for text in ["{}", "[]", "", r#"{"payouts": [{"payout": "x"}]}"#] {
            std::fs::write(&path, text).expect("written");
            let error = read_list(&path).expect_err(text);
            assert!(format!("{error:#}").contains("list.json"), "{error:#}");
        }
    }
}
