//! `spillway key`: API keys of a running node.
//! Invariant: a key's secret is printed once, when it is made; the node keeps only its hash.

use super::table::{self, Show};
use super::{Listing, Place, Verdict};
use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use spillway_ledger::Credits;

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key and print it, once
    Create(CreateArguments),
    /// Show every key, its budget and what it spent
    List(ListArguments),
    /// Stop a key at once
    Revoke(RevokeArguments),
}

/// Where a key's jobs may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Prefer {
    /// Own hardware first, then the network
    #[value(name = "own_first")]
    OwnFirst,
    /// Own hardware or not at all
    #[value(name = "own")]
    Own,
    /// Whatever is best at the moment
    #[value(name = "any")]
    Any,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArguments {
    /// What you call it
    #[arg(long, default_value = "default")]
    name: String,
    /// The most it may spend in all, in credits; own hardware costs nothing
    #[arg(long, value_name = "CREDITS")]
    budget: Option<f64>,
    /// Where its jobs may run
    #[arg(long, value_enum, default_value = "own_first")]
    prefer: Prefer,
    /// A model it may use; repeat for more; none given allows all
    #[arg(long = "model", value_name = "MODEL")]
    models: Vec<String>,
    /// The most jobs it may have under way
    #[arg(long, value_name = "N")]
    concurrency: Option<u32>,
    /// The time to first text that its jobs ask for: the cheapest place that meets it is taken
    #[arg(long, value_name = "MS")]
    target_ms: Option<u32>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    listing: Listing,
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    listing: Listing,
}

#[derive(Debug, Args)]
pub(crate) struct RevokeArguments {
    /// The key's id, from `spillway key list`
    id: String,
    #[command(flatten)]
    place: Place,
}

/// Credits as micro-credits; at least one if any were given.
pub(super) fn micro(field: &str, credits: f64) -> Result<u64> {
    let micro = credits * 1e6;
    if !micro.is_finite() || !(0.0..=1e15).contains(&micro) {
        anyhow::bail!("{field}: {credits} is not between 0 and 1,000,000,000 credits");
    }
    if credits > 0.0 && micro < 0.999_999 {
        anyhow::bail!("{field}: {credits} is less than a micro-credit, 0.000001");
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to lie within 0 and 1e15")]
    Ok(micro.round() as u64)
}

/// Runs `spillway key …`.
pub(crate) async fn run(command: KeyCommand) -> Result<Verdict> {
    match command {
        KeyCommand::Create(arguments) => create(&arguments).await,
        KeyCommand::List(arguments) => {
            let keys = arguments.place.admin()?.get("/admin/keys").await?;
            let columns = [
                ("ID", "/id", Show::Plain),
                ("NAME", "/name", Show::Plain),
                ("PREFER", "/prefer", Show::Plain),
                ("SPENT", "/spent_micro", Show::Money),
                ("RESERVED", "/reserved_micro", Show::Money),
                ("BUDGET", "/budget_micro", Show::Money),
                ("REVOKED", "/revoked", Show::Flag),
            ];
            let none = "no keys yet; make one with `spillway key create`";
            table::list(&keys, "keys", arguments.listing.json, &columns, none)?;
            Ok(Verdict::Done)
        }
        KeyCommand::Revoke(arguments) => {
            if arguments.id.is_empty() || !arguments.id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                anyhow::bail!("ID: {:?} is no key id: those are hexadecimal digits", arguments.id);
            }
            arguments.place.admin()?.delete(&format!("/admin/keys/{}", arguments.id)).await?;
            table::line(&format!("key {} is revoked", arguments.id))?;
            Ok(Verdict::Done)
        }
    }
}

async fn create(arguments: &CreateArguments) -> Result<Verdict> {
    let mut wanted = json!({"name": arguments.name});
    let prefer = match arguments.prefer {
        Prefer::OwnFirst => "own_first",
        Prefer::Own => "own",
        Prefer::Any => "any",
    };
    wanted["prefer"] = prefer.into();
    if let Some(budget) = arguments.budget {
        wanted["budget_micro"] = micro("--budget", budget)?.into();
    }
    if !arguments.models.is_empty() {
        wanted["models"] = arguments.models.clone().into();
    }
    if let Some(concurrency) = arguments.concurrency {
        wanted["concurrency"] = concurrency.into();
    }
    if let Some(target_ms) = arguments.target_ms {
        wanted["target_ms"] = target_ms.into();
    }
    let admin = arguments.place.admin()?;
    let made = admin.post("/admin/keys", &wanted).await?;
    if arguments.listing.json {
        table::line(&serde_json::to_string_pretty(&made)?)?;
        return Ok(Verdict::Done);
    }
    let secret = made.get("secret").and_then(Value::as_str).context("the node's answer has no `secret`")?;
    table::line(secret)?;
    let budget = match made.get("budget_micro").and_then(Value::as_u64) {
        Some(budget) => format!("may spend {} in all", Credits::new(budget)),
        None => "has no budget: it may spend the account's whole balance".into(),
    };
    eprintln!("This is shown once. The key {budget}.");
    if let Some(base_url) = &admin.ready().base_url {
        eprintln!("Base URL: {base_url}");
    }
    Ok(Verdict::Done)
}

#[cfg(test)]
mod tests {
    use super::micro;

    #[test]
    fn credits_become_micro_credits_or_an_error_that_names_the_field() {
        let cases: &[(f64, Option<u64>)] = &[
            (0.0, Some(0)),
            (0.000_001, Some(1)),
            (1.5, Some(1_500_000)),
            (1e9, Some(1_000_000_000_000_000)),
            (0.000_000_1, None),
            (-1.0, None),
            (2e9, None),
            (f64::NAN, None),
            (f64::INFINITY, None),
        ];
        for (credits, expected) in cases {
            let got = micro("--budget", *credits);
            assert_eq!(got.as_ref().ok(), expected.as_ref(), "{credits}");
            if let Err(error) = got {
                assert!(error.to_string().starts_with("--budget: "), "{error}");
            }
        }
    }
}
