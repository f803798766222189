//! The ledger's side of the world: one authority that makes blocks of the real [`Book`], and each node's clerk that
//! signs entries for it.
//! Invariants: an account has one entry in flight; a clerk tries until its entry is in or refused for good.

use crate::draws::key;
use crate::network::HostId;
use crate::scenario::Scenario;
use crate::timeline::START;
use spillway_ledger::{
    Account, Action, Applied, ApplyError, Book, Credits, Entry, Genesis, NetworkId, Price, PublicKey, SecretKey,
    SessionId, Signed, Split,
};
use spillway_protocol::{Event, LedgerCommand, Now};
use std::collections::{BTreeMap, VecDeque};

/// Entries that may wait for a block; more are dropped and come again.
const PENDING_MAX: usize = 1024;
/// How many blocks an entry may wait.
const EXPIRY_BLOCKS: u64 = 200;
/// How long a clerk waits for an answer before it hands the entry in again, in microseconds.
pub const RESUBMIT_US: u64 = 3_000_000;

/// What the authority says about an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is in the book.
    In,
    /// Sign it anew: the nonce was taken, or it expired.
    Again,
    /// Not now and not later.
    Refused(String),
}

/// A session as everyone who follows the ledger sees it.
#[derive(Clone, Debug)]
pub struct Seen {
    business: [u8; 16],
    /// Who pays.
    pub consumer: Account,
    /// Who is paid.
    pub provider: Account,
    /// Whose vouchers count.
    pub voucher_key: PublicKey,
    /// What was locked, top-ups counted.
    pub deposit: Credits,
    /// The highest price it may pay.
    pub price_cap: Price,
    /// When it ends, Unix milliseconds.
    pub expires_ms: u64,
    /// What has been paid of it, all shares together.
    pub settled: Credits,
    /// What the provider had of that.
    pub to_provider: Credits,
    /// It is over.
    pub closed: bool,
    /// When money was locked in it last: when it was opened, or topped up.
    pub raised_at: Now,
}

impl Seen {
    fn opened(&self, session: SessionId) -> Event {
        Event::SessionOpened {
            session,
            business: self.business,
            consumer: self.consumer,
            provider: self.provider,
            voucher_key: self.voucher_key,
            deposit: self.deposit,
            price_cap: self.price_cap,
            expires_ms: self.expires_ms,
        }
    }

    fn topped_up(&self, session: SessionId) -> Event {
        Event::SessionToppedUp { session, deposit: self.deposit }
    }

    fn settled(&self, session: SessionId) -> Event {
        Event::SessionSettled { session, settled: self.settled, closed: self.closed }
    }
}

/// What a block has for those who wait: verdicts for clerks, news for accounts.
#[derive(Debug, Default)]
pub struct Made {
    /// For the clerk of a node in its life: business id and verdict.
    pub verdicts: Vec<(HostId, u32, [u8; 16], Verdict)>,
    /// For the nodes of an account.
    pub news: Vec<(Account, Event)>,
    /// What happened, for the checks.
    pub applied: Vec<Applied>,
}

/// Who writes the book.
#[derive(Debug)]
pub struct Authority {
    /// The book.
    pub book: Book,
    /// No block before this.
    pub paused_until: Now,
    /// A block is on its way.
    pub block_planned: bool,
    height: u64,
    pending: VecDeque<(HostId, u32, Signed<Entry>)>,
    sessions: BTreeMap<SessionId, Seen>,
}

/// The accounts that are nobody's node.
#[must_use]
pub fn genesis(seed: u64, scenario: &Scenario) -> (Genesis, SecretKey) {
    let secret = |index| SecretKey::generate(key(seed, "ledger", index));
    let account = |index| Account(secret(index).public());
    let genesis = Genesis {
        name: format!("simulation {seed}"),
        time_ms: START.ms(),
        issuer: account(0),
        committee: vec![secret(1).public()],
        treasury: account(2),
        validators: account(3),
        split: Split::default(),
        grace_ms: scenario.market.grace_s * 1000,
        mint_max_per_epoch: Credits::new(1 << 60),
        epoch_blocks: 1000,
        validator_bond: Credits::ZERO,
        unbond_ms: 0,
        payout_min: Credits::ZERO,
        bootstrap: Vec::new(),
    };
    (genesis, secret(0))
}

impl Authority {
    /// A book whose first block mints what each account begins with.
    #[must_use]
    pub fn new(genesis: &Genesis, issuer: &SecretKey, balances: &[(Account, Credits)]) -> Self {
        let mut book = Book::new(genesis);
        for (nonce, (to, amount)) in (0..).zip(balances.iter().filter(|(_, amount)| *amount > Credits::ZERO)) {
            let entry = Entry {
                network: genesis.network_id(),
                account: Account(issuer.public()),
                nonce,
                expires_height: EXPIRY_BLOCKS,
                business: u128::from(nonce).to_le_bytes(),
                action: Action::Mint { to: *to, amount: *amount, reference: format!("start {nonce}") },
            };
            book.apply(&Signed::sign(entry, issuer), 1, START.ms()).expect("scenarios bound what is minted");
        }
        Self {
            book,
            paused_until: START,
            block_planned: false,
            height: 1,
            pending: VecDeque::new(),
            sessions: BTreeMap::new(),
        }
    }

    /// Takes an entry in, unless it is full.
    pub fn submit(&mut self, host: HostId, life: u32, entry: Signed<Entry>) {
        let known = self.pending.iter().any(|(_, _, other)| other.digest() == entry.digest());
        if self.pending.len() < PENDING_MAX && !known {
            self.pending.push_back((host, life, entry));
        }
    }

    /// Whether a block would hold anything.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    /// A session, open or not.
    #[must_use]
    pub fn session(&self, session: &SessionId) -> Option<&Seen> {
        self.sessions.get(session)
    }

    /// Every session there ever was.
    pub fn sessions(&self) -> impl Iterator<Item = (&SessionId, &Seen)> {
        self.sessions.iter()
    }

    /// The last height at which an entry that is signed now may be applied.
    #[must_use]
    pub const fn expiry(&self) -> u64 {
        self.height + EXPIRY_BLOCKS
    }

    /// Makes a block of all that waits.
    pub fn block(&mut self, now: Now) -> Made {
        self.height += 1;
        let mut made = Made::default();
        let mut touched: Vec<Account> = Vec::new();
        for (host, life, entry) in self.pending.drain(..) {
            let business = entry.value().business;
            let verdict = match self.book.apply(&entry, self.height, now.ms()) {
                Ok(applied) => {
                    touched.extend(note(&mut self.sessions, now, business, &applied, &mut made.news));
                    made.applied.push(applied);
                    Verdict::In
                }
                Err(ApplyError::AlreadyApplied { .. }) => Verdict::In,
                Err(ApplyError::BadNonce { .. } | ApplyError::Expired { .. } | ApplyError::TooFarExpiry { .. }) => {
                    Verdict::Again
                }
                Err(error) => Verdict::Refused(error.to_string()),
            };
            made.verdicts.push((host, life, business, verdict));
        }
        touched.sort_unstable();
        touched.dedup();
        made.news.extend(touched.into_iter().map(|account| (account, Event::Balance(self.book.balance(&account)))));
        made
    }

    /// All that an account must know when its node starts.
    #[must_use]
    pub fn snapshot(&self, account: &Account) -> Vec<Event> {
        let mut events = vec![Event::Balance(self.book.balance(account))];
        for (id, seen) in &self.sessions {
            if seen.consumer != *account && seen.provider != *account {
                continue;
            }
            if !seen.closed {
                events.push(seen.opened(*id));
            }
            if seen.closed || seen.settled > Credits::ZERO {
                events.push(seen.settled(*id));
            }
        }
        events
    }
}

/// Notes what an entry did, tells those concerned, and names the accounts whose balance changed.
fn note(
    sessions: &mut BTreeMap<SessionId, Seen>,
    now: Now,
    business: [u8; 16],
    applied: &Applied,
    news: &mut Vec<(Account, Event)>,
) -> Vec<Account> {
    match applied {
        Applied::Minted { to, .. } => vec![*to],
        Applied::Transferred { from, to, .. } => vec![*from, *to],
        Applied::Opened { session, consumer, state } => {
            let seen = Seen {
                business,
                consumer: *consumer,
                provider: state.provider,
                voucher_key: state.voucher_key,
                deposit: state.deposit,
                price_cap: state.price_cap,
                expires_ms: state.expires_ms,
                settled: Credits::ZERO,
                to_provider: Credits::ZERO,
                closed: false,
                raised_at: now,
            };
            news.extend([(*consumer, seen.opened(*session)), (state.provider, seen.opened(*session))]);
            sessions.insert(*session, seen);
            vec![*consumer]
        }
        Applied::Settled { session, claim, parts, last, .. } => {
            let seen = sessions.get_mut(session).expect("the book settles what it has opened");
            seen.settled = *claim;
            seen.to_provider = seen.to_provider.checked_add(parts.provider).expect("below the deposit");
            seen.closed = *last;
            news.extend([seen.consumer, seen.provider].map(|account| (account, seen.settled(*session))));
            vec![seen.consumer, seen.provider]
        }
        Applied::Refunded { session, .. } => {
            let seen = sessions.get_mut(session).expect("the book refunds what it has opened");
            seen.closed = true;
            news.extend([seen.consumer, seen.provider].map(|account| (account, seen.settled(*session))));
            vec![seen.consumer]
        }
        Applied::Closed { session, total, parts, .. } => {
            let seen = sessions.get_mut(session).expect("the book closes what it has opened");
            seen.settled = *total;
            seen.to_provider = seen.to_provider.checked_add(parts.provider).expect("below the deposit");
            seen.closed = true;
            news.extend([seen.consumer, seen.provider].map(|account| (account, seen.settled(*session))));
            vec![seen.consumer, seen.provider]
        }
        Applied::ToppedUp { session, consumer, deposit, .. } => {
            let seen = sessions.get_mut(session).expect("only what was opened is topped up");
            (seen.deposit, seen.raised_at) = (*deposit, now);
            news.extend([seen.consumer, seen.provider].map(|account| (account, seen.topped_up(*session))));
            vec![*consumer]
        }
        Applied::Bonded { account, .. }
        | Applied::Unbonding { account, .. }
        | Applied::Burned { account, .. }
        | Applied::PayoutRejected { account, .. } => vec![*account],
        Applied::PayoutRequested { state, .. } => vec![state.account],
        Applied::Punished { offender, reporter, .. } => vec![*offender, *reporter],
        Applied::Elected { voter, .. } => vec![*voter],
    }
}

/// A node's clerk: what it has still to bring to the ledger. Lost in a crash.
#[derive(Debug, Default)]
pub struct Clerk {
    waiting: VecDeque<([u8; 16], LedgerCommand)>,
    in_flight: Option<(LedgerCommand, Signed<Entry>)>,
}

impl Clerk {
    /// Takes a command, unless it has it already.
    pub fn take(&mut self, business: [u8; 16], command: LedgerCommand) {
        let flying = self.in_flight.as_ref().is_some_and(|(_, entry)| entry.value().business == business);
        if !flying && !self.waiting.iter().any(|(known, _)| *known == business) {
            self.waiting.push_back((business, command));
        }
    }

    /// Whether there is nothing to bring.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.in_flight.is_none()
    }

    /// How many entries are still to come into the book.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len() + usize::from(self.in_flight.is_some())
    }

    /// What they will lock, all together.
    #[must_use]
    pub fn locking(&self) -> Credits {
        let all = self.waiting.iter().map(|(_, command)| command);
        let all = all.chain(self.in_flight.iter().map(|(command, _)| command));
        all.fold(Credits::ZERO, |sum, command| match command {
            LedgerCommand::Open { deposit, .. } => sum.checked_add(*deposit).unwrap_or(sum),
            LedgerCommand::TopUp { amount, .. } => sum.checked_add(*amount).unwrap_or(sum),
            LedgerCommand::Settle { .. } | LedgerCommand::Refund { .. } => sum,
        })
    }

    /// The entry to hand in now, if none is in flight: signed with the account's next nonce.
    pub fn next(&mut self, network: NetworkId, secret: &SecretKey, authority: &Authority) -> Option<Signed<Entry>> {
        if self.in_flight.is_some() {
            return None;
        }
        let (business, command) = self.waiting.pop_front()?;
        let entry = sign(network, secret, authority, business, &command);
        self.in_flight = Some((command, entry.clone()));
        Some(entry)
    }

    /// The entry that is still unanswered under that business id.
    #[must_use]
    pub fn unanswered(&self, business: [u8; 16]) -> Option<Signed<Entry>> {
        let (_, entry) = self.in_flight.as_ref()?;
        (entry.value().business == business).then(|| entry.clone())
    }

    /// Hears a verdict. Gives whether it was awaited; a late one changes nothing.
    pub fn hear(&mut self, business: [u8; 16], verdict: &Verdict) -> bool {
        if self.unanswered(business).is_none() {
            return false;
        }
        let Some((command, _)) = self.in_flight.take() else { return false };
        if *verdict == Verdict::Again {
            self.waiting.push_front((business, command));
        }
        true
    }
}

fn sign(
    network: NetworkId,
    secret: &SecretKey,
    authority: &Authority,
    business: [u8; 16],
    command: &LedgerCommand,
) -> Signed<Entry> {
    let account = Account(secret.public());
    let action = match command.clone() {
        LedgerCommand::Open { provider, voucher_key, deposit, price_cap, expires_ms } => {
            Action::Open { provider, gateway: account, voucher_key, deposit, price_cap, expires_ms }
        }
        LedgerCommand::TopUp { session, amount } => Action::TopUp { session, amount },
        LedgerCommand::Settle { voucher, claim, usage, receipts, last } => {
            Action::Settle { voucher, claim, usage, receipts, last }
        }
        LedgerCommand::Refund { session } => Action::Refund { session },
    };
    let (nonce, expires_height) = (authority.book.nonce(&account), authority.expiry());
    Signed::sign(Entry { network, account, nonce, expires_height, business, action }, secret)
}
