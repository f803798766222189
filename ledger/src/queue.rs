//! Entries that wait for a block, in the order they came.
//! Invariant: bounded in all, for each account, and for entries that only others could make valid; so neither a stranger
//! nor one account can keep everybody else out.

use std::collections::{BTreeMap, VecDeque};

use crate::block::ENTRIES_MAX;
use crate::entry::Entry;
use crate::keys::{Account, Digest};
use crate::signed::Signed;

/// The most entries that wait.
pub const QUEUE_MAX: usize = 8 * ENTRIES_MAX;
/// The most entries of one account that wait.
pub const QUEUE_ACCOUNT_MAX: usize = ENTRIES_MAX;
/// The most entries that wait although they could not be applied when they came.
pub const QUEUE_HOPEFUL_MAX: usize = 256;

/// Names an entry that waits for a block: the digest of the signed entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub Digest);

/// One entry that waits.
#[derive(Clone, Debug)]
struct Waiting {
    entry: Signed<Entry>,
    ticket: Ticket,
    /// Could not be applied when it came, but what waits before it, or time, may change that.
    hopeful: bool,
}

/// The queue.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queue {
    waiting: VecDeque<Waiting>,
    tickets: BTreeMap<(Account, [u8; 16]), Ticket>,
    of_account: BTreeMap<Account, usize>,
    hopeful: usize,
}

impl Queue {
    /// The ticket of the entry of the same account and business id, where one waits.
    pub(crate) fn ticket(&self, entry: &Entry) -> Option<Ticket> {
        self.tickets.get(&(entry.account, entry.business)).copied()
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// How many entries of `account` wait.
    pub(crate) fn of_account(&self, account: &Account) -> u64 {
        self.of_account.get(account).map_or(0, |count| *count as u64)
    }

    /// Whether one more of `account` may wait.
    pub(crate) fn has_room(&self, account: &Account, hopeful: bool) -> bool {
        let of_account = self.of_account.get(account).copied().unwrap_or(0);
        let hopeful_room = !hopeful || self.hopeful < QUEUE_HOPEFUL_MAX;
        self.waiting.len() < QUEUE_MAX && of_account < QUEUE_ACCOUNT_MAX && hopeful_room
    }

    /// Adds an entry for which there is room and whose business id does not wait yet.
    pub(crate) fn push(&mut self, entry: Signed<Entry>, hopeful: bool) -> Ticket {
        let ticket = Ticket(entry.digest());
        let account = entry.value().account;
        self.tickets.insert((account, entry.value().business), ticket);
        *self.of_account.entry(account).or_default() += 1;
        self.hopeful += usize::from(hopeful);
        self.waiting.push_back(Waiting { entry, ticket, hopeful });
        ticket
    }

    /// The first entries, as many as a block may have.
    pub(crate) fn first_block(&self) -> impl Iterator<Item = (&Signed<Entry>, Ticket)> {
        self.waiting.iter().take(ENTRIES_MAX).map(|waiting| (&waiting.entry, waiting.ticket))
    }

    /// Forgets the first `count` entries.
    pub(crate) fn drop_first(&mut self, count: usize) {
        for Waiting { entry, hopeful, .. } in self.waiting.drain(..count) {
            let account = entry.value().account;
            self.tickets.remove(&(account, entry.value().business));
            self.hopeful -= usize::from(hopeful);
            if let Some(count) = self.of_account.get_mut(&account) {
                *count -= 1;
                if *count == 0 {
                    self.of_account.remove(&account);
                }
            }
        }
    }

    /// Keeps only the entries that `keep` says yes to; it is told how many of the account were kept before.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&Signed<Entry>, u64) -> bool) {
        for Waiting { entry, hopeful, .. } in std::mem::take(self).waiting {
            let before = self.of_account(&entry.value().account);
            if keep(&entry, before) {
                self.push(entry, hopeful);
            }
        }
    }
}
