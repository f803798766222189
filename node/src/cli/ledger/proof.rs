//! `spillway ledger proof`: a file that shows something to anyone who knows the network's id.
//! Invariant: what is written was verified just before, as its reader will.

use super::{Listing, Place, Verdict, table};
use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;
use spillway_ledger::{Account, JobId, Proof};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct ProofArguments {
    /// The account, in hex; without it, the node's own
    #[arg(conflicts_with = "receipt")]
    account: Option<Account>,
    /// Instead of an account: that this job was done, and is paid for by a settlement
    #[arg(long, value_name = "JOB")]
    receipt: Option<JobId>,
    /// Which part of the job; one that was continued elsewhere has several
    #[arg(long, default_value_t = 0, requires = "receipt")]
    leg: u32,
    /// Where the proof goes; an existing file is not replaced
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    listing: Listing,
}

/// Runs `spillway ledger proof`.
pub(crate) async fn run(arguments: &ProofArguments) -> Result<Verdict> {
    let ProofArguments { account, receipt, leg, out, place, listing } = arguments;
    let path = match (receipt, account) {
        (Some(job), _) => format!("/admin/ledger/proof?job={job}&leg={leg}"),
        (None, Some(account)) => format!("/admin/ledger/proof?account={account}"),
        (None, None) => "/admin/ledger/proof".into(),
    };
    let bytes = place.admin()?.bytes(&path).await?;
    let proven = Proof::verify_bytes(&bytes).context("the node's proof does not hold")?;
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(out)?;
        file.write_all(&bytes)?;
        file.sync_all()
    };
    write().with_context(|| format!("--out: cannot write {}", out.display()))?;
    if listing.json {
        let told = json!({
            "out": out, "bytes": bytes.len(), "network": proven.network, "height": proven.height,
        });
        table::line(&serde_json::to_string_pretty(&told)?)?;
    } else {
        table::line(&format!("wrote {} bytes to {}: as of block {}", bytes.len(), out.display(), proven.height))?;
        table::line(&format!("network  {}", proven.network))?;
    }
    Ok(Verdict::Done)
}
