//! Random histories, valid and not, against a book of a few lines that is too simple to be wrong.

use std::collections::{BTreeMap, BTreeSet};

use std::sync::atomic::{AtomicU64, Ordering};

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

/// How many histories the default run plays; `SPILLWAY_HISTORIES` asks for more.
const HISTORIES: u64 = 500;
/// Entries in each.
const STEPS: u64 = 20;

/// The same rules on plain integers: who has what, and what each session has left.
#[derive(Default)]
struct Naive {
    balances: BTreeMap<Account, u64>,
    /// Consumer, provider, deposit, settled, and the time from which a refund is due; closed ones are gone.
    sessions: BTreeMap<SessionId, (Account, Account, u64, u64, u64)>,
    minted: u64,
    burned: u64,
    /// Bond, what was asked back of it, and when that is due; 0 where nothing is.
    bonds: BTreeMap<Account, (u64, u64, u64)>,
    /// Who asked for how much.
    payouts: BTreeMap<PayoutId, (Account, u64)>,
    references: BTreeSet<String>,
    offences: BTreeSet<(Account, u8)>,
    height: u64,
    /// What providers were owed and paid, over each session's whole life.
    provider_paid: BTreeMap<SessionId, (u64, u64)>,
}

impl Naive {
    fn add(&mut self, account: Account, micro: u64) {
        *self.balances.entry(account).or_default() += micro;
    }

    fn take(&mut self, account: Account, micro: u64) -> bool {
        let Some(have) = self.balances.get_mut(&account).filter(|have| micro > 0 && **have >= micro) else {
            return false;
        };
        *have -= micro;
        true
    }

    /// A new block gives back the bonds that are due.
    fn begin(&mut self, height: u64, now: u64) {
        if height == self.height {
            return;
        }
        self.height = height;
        for (account, (_, unbonding, due)) in &mut self.bonds {
            if *due > 0 && *due <= now {
                *self.balances.entry(*account).or_default() += *unbonding;
                (*unbonding, *due) = (0, 0);
            }
        }
    }

    /// Pays a session up to `claim`, and ends it if that is the last of it.
    fn pay(&mut self, cast: &Cast, session: SessionId, claim: u64, last: bool) {
        let (consumer, provider, deposit, settled, due) = self.sessions[&session];
        let gross = claim - settled;
        let owed = (u128::from(claim) * 7 / 10) as u64;
        let before = self.balances.get(&provider).copied().unwrap_or(0);
        let parts = cast.genesis.split.parts(Credits::new(settled), Credits::new(claim));
        for (to, part) in [
            (provider, parts.provider),
            (cast.gateway.account(), parts.gateway),
            (cast.genesis.validators, parts.validators),
            (cast.genesis.treasury, parts.treasury),
        ] {
            self.add(to, part.micro());
        }
        let paid = self.balances[&provider] - before;
        let total_paid = self.provider_paid.entry(session).or_default();
        *total_paid = (owed, total_paid.1 + paid);
        assert!(total_paid.1 >= owed && gross >= paid);
        if last {
            self.add(consumer, deposit - claim);
            self.sessions.remove(&session);
        } else {
            self.sessions.insert(session, (consumer, provider, deposit, claim, due));
        }
    }

    /// Plays one move of `who`; says whether it was allowed.
    fn play(&mut self, cast: &Cast, who: &SecretKey, nonce: u64, play: &Move, now: u64) -> bool {
        let account = who.account();
        match play {
            Move::Mint(to, micro) => {
                self.minted += micro;
                self.add(*to, *micro);
                true
            }
            Move::Transfer(to, micro) => {
                let took = self.take(account, *micro);
                if took {
                    self.add(*to, *micro);
                }
                took
            }
            Move::Open(provider, micro) => {
                let opens = *provider != account && self.take(account, *micro);
                if opens {
                    let id = SessionId::derive(&cast.network(), &account, nonce);
                    self.sessions.insert(id, (account, *provider, *micro, 0, now + 500 + GRACE_MS));
                }
                opens
            }
            Move::Settle { session, total, claim, last, forged } => {
                let Some(&(_, provider, deposit, settled, _)) = self.sessions.get(session) else {
                    return false;
                };
                let new = *claim > settled || (*last && *claim == settled);
                if *forged || provider != account || total > &deposit || claim > total || !new {
                    return false;
                }
                self.pay(cast, *session, *claim, *last);
                true
            }
            Move::TopUp(session, micro) => {
                let Some(&(consumer, ..)) = self.sessions.get(session) else { return false };
                if consumer != account || !self.take(account, *micro) {
                    return false;
                }
                self.sessions.get_mut(session).expect("it was there").2 += micro;
                true
            }
            Move::Close { session, total, other } => {
                let Some(&(consumer, provider, deposit, settled, _)) = self.sessions.get(session) else {
                    return false;
                };
                let sides = [(consumer, provider), (provider, consumer)].contains(&(account, other.account()));
                if !sides || *total > deposit || *total < settled {
                    return false;
                }
                self.pay(cast, *session, *total, true);
                true
            }
            Move::Bond(micro) => {
                let took = self.take(account, *micro);
                if took {
                    self.bonds.entry(account).or_default().0 += micro;
                }
                took
            }
            Move::Unbond(micro) => {
                let bond = self.bonds.entry(account).or_default();
                if *micro == 0 || *micro > bond.0 || bond.1 > 0 {
                    return false;
                }
                *bond = (bond.0 - micro, *micro, now + cast.genesis.unbond_ms);
                true
            }
            Move::Payout(micro) => {
                let asks = *micro >= cast.genesis.payout_min.micro() && self.take(account, *micro);
                if asks {
                    self.payouts.insert(PayoutId::derive(&cast.network(), &account, nonce), (account, *micro));
                }
                asks
            }
            Move::Burn(payout, reference) => {
                if self.references.contains(reference) || account != cast.issuer.account() {
                    return false;
                }
                let Some((_, micro)) = self.payouts.remove(payout) else { return false };
                self.burned += micro;
                self.references.insert(reference.clone());
                true
            }
            Move::Reject(payout) => {
                if account != cast.issuer.account() {
                    return false;
                }
                let Some((to, micro)) = self.payouts.remove(payout) else { return false };
                self.add(to, micro);
                true
            }
            Move::Evidence { offender, job, same } => {
                let offender = offender.account();
                let bond = self.bonds.get(&offender).copied().unwrap_or_default();
                let slashed = bond.0 + bond.1;
                if *same || slashed == 0 || !self.offences.insert((offender, *job)) {
                    return false;
                }
                self.bonds.remove(&offender);
                self.add(account, slashed / 10);
                self.add(cast.genesis.treasury, slashed - slashed / 10);
                true
            }
            Move::Refund(session) => {
                let Some(&(consumer, _, deposit, settled, due)) = self.sessions.get(session) else { return false };
                if consumer != account || now < due {
                    return false;
                }
                self.add(consumer, deposit - settled);
                self.sessions.remove(session);
                true
            }
        }
    }
}

/// What someone tries.
#[derive(Debug)]
enum Move {
    Mint(Account, u64),
    Transfer(Account, u64),
    Open(Account, u64),
    Settle { session: SessionId, total: u64, claim: u64, last: bool, forged: bool },
    Refund(SessionId),
    TopUp(SessionId, u64),
    Close { session: SessionId, total: u64, other: SecretKey },
    Bond(u64),
    Unbond(u64),
    Payout(u64),
    Burn(PayoutId, String),
    Reject(PayoutId),
    Evidence { offender: SecretKey, job: u8, same: bool },
}

impl Move {
    fn random(rng: &mut ChaCha8Rng, actors: &[SecretKey], sessions: &[SessionId], payouts: &[PayoutId]) -> Move {
        let someone = actors[rng.random_range(0..actors.len())].account();
        let amount = rng.random_range(0..2_000);
        let session = match sessions.len() {
            0 => SessionId(Digest::ZERO),
            count => sessions[rng.random_range(0..count)],
        };
        let payout = match payouts.len() {
            0 => PayoutId(Digest::ZERO),
            count => payouts[rng.random_range(0..count)],
        };
        let other = actors[rng.random_range(0..actors.len())].clone();
        match rng.random_range(0..20) {
            10 => Move::TopUp(session, amount),
            11 | 12 => Move::Close { session, total: rng.random_range(0..1_500), other },
            13 | 14 => Move::Bond(amount),
            15 => Move::Unbond(rng.random_range(0..1_000)),
            16 => Move::Payout(amount),
            17 => Move::Burn(payout, format!("bank {}", rng.random_range(0..3))),
            18 => Move::Reject(payout),
            19 => Move::Evidence { offender: other, job: rng.random_range(0..3), same: rng.random_bool(0.2) },
            0 | 1 => Move::Transfer(someone, amount),
            2..=4 => Move::Open(someone, amount),
            5..=8 => {
                let total = rng.random_range(0..1_500);
                let claim = if rng.random_bool(0.8) { rng.random_range(0..=total) } else { total + 1 };
                Move::Settle { session, total, claim, last: rng.random_bool(0.3), forged: rng.random_bool(0.1) }
            }
            _ => Move::Refund(session),
        }
    }

    fn action(&self, cast: &Cast, number: u64, now: u64) -> Action {
        match self {
            Move::Mint(to, micro) => {
                Action::Mint { to: *to, amount: Credits::new(*micro), reference: format!("deposit {number}") }
            }
            Move::Transfer(to, micro) => Action::Transfer { to: *to, amount: Credits::new(*micro) },
            Move::Open(provider, micro) => Action::Open {
                provider: *provider,
                gateway: cast.gateway.account(),
                voucher_key: cast.voucher_key.public(),
                deposit: Credits::new(*micro),
                price_cap: price(),
                expires_ms: now + 500,
            },
            Move::Settle { session, total, claim, last, forged } => {
                let key = if *forged { &cast.stranger } else { &cast.voucher_key };
                let voucher = Signed::sign(cast.voucher(*session, *total), key);
                cast.settle_action(voucher.to_wire(), *claim, *last)
            }
            Move::Refund(session) => Action::Refund { session: *session },
            Move::TopUp(session, micro) => Action::TopUp { session: *session, amount: Credits::new(*micro) },
            Move::Close { session, total, other } => {
                let closing = Closing {
                    network: cast.network(),
                    session: *session,
                    total: Credits::new(*total),
                    usage: Usage::default(),
                    receipts: Digest::ZERO,
                };
                Action::Close { closing: Signed::sign(closing, other).to_wire() }
            }
            Move::Bond(micro) => Action::Bond { amount: Credits::new(*micro) },
            Move::Unbond(micro) => Action::Unbond { amount: Credits::new(*micro) },
            Move::Payout(micro) => Action::PayoutRequest { amount: Credits::new(*micro), payee: Digest::ZERO },
            Move::Burn(payout, reference) => Action::Burn { payout: *payout, reference: reference.clone() },
            Move::Reject(payout) => Action::PayoutReject { payout: *payout, reason: RejectReason::Withdrawn },
            Move::Evidence { offender, job, same } => {
                let receipt = |time_ms| Receipt { job: JobId([*job; 16]), time_ms, ..wire::example_receipt(cast) };
                let [first, second] =
                    [1, 2 - u64::from(*same)].map(|time_ms| Signed::sign(receipt(time_ms), offender).to_wire());
                Action::Evidence { evidence: Evidence::Receipts { first, second } }
            }
        }
    }
}

fn history(cast: &Cast, seed: u64) -> (u64, u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let actors = [cast.consumer.clone(), cast.provider.clone(), key(10)];
    let (mut book, mut naive) = (Book::new(&cast.genesis), Naive::default());
    let mut untried = book.clone();
    let (mut height, mut now) = (1, START_MS);
    let (mut sessions, mut payouts): (Vec<SessionId>, Vec<PayoutId>) = (Vec::new(), Vec::new());
    let (mut done, mut refused) = (0, 0);
    for step in 0..STEPS {
        // Mostly the next block or the same; now and then long enough to forget closed sessions and business ids.
        height += [0, 0, 1, 1, 2, 1_500, 12_000]
            [if rng.random_bool(0.95) { rng.random_range(0..5) } else { 6 - (rng.next_u32() % 2) as usize }];
        now += rng.random_range(0..400);
        let (who, play) = if step < 2 {
            (&cast.issuer, Move::Mint(actors[step as usize].account(), rng.random_range(1..5_000)))
        } else {
            let play = Move::random(&mut rng, &actors, &sessions, &payouts);
            let by_issuer = matches!(play, Move::Burn(..) | Move::Reject(_)) && rng.random_bool(0.8);
            (if by_issuer { &cast.issuer } else { &actors[rng.random_range(0..actors.len())] }, play)
        };
        let account = who.account();
        let nonce = book.nonce(&account);
        let mut entry = cast.entry(who, nonce, play.action(cast, step, now));
        entry.expires_height = height + 10;
        let entry = Screened::new(Signed::sign(entry, who));

        // A block that is only tried leaves no trace, whatever was in it.
        let before = book.state_root();
        book.begin();
        let tried = book.apply_screened(&entry, height, now);
        book.rollback();
        assert_eq!(book.state_root(), before, "seed {seed} step {step}: {play:?} was taken back");

        untried.begin_block(height, now);
        let applied = book.apply_screened(&entry, height, now);
        assert_eq!(tried, applied, "seed {seed} step {step}: {play:?}");
        naive.begin(height, now);
        let allowed = naive.play(cast, who, nonce, &play, now);
        assert_eq!(applied.is_ok(), allowed, "seed {seed} step {step}: {play:?} {applied:?}");
        if allowed {
            done += 1;
            untried.apply_screened(&entry, height, now).expect("as the other book");
            // A retry is noticed, whatever it was.
            let again = book.apply_screened(&entry, height, now);
            assert_eq!(again, Err(ApplyError::AlreadyApplied { height }), "seed {seed} step {step}");
            if let Move::Open(..) = play {
                sessions.push(SessionId::derive(&cast.network(), &account, nonce));
            }
            if let Move::Payout(_) = play {
                payouts.push(PayoutId::derive(&cast.network(), &account, nonce));
            }
        } else {
            refused += 1;
        }
        for (account, micro) in &naive.balances {
            assert_eq!(book.balance(account).micro(), *micro, "seed {seed} step {step}: {account} after {play:?}");
        }
        let locked: u64 = naive.sessions.values().map(|(_, _, deposit, settled, _)| deposit - settled).sum();
        assert_eq!(book.locked().micro(), locked, "seed {seed} step {step}");
        assert_eq!(book.minted().micro(), naive.minted, "seed {seed} step {step}");
        assert_eq!(book.supply().micro(), naive.minted - naive.burned, "seed {seed} step {step}");
        for (account, (bond, unbonding, _)) in &naive.bonds {
            let state = book.account_state(account);
            assert_eq!((state.bond.micro(), state.unbonding.micro()), (*bond, *unbonding), "seed {seed} step {step}");
        }
        let waits: Vec<u64> = book.payouts().map(|(_, state)| state.amount.micro()).collect();
        let want: Vec<u64> = naive.payouts.values().map(|(_, micro)| *micro).collect();
        assert_eq!(waits, want, "seed {seed} step {step}");
    }
    book.check().unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
    assert_eq!(book.contents(), untried.contents(), "seed {seed}: trying left something behind");
    assert_eq!(book.state_root(), untried.state_root(), "seed {seed}");
    (done, refused)
}

#[test]
fn random_histories_agree_with_a_naive_book() {
    let count = std::env::var("SPILLWAY_HISTORIES").ok().map_or(HISTORIES, |text| text.parse().expect("a number"));
    let (cast, next) = (cast(), AtomicU64::new(0));
    let play = || {
        let (mut done, mut refused) = (0, 0);
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= count {
                return (done, refused);
            }
            let (d, r) = history(&cast, seed);
            (done, refused) = (done + d, refused + r);
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let parts: Vec<(u64, u64)> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..cores).map(|_| scope.spawn(play)).collect();
        running.into_iter().map(|part| part.join().expect("a history failed")).collect()
    });
    let (done, refused) = parts.iter().fold((0, 0), |(a, b), (d, r)| (a + d, b + r));
    println!("{count} histories, {done} entries applied, {refused} refused, 0 drift");
    // Both kinds have to be there, or the test shows nothing.
    assert!(done > 4 * count && refused > 4 * count, "{done} applied, {refused} refused");
}

/// The split is the one part that the naive book borrows: its own promise is tested in `shares`.
#[test]
fn a_tried_block_of_many_entries_is_taken_back_whole() {
    let cast = cast();
    let mut book = Book::new(&cast.genesis);
    let session = cast.session(0);
    for entry in [cast.mint(0, cast.consumer.account(), 5_000), cast.open(0, 600)] {
        book.apply(&entry, 1, START_MS).expect("the set-up is valid");
    }
    let before = (book.state_root(), book.totals(), book.contents());
    let block = [
        cast.mint(1, cast.stranger.account(), 70),
        cast.open(1, 300),
        cast.settle(0, session, 600, 100, false),
        cast.transfer(&cast.stranger, 0, key(50).account(), 70),
        cast.settle(1, session, 600, 500, true),
        cast.settle(2, cast.session(1), 300, 300, true),
        cast.open(2, 1_000),
    ];
    let mut roots = Vec::new();
    for _ in 0..3 {
        book.begin();
        for entry in &block {
            book.apply(entry, 2, START_MS).expect("valid");
        }
        roots.push(book.state_root());
        book.rollback();
        let after = (book.state_root(), book.totals(), book.contents());
        assert_eq!(after, before);
        book.check().expect("the book holds");
    }
    assert!(roots.iter().all(|root| *root == roots[0] && *root != before.0), "tried thrice, the same each time");
}
