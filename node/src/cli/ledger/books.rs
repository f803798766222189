//! Where a command reads the books: from the node that has them open, or from a folder that none has.
//! Invariant: a folder is verified as a whole before anything in it is told, and not a byte of it is written.

use super::super::Place;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use spillway_ledger::chain::LEDGER_FILE;
use spillway_ledger::{Account, CertifiedBlock, Genesis, Store, Table, verify_folder};
use spillway_node::gateway::desk::AccountStatus;
use spillway_node::gateway::ledger_log::{LogQuery, Reader};
use spillway_testnet::Admin;
use spillway_testnet::genesis::{GENESIS_FILE, read};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};

/// Blocks read at a time.
const PAGE: usize = 64;
/// Lines told of a folder at most.
const LINES_MAX: usize = 1_000_000;

/// The books, open somewhere.
pub(super) enum Books {
    /// In a running node.
    Running(Box<Admin>),
    /// In a folder of files.
    Folder(PathBuf),
}

/// The node that has the books in `folder` open, if one does and answers.
pub(super) async fn keeper(folder: &Path) -> Option<Admin> {
    let admin = Admin::in_folder(folder).ok()?;
    // After a crash the file of a node that ran is still there; nobody answers for it.
    admin.get("/admin/status").await.ok().map(|_| admin)
}

impl Books {
    /// The books in a folder, or of the node that runs there.
    pub(super) async fn open(place: &Place) -> Result<Self> {
        if let Some(admin) = keeper(&place.folder).await {
            return Ok(Self::Running(Box::new(admin)));
        }
        if place.folder.join(LEDGER_FILE).is_file() {
            return Ok(Self::Folder(place.folder.clone()));
        }
        match place.admin() {
            Ok(_) => bail!("the node in {} does not answer, and there is no {LEDGER_FILE}", place.folder.display()),
            Err(error) => Err(error),
        }
    }

    /// How an account is; without one, the node's own.
    pub(super) async fn account(self, account: Option<Account>) -> Result<Value> {
        match (self, account) {
            (Self::Running(admin), Some(account)) => {
                admin.get(&format!("/admin/ledger/account?account={account}")).await
            }
            (Self::Running(admin), None) => admin.get("/admin/ledger/account").await,
            (Self::Folder(_), None) => bail!("ACCOUNT: no node runs there, so it must be named"),
            (Self::Folder(folder), Some(account)) => {
                off_thread(move || {
                    let mut reader = replay(&folder, |_| {})?;
                    let height = reader.next_height() - 1;
                    Ok(json!(AccountStatus::of(reader.book(), account, height)))
                })
                .await
            }
        }
    }

    /// The lines that are wanted.
    pub(super) async fn log(self, query: LogQuery) -> Result<Value> {
        let folder = match self {
            Self::Running(admin) => return admin.get(&format!("/admin/ledger/log?{}", query_text(&query))).await,
            Self::Folder(folder) => folder,
        };
        off_thread(move || {
            let keep = query.limit.unwrap_or(LINES_MAX).min(LINES_MAX).saturating_add(1);
            let mut lines = VecDeque::new();
            replay(&folder, |line| {
                if !query.wants(&line) || (query.limit.is_none() && lines.len() == keep) {
                    return;
                }
                lines.push_back(line);
                if lines.len() > keep {
                    lines.pop_front();
                }
            })?;
            let (entries, more) = query.select(lines.iter(), LINES_MAX);
            Ok(json!({"entries": entries, "more": more}))
        })
        .await
    }
}

/// The query as the admin API takes it.
fn query_text(query: &LogQuery) -> String {
    let LogQuery { from, to, account, kind, session, limit } = query;
    let mut text = format!("from={from}");
    let optional = [
        ("to", to.map(|to| to.to_string())),
        ("account", account.map(|account| account.to_string())),
        ("kind", kind.clone()),
        ("session", session.map(|session| session.to_string())),
        ("limit", limit.map(|limit| limit.to_string())),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            text.push_str(&format!("&{name}={value}"));
        }
    }
    text
}

/// Verifies the books in `folder`, then reads them once more and gives each line to `each`.
fn replay(folder: &Path, mut each: impl FnMut(Value)) -> Result<Reader> {
    verify_folder(folder).with_context(|| format!("the books in {} do not verify", folder.display()))?;
    let genesis: Genesis = read(&folder.join(GENESIS_FILE))?;
    let store = Store::open_read_only(folder.join(LEDGER_FILE))?;
    let mut reader = Reader::new(&genesis);
    loop {
        let rows = store.range(Table::Blocks, &reader.next_height().to_be_bytes(), PAGE)?;
        if rows.is_empty() {
            return Ok(reader);
        }
        for (_, bytes) in rows {
            let block = CertifiedBlock::from_bytes(&bytes).context("a block changed since it was verified")?;
            let height = block.block.header.height;
            reader.read(block).into_iter().for_each(&mut each);
            if reader.next_height() != height + 1 {
                bail!("block {height} changed since it was verified");
            }
        }
    }
}

async fn off_thread<T: Send + 'static>(read: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(read).await.context("the replay was cut short")?
}
