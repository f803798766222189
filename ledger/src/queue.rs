//! Entries that wait for a block, in the order they came.
//! Invariant: bounded in all, for each account, and for entries that only others could make valid; so neither a stranger
//! nor one account can keep everybody else out.

use std::collections::{BTreeMap, VecDeque};

use crate::block::ENTRIES_MAX;
use crate::codec::Document;
use crate::entry::Entry;
use crate::keys::{Account, Digest};
use crate::screen::Screened;
use crate::signed::SignedBytes;

/// The most entries that wait.
pub const QUEUE_MAX: usize = 8 * ENTRIES_MAX;
/// The most entries of one account that wait.
pub const QUEUE_ACCOUNT_MAX: usize = ENTRIES_MAX;
/// The most entries that wait although they could not be applied when they came.
pub const QUEUE_HOPEFUL_MAX: usize = 256;

/// Names an entry that waits for a block: the digest of the signed entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub Digest);

impl Ticket {
    /// The ticket of a signed entry in its wire form.
    pub fn of(wire: &SignedBytes) -> Ticket {
        Ticket(Digest::of(Entry::DOMAIN, &[wire.signer.as_bytes(), &wire.document]))
    }
}

/// One entry that waits.
#[derive(Clone, Debug)]
struct Waiting {
    entry: Screened,
    ticket: Ticket,
    /// Could not be applied when it came, but what waits before it, or time, may change that.
    hopeful: bool,
}

/// The queue.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queue {
    /// By the digest of the entry's wire form.
    waiting: BTreeMap<Digest, Waiting>,
    order: VecDeque<Digest>,
    tickets: BTreeMap<(Account, [u8; 16]), Ticket>,
    of_account: BTreeMap<Account, usize>,
    hopeful: usize,
}

impl Queue {
    /// The ticket of the entry of the same account and business id, where one waits.
    pub(crate) fn ticket(&self, entry: &Entry) -> Option<Ticket> {
        self.tickets.get(&(entry.account, entry.business)).copied()
    }

    /// The entry with this wire form, where it waits.
    pub(crate) fn known(&self, wire: &Digest) -> Option<&Screened> {
        self.waiting.get(wire).map(|waiting| &waiting.entry)
    }

    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    /// How many entries of `account` wait.
    pub(crate) fn of_account(&self, account: &Account) -> u64 {
        self.of_account.get(account).map_or(0, |count| *count as u64)
    }

    /// Whether one more of `account` may wait.
    pub(crate) fn has_room(&self, account: &Account, hopeful: bool) -> bool {
        let of_account = self.of_account.get(account).copied().unwrap_or(0);
        let hopeful_room = !hopeful || self.hopeful < QUEUE_HOPEFUL_MAX;
        self.order.len() < QUEUE_MAX && of_account < QUEUE_ACCOUNT_MAX && hopeful_room
    }

    /// Adds an entry for which there is room and whose business id does not wait yet.
    pub(crate) fn push(&mut self, entry: Screened, hopeful: bool) -> Ticket {
        let ticket = Ticket::of(entry.entry().wire());
        let account = entry.entry().value().account;
        self.tickets.insert((account, entry.entry().value().business), ticket);
        *self.of_account.entry(account).or_default() += 1;
        self.hopeful += usize::from(hopeful);
        let wire = entry.entry().wire().digest();
        self.order.push_back(wire);
        self.waiting.insert(wire, Waiting { entry, ticket, hopeful });
        ticket
    }

    /// The entries, the oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Screened, Ticket)> {
        self.order.iter().map(|wire| &self.waiting[wire]).map(|waiting| (&waiting.entry, waiting.ticket))
    }

    /// Forgets the first `count` entries.
    pub(crate) fn drop_first(&mut self, count: usize) {
        for wire in self.order.drain(..count).collect::<Vec<_>>() {
            self.forget(&wire);
        }
    }

    /// Keeps only the entries that `keep` says yes to; it is told how many of the account were kept before.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&Screened, u64) -> bool) {
        let mut kept: BTreeMap<Account, u64> = BTreeMap::new();
        for wire in std::mem::take(&mut self.order) {
            let entry = &self.waiting[&wire].entry;
            let before = kept.entry(entry.entry().value().account).or_default();
            if keep(entry, *before) {
                *before += 1;
                self.order.push_back(wire);
            } else {
                self.forget(&wire);
            }
        }
    }

    fn forget(&mut self, wire: &Digest) {
        let Waiting { entry, hopeful, .. } = self.waiting.remove(wire).expect("what is in the order waits");
        let entry = entry.entry().value();
        self.tickets.remove(&(entry.account, entry.business));
        self.hopeful -= usize::from(hopeful);
        if let Some(count) = self.of_account.get_mut(&entry.account) {
            *count -= 1;
            if *count == 0 {
                self.of_account.remove(&entry.account);
            }
        }
    }
}
