//! Drives the machine that asks for cash: tells it how the account is after each block, and does what it says.
//! Invariant: a request is on the disk before it is on its way, and nothing is decided here.

use super::Payee;
use crate::books::{Books, EntryRefused};
use anyhow::Context as _;
use spillway_ledger::store::{Batch, Store, Table};
use spillway_ledger::{Action, Digest, Genesis};
use spillway_protocol::earn::{CashEffect, CashEvent, CashPolicy, Cashier, Earn, Intent};
use spillway_protocol::{NodeConfig, Now};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The row of [`Table::Meta`] that keeps a request under way.
const ROW: &[u8] = b"cash-intent";

/// Where cash goes, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cash {
    /// The digest of the payee document.
    pub payee: Digest,
    /// When, and how much.
    pub policy: CashPolicy,
}

impl Cash {
    /// What the settings of the node in `folder` say; `None` if its earnings stay credits.
    ///
    /// # Errors
    /// If a setting does not hold, or the payee file cannot be used; the field is named.
    pub fn of(folder: &Path, config: &NodeConfig, genesis: &Genesis) -> anyhow::Result<Option<Self>> {
        let ledger = &config.ledger;
        match ledger.earn {
            Earn::Credits => Ok(None),
            Earn::Cash => {
                let payee = Payee::read(&folder.join(&ledger.payee)).context("ledger.payee")?;
                let policy = CashPolicy {
                    threshold: ledger.threshold()?,
                    payout_min: genesis.payout_min,
                    rate: ledger.cash_rate,
                    currency: payee.currency,
                };
                Ok(Some(Self { payee: payee.digest(), policy }))
            }
        }
    }
}

/// The request that the last run had under way.
///
/// # Errors
/// If the store cannot be read, or the row is none of ours.
pub fn restore(store: &Store) -> anyhow::Result<Option<Intent>> {
    let row = store.get(Table::Meta, ROW)?;
    row.map(|bytes| Intent::from_bytes(&bytes)).transpose().context("the payout under way cannot be read")
}

struct Clock {
    wall: Duration,
    start: Instant,
}

impl Clock {
    fn now(&self) -> Now {
        Now::default().after(self.wall + self.start.elapsed())
    }
}

/// Runs until the books stop.
pub async fn drive(books: Books, store: Arc<Store>, cash: Cash, kept: Option<Intent>) {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let clock = Clock { wall, start: Instant::now() };
    let mut cashier = Cashier::new(clock.now(), books.account(), cash.payee, cash.policy, kept);
    let mut heights = books.heights();
    loop {
        heights.borrow_and_update();
        cashier.handle(clock.now(), seen(&books));
        while let Some(effect) = cashier.poll() {
            match carry_out(&books, &store, effect).await {
                Ok(Some(event)) => {
                    cashier.handle(clock.now(), event);
                    cashier.handle(clock.now(), seen(&books));
                }
                Ok(None) => {}
                Err(Ended::Stopped) => return,
                Err(Ended::Store(error)) => {
                    tracing::error!(%error, "payouts cannot be kept; none is asked for until the node starts again");
                    return;
                }
            }
        }
        let now = clock.now();
        let due = async {
            match cashier.deadline(now) {
                Some(at) => tokio::time::sleep(at.since(now)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = heights.changed() => if changed.is_err() { return },
            () = due => {}
        }
    }
}

/// How the account is now.
fn seen(books: &Books) -> CashEvent {
    let account = books.account();
    books.read(|book| {
        let state = book.account_state(&account);
        CashEvent::Books { balance: state.balance, waiting: state.payouts > 0, height: book.height() }
    })
}

/// Why nothing more is done.
enum Ended {
    Stopped,
    Store(anyhow::Error),
}

async fn carry_out(books: &Books, store: &Arc<Store>, effect: CashEffect) -> Result<Option<CashEvent>, Ended> {
    let mut batch = Batch::new();
    match effect {
        CashEffect::Keep(intent) => batch.put(Table::Meta, ROW, intent.to_bytes()),
        CashEffect::Forget => batch.delete(Table::Meta, ROW),
        CashEffect::Request(Intent { business, amount, payee, .. }) => {
            return match books.submit(business, Action::PayoutRequest { amount, payee }).await {
                Ok(height) => {
                    tracing::info!(%amount, height, "asked to be paid in cash");
                    Ok(Some(CashEvent::In))
                }
                Err(EntryRefused::Stopped) => Err(Ended::Stopped),
                Err(error @ (EntryRefused::Ledger(_) | EntryRefused::Malformed(_))) => {
                    tracing::warn!(%amount, %error, "the ledger refuses a payout");
                    Ok(Some(CashEvent::Refused))
                }
            };
        }
    };
    let store = Arc::clone(store);
    let kept = tokio::task::spawn_blocking(move || store.commit(batch)).await;
    kept.map_err(anyhow::Error::from).and_then(|kept| kept.map_err(Into::into)).map_err(Ended::Store)?;
    Ok(None)
}
