//! `spillway ledger`: what an account does with its credits: redeem, give, put at stake; and whom it is paid through.
//! Invariant: an amount that a bank cannot pay to the cent is refused before anything is locked.

use super::{Listing, Place, Verdict, print, submit};
use crate::cli::table;
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use spillway_ledger::{Account, Credits};
use spillway_node::payouts::{Bic, Country, Iban, Payee, write_private};
use spillway_node::run::load_config;
use spillway_protocol::rate::credits_of;
use spillway_protocol::{Currency, Rate};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Credits on the command line, exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Amount(Credits);

impl FromStr for Amount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        credits_of(text).map(Amount)
    }
}

#[derive(Debug, Args)]
pub(crate) struct RedeemArguments {
    /// How many credits, such as 12.5
    #[arg(value_name = "CREDITS")]
    amount: Amount,
    /// Whom to pay: the file that `spillway ledger payee new` made
    #[arg(long, value_name = "FILE")]
    payee: PathBuf,
    /// What the issuer pays for one credit; without it, `ledger.cash_rate` of spillway.toml
    #[arg(long)]
    rate: Option<Rate>,
    /// A name for this request, for scripts that try again: within some 5,000 blocks it is made once
    #[arg(long, value_name = "TEXT")]
    once: Option<String>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    listing: Listing,
}

#[derive(Debug, Args)]
pub(crate) struct StakeArguments {
    /// How many credits
    #[arg(value_name = "CREDITS")]
    amount: Amount,
    /// A name for this request, for scripts that try again: within some 5,000 blocks it is made once
    #[arg(long, value_name = "TEXT")]
    once: Option<String>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    listing: Listing,
}

#[derive(Debug, Args)]
pub(crate) struct TransferArguments {
    /// How many credits
    #[arg(value_name = "CREDITS")]
    amount: Amount,
    /// The account that gets them, in hex
    #[arg(long)]
    to: Account,
    /// A name for this request, for scripts that try again: within some 5,000 blocks it is made once
    #[arg(long, value_name = "TEXT")]
    once: Option<String>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    listing: Listing,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PayeeCommand {
    /// Write a payee file with a fresh salt, for yourself and the issuer only
    New(PayeeNewArguments),
    /// Check a payee file and print the digest that a payout names it by
    Check(PayeeCheckArguments),
}

#[derive(Debug, Args)]
pub(crate) struct PayeeNewArguments {
    /// The account's owner, as the bank knows it
    #[arg(long)]
    name: String,
    /// The account's number
    #[arg(long)]
    iban: Iban,
    /// The bank's code; needed outside SEPA
    #[arg(long)]
    bic: Option<Bic>,
    /// Where the owner lives, such as DE
    #[arg(long)]
    country: Country,
    /// What is to be paid, such as EUR
    #[arg(long)]
    currency: Currency,
    /// Where the file goes; an existing one is not replaced
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    listing: Listing,
}

#[derive(Debug, Args)]
pub(crate) struct PayeeCheckArguments {
    /// The file
    file: PathBuf,
    #[command(flatten)]
    listing: Listing,
}

/// Runs `spillway ledger payee …`.
pub(crate) fn payee(command: &PayeeCommand) -> Result<Verdict> {
    let (payee, file, listing) = match command {
        PayeeCommand::New(arguments) => {
            let mut salt = [0; 32];
            getrandom::fill(&mut salt).context("the system gives no random bytes")?;
            let PayeeNewArguments { name, iban, bic, country, currency, out, listing } = arguments;
            let payee = Payee::new(name, iban.clone(), bic.clone(), country.clone(), *currency, salt)
                .map_err(|error| anyhow::anyhow!("--name: {error}"))?;
            let text = serde_json::to_string_pretty(&payee)? + "\n";
            write_private(out, text.as_bytes()).context("--out")?;
            (payee, out, listing)
        }
        PayeeCommand::Check(PayeeCheckArguments { file, listing }) => (Payee::read(file)?, file, listing),
    };
    if listing.json {
        let body = json!({"file": file, "payee": payee.digest(), "currency": payee.currency, "country": payee.country});
        table::line(&serde_json::to_string_pretty(&body)?)?;
    } else {
        table::line(&format!("payee  {}", payee.digest()))?;
    }
    Ok(Verdict::Done)
}

/// What the bank will pay for `amount`, in minor units.
fn whole(amount: Credits, rate: Rate, currency: Currency) -> Result<u64> {
    let paid =
        rate.pay(amount, currency).with_context(|| format!("CREDITS: {amount} are too many to pay in {currency}"))?;
    if paid.remainder.is_zero() && paid.minor > 0 {
        return Ok(paid.minor);
    }
    let payable = [paid.minor, paid.minor.saturating_add(1)].into_iter().filter(|minor| *minor > 0);
    let payable: Vec<String> = payable
        .filter_map(|minor| Some(format!("{} for {} {currency}", rate.price(minor, currency)?, currency.text(minor))))
        .collect();
    bail!(
        "CREDITS: {amount} at {rate} {currency} for a credit are no whole amount that a bank can pay; ask for {}",
        payable.join(" or ")
    )
}

fn rate_of(folder: &Path, given: Option<Rate>) -> Result<Rate> {
    match given {
        Some(rate) => Ok(rate),
        None => Ok(load_config(folder).context("give --rate, or the folder of a node with --folder")?.ledger.cash_rate),
    }
}

/// Runs `spillway ledger redeem`.
pub(crate) async fn redeem(arguments: &RedeemArguments) -> Result<Verdict> {
    let RedeemArguments { amount: Amount(amount), payee, rate, once, place, listing } = arguments;
    let payee = Payee::read(payee).context("--payee")?;
    let rate = rate_of(&place.folder, *rate)?;
    let minor = whole(*amount, rate, payee.currency)?;
    let order = json!({"action": "payout_request", "amount_micro": amount, "payee": payee.digest(), "once": once});
    let mut done = submit(&place.admin()?, order).await?;
    let pays = payee.currency.text(minor);
    done["currency"] = json!(payee.currency);
    done["amount"] = json!(pays);
    let payout = done.get("payout").and_then(Value::as_str).context("the node's answer has no `payout`")?.to_owned();
    print(&done, *listing, |height| {
        format!(
            "locked {amount} in block {height}, to be paid out as {pays} {}\npayout  {payout}\n\
             Send the issuer the payee file by a way that only the two of you read.",
            payee.currency
        )
    })
}

/// Runs `spillway ledger bond`.
pub(crate) async fn bond(arguments: &StakeArguments) -> Result<Verdict> {
    let StakeArguments { amount: Amount(amount), once, place, listing } = arguments;
    let order = json!({"action": "bond", "amount_micro": amount, "once": once});
    let done = submit(&place.admin()?, order).await?;
    print(&done, *listing, |height| format!("put {amount} at stake in block {height}"))
}

/// Runs `spillway ledger unbond`.
pub(crate) async fn unbond(arguments: &StakeArguments) -> Result<Verdict> {
    let StakeArguments { amount: Amount(amount), once, place, listing } = arguments;
    let order = json!({"action": "unbond", "amount_micro": amount, "once": once});
    let done = submit(&place.admin()?, order).await?;
    print(&done, *listing, |height| {
        format!(
            "asked for {amount} of the bond in block {height}; it comes back when the network's waiting time is over"
        )
    })
}

/// Runs `spillway ledger transfer`.
pub(crate) async fn transfer(arguments: &TransferArguments) -> Result<Verdict> {
    let TransferArguments { amount: Amount(amount), to, once, place, listing } = arguments;
    let order = json!({"action": "transfer", "amount_micro": amount, "to": to, "once": once});
    let done = submit(&place.admin()?, order).await?;
    print(&done, *listing, |height| format!("gave {amount} to {} in block {height}", to.0.short()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_bank_cannot_pay_is_refused_with_what_it_can() {
        // credits, rate, currency; minor units, or words of the refusal
        let cases: &[(&str, &str, &str, Result<u64, &str>)] = &[
            ("12.34", "1", "EUR", Ok(1_234)),
            ("12.345", "1", "EUR", Err("ask for 12.340000 cr for 12.34 EUR or 12.350000 cr for 12.35 EUR")),
            ("0.001", "1", "EUR", Err("ask for 0.010000 cr for 0.01 EUR")),
            ("0", "1", "EUR", Err("ask for 0.010000 cr for 0.01 EUR")),
            ("1", "0.92", "EUR", Ok(92)),
            ("2", "1", "JPY", Ok(2)),
            ("2.5", "1", "JPY", Err("2.000000 cr for 2 JPY or 3.000000 cr for 3 JPY")),
        ];
        for (amount, rate, currency, want) in cases {
            let got = whole(credits_of(amount).unwrap(), rate.parse().unwrap(), currency.parse().unwrap());
            match (&got, want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want, "{amount}"),
                (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{amount}: {error}"),
                _ => panic!("{amount}: {got:?}, where {want:?} was expected"),
            }
        }
    }

    #[test]
    fn a_payee_file_is_made_once_and_checks() {
        let folder = tempfile::tempdir().expect("a folder");
        let out = folder.path().join("payee.json");
        let new = |name: &str| {
            payee(&PayeeCommand::New(PayeeNewArguments {
                name: name.into(),
                iban: "DE89370400440532013000".parse().expect("an IBAN"),
                bic: None,
                country: "DE".parse().expect("a country"),
                currency: Currency::EUR,
                out: out.clone(),
                listing: Listing { json: true },
            }))
        };
        assert!(format!("{:#}", new("李").expect_err("no Latin letters")).starts_with("--name: "));
        assert!(!out.exists());
        new("Ada").expect("new");
        let first = Payee::read(&out).expect("a payee").digest();
        assert!(format!("{:#}", new("Ada").expect_err("it exists")).starts_with("--out: "));
        assert_eq!(Payee::read(&out).expect("a payee").digest(), first);
    }
}
