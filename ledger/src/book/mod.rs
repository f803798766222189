//! The book: who has what, as a fold over signed entries.
//! Invariant: balances, bonds, locked deposits and payouts under way are what was minted less what was burned, and every
//! provider has at least its share of what its sessions settled. `apply` checks everything, then changes everything; an
//! error changes nothing.

mod committee;
mod enact;
mod journal;
mod judge;
mod outcome;
mod payouts;
mod read;
mod sessions;
mod stake;

use std::collections::{BTreeMap, BTreeSet};

pub use committee::{ELECTIONS_PER_VOTER_MAX, Election};
pub use judge::EXPIRY_HEIGHTS_MAX;
pub use outcome::{Applied, ApplyError, SessionState, Violation};
pub use payouts::PAYOUTS_MAX;
pub use sessions::{OPEN_SESSIONS_MAX, SESSION_MS_MAX};

use crate::block::ValidatorSet;
use crate::entry::Entry;
use crate::genesis::Genesis;
use crate::keys::{Account, Digest};
use crate::money::Credits;
use crate::payout::{PayoutId, PayoutState};
use crate::screen::Screened;
use crate::signed::Signed;
use crate::state::{AccountState, SumTree};
use crate::voucher::{NetworkId, SessionId};
use committee::Votes;
use journal::{Journal, Undo};
use wincode::{SchemaRead, SchemaWrite};

/// For how many blocks a closed session stays readable.
pub const CLOSED_KEPT_BLOCKS: u64 = 1_000;

/// An account's own name for one thing it does.
type Business = (Account, [u8; 16]);

/// What the book holds of one account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AccountRow {
    slot: usize,
    state: AccountState,
}

/// What the book holds of one session.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SessionRow {
    /// Its place in the tree of what is locked, while it is open.
    slot: Option<usize>,
    state: SessionState,
}

/// What the book holds of one payout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PayoutRow {
    slot: usize,
    state: PayoutState,
}

/// A business id that was used.
#[derive(Clone, Copy, Debug)]
struct Done {
    height: u64,
    expires_height: u64,
}

/// Running totals over the whole history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Totals {
    /// Entries applied.
    pub entries: u64,
    /// Sessions opened.
    pub sessions: u64,
    /// Credits minted.
    pub minted: Credits,
    /// Credits burned: paid out in cash.
    pub burned: Credits,
    /// Credits locked in open sessions now.
    pub locked: Credits,
    /// Credits locked in payouts that wait for the issuer now.
    pub payouts: Credits,
    /// Credits at stake now, those asked back included.
    pub bonded: Credits,
    /// Credits that were taken for offences.
    pub slashed: Credits,
    /// Credits settled, all shares together.
    pub settled_gross: Credits,
    /// Credits that providers had of that.
    pub settled_provider: Credits,
    /// The epoch that `epoch_minted` counts.
    epoch: u64,
    /// Credits minted in that epoch.
    epoch_minted: Credits,
}

/// Who has what.
///
/// Memory: one row for each account that ever held credits, one for each open session (an account opens at most
/// [`OPEN_SESSIONS_MAX`]) and each payout under way (at most [`PAYOUTS_MAX`] each), closed sessions for
/// [`CLOSED_KEPT_BLOCKS`], business ids until their entry's expiry height (at most [`EXPIRY_HEIGHTS_MAX`] ahead),
/// elections until the height they are for (at most [`ELECTIONS_PER_VOTER_MAX`] votes each), and 32 bytes for each deposit
/// the issuer ever minted or burned, and for each offence ever punished.
#[derive(Clone, Debug)]
pub struct Book {
    genesis: Genesis,
    network: NetworkId,
    height: u64,
    accounts: BTreeMap<Account, AccountRow>,
    account_tree: SumTree,
    /// Which stakes come back when.
    due: BTreeSet<(u64, Account)>,
    sessions: BTreeMap<SessionId, SessionRow>,
    payouts: BTreeMap<PayoutId, PayoutRow>,
    /// Open sessions and payouts under way.
    lock_tree: SumTree,
    closed: BTreeSet<(u64, SessionId)>,
    done: BTreeMap<Business, Done>,
    done_until: BTreeSet<(u64, Business)>,
    references: BTreeSet<Digest>,
    offences: BTreeSet<Digest>,
    validators: ValidatorSet,
    elections: BTreeMap<Election, Votes>,
    totals: Totals,
    /// What the changes since [`Book::begin`] replaced; `None` where nothing is being tried.
    journal: Option<Journal>,
}

impl Book {
    /// The empty book of a network.
    ///
    /// # Panics
    /// If the genesis is not valid: see [`Genesis::validate`].
    pub fn new(genesis: &Genesis) -> Book {
        Book {
            genesis: Genesis { bootstrap: Vec::new(), ..genesis.clone() },
            network: genesis.network_id(),
            height: 0,
            accounts: BTreeMap::new(),
            account_tree: SumTree::default(),
            due: BTreeSet::new(),
            sessions: BTreeMap::new(),
            payouts: BTreeMap::new(),
            lock_tree: SumTree::default(),
            closed: BTreeSet::new(),
            done: BTreeMap::new(),
            done_until: BTreeSet::new(),
            references: BTreeSet::new(),
            offences: BTreeSet::new(),
            validators: genesis.first_validators(),
            elections: BTreeMap::new(),
            totals: Totals::default(),
            journal: None,
        }
    }

    /// Applies an entry as part of the block at `height` with time `time_ms`, beginning that block if it is a new one: see
    /// [`Book::begin_block`]. Settling twice is settling once; an error changes nothing else. Heights and times must not
    /// go back from one call to the next.
    pub fn apply(&mut self, entry: &Signed<Entry>, height: u64, time_ms: u64) -> Result<Applied, ApplyError> {
        self.apply_screened(&Screened::new(entry.clone()), height, time_ms)
    }

    /// As [`Book::apply`], for an entry whose signatures have been looked at.
    pub fn apply_screened(&mut self, entry: &Screened, height: u64, time_ms: u64) -> Result<Applied, ApplyError> {
        self.begin_block(height, time_ms);
        let applied = self.judge_screened(entry, height, time_ms, 0)?;
        // Every check has passed: nothing below can fail.
        self.enact(entry.entry().value(), &applied, height);
        Ok(applied)
    }

    /// Does what is due at a new height and time, whatever entries follow: stakes come back, elected validators take
    /// their places, and what no rule looks at any more is forgotten. Beginning a block twice is beginning it once.
    ///
    /// # Panics
    /// If `height` is below the last one.
    pub fn begin_block(&mut self, height: u64, time_ms: u64) {
        if height == self.height {
            return;
        }
        assert!(height > self.height, "heights only grow");
        self.install_elected(height);
        self.height = height;
        while let Some(&(due_ms, account)) = self.due.first()
            && due_ms <= time_ms
        {
            self.release(account);
        }
        while let Some(&(until, business)) = self.done_until.first()
            && until < height
        {
            self.done_until.pop_first();
            self.done.remove(&business);
        }
        while let Some(&(closed, session)) = self.closed.first()
            && closed + CLOSED_KEPT_BLOCKS < height
        {
            self.closed.pop_first();
            self.sessions.remove(&session);
        }
    }

    fn credit(&mut self, account: Account, amount: Credits) {
        if !amount.is_zero() {
            self.change_account(account, |row| row.balance = plus(row.balance, amount));
        }
    }

    fn change_totals(&mut self, change: impl FnOnce(&mut Totals)) {
        self.note(Undo::Totals(self.totals));
        change(&mut self.totals);
    }

    fn change_account(&mut self, account: Account, change: impl FnOnce(&mut AccountState)) {
        let before = self.accounts.get(&account).copied();
        let mut state = before.map(|row| row.state).unwrap_or_default();
        change(&mut state);
        self.write_account(account, Some(state));
        self.note(Undo::Account(account, before.map(|row| row.state)));
    }

    fn account(&self, account: &Account) -> AccountState {
        self.accounts.get(account).map(|row| row.state).unwrap_or_default()
    }
}

/// A sum that fits because all credits together do.
fn plus(a: Credits, b: Credits) -> Credits {
    a.checked_add(b).expect("no part exceeds what was minted")
}

/// A difference that was checked before.
fn minus(a: Credits, b: Credits) -> Credits {
    a.checked_sub(b).expect("what is taken was seen to be there")
}
