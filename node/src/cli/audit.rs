//! `spillway audit`: the log of the operator's actions, shown and verified.
//! Invariant: it reads files; a running node is asked only for the end that its log has, to compare.

use super::{Listing, Place, Verdict, table};
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde_json::json;
use spillway_ledger::store::Store;
use spillway_ledger::{NodeId, StoreError};
use spillway_node::audit::{self, AuditRecord, HEAD_FILE, Head, LOG_FILE};
use spillway_node::keystore;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Print the operator's actions: who, what, when, and what it changed
    Show(ShowArguments),
    /// Check that no line of the log was changed, removed, added or cut off
    Verify(VerifyArguments),
    /// Print the log's end, as SEQ:HASH: keep it elsewhere, and give it to `verify --head` later
    Head(HeadArguments),
    /// Begin a new log where the old one is lost; its first line says so. The node must not run
    Restart(RestartArguments),
}

#[derive(Debug, Args)]
pub(crate) struct ShowArguments {
    /// Only actions at this time or later: RFC 3339, a date (UTC), or an age such as 24h, 7d, 90m
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only actions whose name begins so, such as `key` or `key.create`
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    listing: Listing,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArguments {
    /// An end that the log had once, as `spillway audit head` or a SIEM has it; repeat for more
    #[arg(long, value_name = "SEQ:HASH")]
    head: Vec<Head>,
    /// The node whose log it must be, in hex; without it, the one whose node.key is in the folder
    #[arg(long, value_name = "NODE")]
    node: Option<NodeId>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    listing: Listing,
}

#[derive(Debug, Args)]
pub(crate) struct HeadArguments {
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
pub(crate) struct RestartArguments {
    /// Why the old log is given up
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    place: Place,
}

/// Runs `spillway audit …`.
pub(crate) async fn run(command: AuditCommand) -> Result<Verdict> {
    match command {
        AuditCommand::Show(arguments) => show(&arguments),
        AuditCommand::Verify(arguments) => verify(&arguments).await,
        AuditCommand::Head(arguments) => {
            let folder = &arguments.place.folder;
            let head = audit::signed_head(folder, &node_of(folder)?)?.head;
            table::line(&head.to_string())?;
            Ok(Verdict::Done)
        }
        AuditCommand::Restart(arguments) => {
            let folder = &arguments.place.folder;
            let store = Arc::new(Store::open_noted(folder.join("node.redb")).context("node.redb")?);
            let key = keystore::load(&folder.join("node.key"))?;
            let head = audit::restart(folder, store, key, &arguments.reason)?;
            table::line(&format!("a new log begins at {head}"))?;
            Ok(Verdict::Done)
        }
    }
}

fn node_of(folder: &Path) -> Result<NodeId> {
    Ok(NodeId(keystore::load(&folder.join("node.key"))?.public()))
}

fn told(record: &AuditRecord) -> String {
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(record.time_ms);
    let time = OffsetDateTime::from(time).format(&Rfc3339).unwrap_or_default();
    let from = record.who.from.as_deref().unwrap_or("-");
    let mut line = format!(
        "{:>6}  {time}  {} {from}  {}  {}  {}",
        record.seq, record.who.with, record.action, record.what, record.result
    );
    if !record.before.is_null() || !record.after.is_null() {
        line.push_str(&format!("\n        {} -> {}", record.before, record.after));
    }
    line
}

fn show(arguments: &ShowArguments) -> Result<Verdict> {
    let path = arguments.place.folder.join(LOG_FILE);
    let log = File::open(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    let now = OffsetDateTime::from(SystemTime::now());
    let since = arguments.since.as_deref().map(|text| super::jobs::unix_ms("--since", text, now, -1)).transpose()?;
    let wanted = |record: &AuditRecord| {
        since.is_none_or(|since| record.time_ms >= since)
            && arguments.action.as_ref().is_none_or(|action| record.action.starts_with(action.as_str()))
    };
    let mut printed = Ok(());
    let scanned = audit::scan(log, |record, line| {
        if printed.is_ok() && wanted(record) {
            printed = if arguments.listing.json { table::line(line) } else { table::line(&told(record)) };
        }
    });
    printed?;
    if let Err(fault) = scanned {
        eprintln!("error: {fault}");
        return Ok(Verdict::Failed);
    }
    Ok(Verdict::Done)
}

/// What else knows the log's end: the running node, or the store of one that is stopped.
async fn anchor(place: &Place) -> Result<Option<(Head, &'static str)>> {
    let store = place.folder.join("node.redb");
    if let Ok(admin) = place.admin()
        && let Ok(head) = admin.get("/admin/audit/head").await
    {
        return Ok(Some((
            serde_json::from_value(head).context("the node's head of its audit log")?,
            "the running node",
        )));
    }
    if !store.exists() {
        return Ok(None);
    }
    match Store::open_read_only(store) {
        Ok(store) => Ok(audit::kept_head(&store)?.map(|head| (head, "node.redb"))),
        // A node runs that has no admin API.
        Err(StoreError::InUse(_)) => Ok(None),
        Err(error) => Err(error).context("node.redb"),
    }
}

async fn verify(arguments: &VerifyArguments) -> Result<Verdict> {
    let folder = &arguments.place.folder;
    let node = match arguments.node {
        Some(node) => node,
        None => node_of(folder)?,
    };
    let mut anchors: Vec<(Head, &'static str)> = arguments.head.iter().map(|head| (*head, "--head")).collect();
    let kept = anchor(&arguments.place).await?;
    anchors.extend(kept);
    match audit::verify(folder, &node, &anchors) {
        Ok(found) => {
            let by: Vec<&str> = std::iter::once(HEAD_FILE).chain(anchors.iter().map(|(_, by)| *by)).collect();
            if arguments.listing.json {
                let told =
                    json!({"verified": true, "records": found.head.seq, "head": found.head.to_string(), "by": by});
                table::line(&told.to_string())?;
            } else {
                table::line(&format!(
                    "{} records, to {}; compared with {}",
                    found.head.seq,
                    found.head,
                    by.join(", ")
                ))?;
            }
            Ok(Verdict::Done)
        }
        Err(fault) => {
            if arguments.listing.json {
                table::line(&json!({"verified": false, "fault": fault.to_string()}).to_string())?;
            } else {
                eprintln!("error: the audit log does not verify: {fault}");
            }
            Ok(Verdict::Failed)
        }
    }
}
