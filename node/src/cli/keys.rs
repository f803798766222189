//! `spillway key`: API keys of a running node.
//! Invariant: a key's secret is printed once, when it is made; the node keeps only its hash.

use super::limits::{Clear, LimitArguments, checked_id};
use super::table::{self, Column, Show};
use super::{Listing, Place, Verdict};
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use spillway_ledger::Credits;
use spillway_testnet::Admin;

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key and print it, once
    Create(CreateArguments),
    /// Show every key, its budget and what it spent
    List(ListArguments),
    /// Show all that is known of one key
    Show(OneArguments),
    /// Change a key's limits; what is not named stays
    Update(UpdateArguments),
    /// Give a key a new secret and print it, once; the one before still opens for a while
    Rotate(RotateArguments),
    /// Stop a key at once, for good
    Revoke(RevokeArguments),
}

#[derive(Debug, Args)]
pub(crate) struct CreateArguments {
    /// What you call it
    #[arg(long, default_value = "default")]
    name: String,
    /// The project it belongs to, from `spillway project list`
    #[arg(long, value_name = "ID")]
    project: Option<String>,
    #[command(flatten)]
    limits: LimitArguments,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    listing: Listing,
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    #[command(flatten)]
    pub(super) place: Place,
    #[command(flatten)]
    pub(super) listing: Listing,
}

#[derive(Debug, Args)]
pub(crate) struct OneArguments {
    /// Its id, from the list
    pub(super) id: String,
    #[command(flatten)]
    pub(super) place: Place,
    #[command(flatten)]
    pub(super) listing: Listing,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateArguments {
    /// The key's id, from `spillway key list`
    id: String,
    /// What you call it
    #[arg(long)]
    name: Option<String>,
    /// The project it belongs to
    #[arg(long, value_name = "ID")]
    project: Option<String>,
    /// Refuse it until that is taken back with `--block false`
    #[arg(long, value_name = "BOOL")]
    block: Option<bool>,
    /// A limit to take away; repeat for more
    #[arg(long, value_enum, value_name = "LIMIT")]
    clear: Vec<Clear>,
    #[command(flatten)]
    limits: LimitArguments,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    listing: Listing,
}

#[derive(Debug, Args)]
pub(crate) struct RotateArguments {
    /// The key's id, from `spillway key list`
    id: String,
    /// How long the secret before still opens, in hours; 0 ends it at once
    #[arg(long, value_name = "HOURS", default_value_t = 24)]
    overlap_h: u64,
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

/// Columns that keys and projects share.
pub(super) const LIMITS: [Column; 10] = [
    ("SPENT", "/spent_micro", Show::Money),
    ("RESERVED", "/reserved_micro", Show::Money),
    ("BUDGET", "/budget_micro", Show::Money),
    ("PER DAY", "/budget_day_micro", Show::Money),
    ("PER WEEK", "/budget_week_micro", Show::Money),
    ("PER MONTH", "/budget_month_micro", Show::Money),
    ("REQ/MIN", "/requests_per_minute", Show::Plain),
    ("TOK/MIN", "/tokens_per_minute", Show::Plain),
    ("JOBS", "/concurrency", Show::Plain),
    ("BLOCKED", "/blocked", Show::Flag),
];

/// Prints one key or project, as JSON or as its fields.
pub(super) fn show(view: &Value, json: bool) -> Result<()> {
    if json {
        return table::line(&serde_json::to_string_pretty(view)?);
    }
    let fields = view.as_object().context("the node's answer is no object")?;
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
        let shown = match (name.ends_with("_micro"), value) {
            (true, value) if value.is_u64() => Credits::new(value.as_u64().unwrap_or_default()).to_string(),
            (_, Value::String(text)) => text.clone(),
            (_, value) => value.to_string(),
        };
        table::line(&format!("{:20} {shown}", name.trim_end_matches("_micro")))?;
    }
    Ok(())
}

/// Runs `spillway key …`.
pub(crate) async fn run(command: KeyCommand) -> Result<Verdict> {
    match command {
        KeyCommand::Create(arguments) => create(&arguments).await?,
        KeyCommand::List(arguments) => {
            let keys = arguments.place.admin()?.get("/admin/keys").await?;
            let mut columns = vec![
                ("ID", "/id", Show::Plain),
                ("NAME", "/name", Show::Plain),
                ("PROJECT", "/project", Show::Plain),
                ("PREFER", "/prefer", Show::Plain),
            ];
            columns.extend(LIMITS);
            columns.push(("REVOKED", "/revoked", Show::Flag));
            let none = "no keys yet; make one with `spillway key create`";
            table::list(&keys, "keys", arguments.listing.json, &columns, none)?;
        }
        KeyCommand::Show(arguments) => {
            let path = format!("/admin/keys/{}", checked_id(&arguments.id)?);
            show(&arguments.place.admin()?.get(&path).await?, arguments.listing.json)?;
        }
        KeyCommand::Update(arguments) => {
            let mut fields = arguments.limits.fields()?;
            for (field, value) in [("name", &arguments.name), ("project", &arguments.project)] {
                if let Some(value) = value {
                    fields.insert(field.into(), value.as_str().into());
                }
            }
            if let Some(block) = arguments.block {
                fields.insert("blocked".into(), block.into());
            }
            fields.extend(arguments.clear.iter().map(|clear| (clear.field().to_owned(), Value::Null)));
            let path = format!("/admin/keys/{}", checked_id(&arguments.id)?);
            show(&arguments.place.admin()?.patch(&path, &fields.into()).await?, arguments.listing.json)?;
        }
        KeyCommand::Rotate(arguments) => {
            let path = format!("/admin/keys/{}/rotate", checked_id(&arguments.id)?);
            let admin = arguments.place.admin()?;
            let overlap_s = arguments.overlap_h.saturating_mul(3600);
            let made = admin.post(&path, &json!({"overlap_s": overlap_s})).await?;
            let then = match arguments.overlap_h {
                0 => "The secret before no longer opens.".into(),
                hours => format!("The secret before still opens for {hours} hours."),
            };
            print_secret(&admin, &made, arguments.listing.json, &then)?;
        }
        KeyCommand::Revoke(arguments) => {
            arguments.place.admin()?.delete(&format!("/admin/keys/{}", checked_id(&arguments.id)?)).await?;
            table::line(&format!("key {} is revoked", arguments.id))?;
        }
    }
    Ok(Verdict::Done)
}

async fn create(arguments: &CreateArguments) -> Result<()> {
    let mut wanted = arguments.limits.fields()?;
    wanted.insert("name".into(), arguments.name.as_str().into());
    if let Some(project) = &arguments.project {
        wanted.insert("project".into(), project.as_str().into());
    }
    let admin = arguments.place.admin()?;
    let made = admin.post("/admin/keys", &wanted.into()).await?;
    let windows = [
        ("budget_micro", "in all"),
        ("budget_day_micro", "a day"),
        ("budget_week_micro", "a week"),
        ("budget_month_micro", "a month"),
    ];
    let budget = |(field, words): &(&str, &str)| {
        let micro = made.get(*field).and_then(Value::as_u64)?;
        Some(format!("{} {words}", Credits::new(micro)))
    };
    let budgets: Vec<_> = windows.iter().filter_map(budget).collect();
    let then = match (budgets.as_slice(), &arguments.project) {
        ([], None) => "The key has no budget: it may spend the account's whole balance.".into(),
        ([], Some(project)) => format!("The key has no budget of its own: it may spend what project {project} may."),
        (budgets, _) => format!("The key may spend {}.", budgets.join(", ")),
    };
    print_secret(&admin, &made, arguments.listing.json, &then)
}

/// Prints a secret to standard output, and the words for people beside it.
fn print_secret(admin: &Admin, made: &Value, json: bool, then: &str) -> Result<()> {
    if json {
        return table::line(&serde_json::to_string_pretty(made)?);
    }
    table::line(made.get("secret").and_then(Value::as_str).context("the node's answer has no `secret`")?)?;
    eprintln!("This is shown once. {then}");
    if let Some(base_url) = &admin.ready().base_url {
        eprintln!("Base URL: {base_url}");
    }
    Ok(())
}
