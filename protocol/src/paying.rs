//! Sessions that this node pays: what is promised, what was delivered for it, and what the next job may still use.
//! Invariant: the sum that vouchers promise never exceeds a session's deposit, and never shrinks.

use crate::record::Paying;
use crate::time::Now;
use spillway_ledger::{Account, Credits, JobId, NetworkId, Price, SecretKey, SessionId, Signed, Usage, Voucher};
use std::collections::BTreeMap;
use std::time::Duration;

/// A job is not opened on a session that ends sooner than this.
pub(crate) const EXPIRY_MARGIN: Duration = Duration::from_secs(600);
/// Jobs of one session at the most: so many receipts one settlement's root stands for, and its provider has to keep. One that had so many
/// is settled for the last time and gives way to another.
pub(crate) const SESSION_JOBS_MAX: usize = 4096;
/// The next leg is expected to set aside what the last ones did on average, the newest weighing one in so many.
const SMOOTHING: u64 = 8;
/// At most ten vouchers a second and session.
const VOUCHER_EVERY: Duration = Duration::from_millis(100);

/// One leg's claim on a session.
#[derive(Clone, Debug)]
pub(crate) struct LegMoney {
    pub(crate) price: Price,
    /// Prompt and prefix, in units.
    pub(crate) input: u64,
    /// How much of `input` is billed at the cached price, by the quote.
    pub(crate) cached: u64,
    pub(crate) delivered: u64,
    pub(crate) window: u64,
    /// The next chunk's units, if the provider says that it waits for payment.
    pub(crate) held: u64,
    /// Whether it has said so since the last voucher.
    pub(crate) asks: bool,
    /// The most output this leg can have.
    pub(crate) output_max: u64,
    /// Its opening went out: from then on vouchers pay for it.
    pub(crate) is_open: bool,
}

impl LegMoney {
    fn cost(&self, output: u64) -> Credits {
        self.price.cost(self.used(output)).expect("the worst case was computed when the leg began")
    }

    fn used(&self, output: u64) -> Usage {
        let cached = self.cached.min(self.input);
        Usage { input: self.input - cached, cached, output }
    }

    /// What was delivered, as it is billed.
    pub(crate) fn usage(&self) -> Usage {
        self.used(self.delivered)
    }

    /// The most the leg can cost; `None` if money cannot count it.
    pub(crate) fn worst(&self) -> Option<Credits> {
        self.price.cost(self.used(self.output_max))
    }

    /// What was delivered costs this.
    pub(crate) fn earned(&self) -> Credits {
        self.cost(self.delivered)
    }

    fn ahead(&self) -> Credits {
        if !self.is_open {
            return Credits::ZERO;
        }
        self.cost(self.delivered.saturating_add(self.window.max(self.held)).min(self.output_max))
    }
}

/// How a leg ended, as far as money is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LegEnd {
    /// Nothing was begun, or the provider said that nothing is owed.
    Void,
    /// Both sides signed what was delivered.
    Agreed,
    /// It broke off, or the counts differ: only this side's count is known.
    Broken,
}

/// A mean that forgets: `old`, and one part in [`SMOOTHING`] of `new`. Begins with the first value.
pub(crate) fn smooth(old: u64, new: u64) -> u64 {
    if old == 0 { new } else { old - old / SMOOTHING + new / SMOOTHING }
}

/// A session that this node pays.
#[derive(Debug)]
pub(crate) struct PayingSession {
    pub(crate) record: Paying,
    legs: BTreeMap<JobId, LegMoney>,
    last_signed: Option<Now>,
    /// What a leg here sets aside, smoothed; zero before the first.
    need: Credits,
    /// Legs that left something to pay, since this node started.
    paid: usize,
    /// No top-up before this: the ledger has just refused one.
    top_up_from: Now,
    #[cfg(feature = "sabotage")]
    pub(crate) overdrawn: bool,
}

fn sum(parts: impl Iterator<Item = Credits>) -> Credits {
    parts.fold(Credits::ZERO, |total, part| total.checked_add(part).expect("legs were admitted below the deposit"))
}

impl PayingSession {
    pub(crate) const fn new(record: Paying) -> Self {
        Self {
            record,
            legs: BTreeMap::new(),
            last_signed: None,
            need: Credits::ZERO,
            paid: 0,
            top_up_from: Now(0),
            #[cfg(feature = "sabotage")]
            overdrawn: false,
        }
    }

    /// What is spent and what running legs have set aside.
    fn taken(&self) -> Credits {
        let reserved = self.legs.values().map(|leg| leg.worst().expect("checked when the leg began"));
        sum(std::iter::once(self.record.spent).chain(reserved))
    }

    /// What no leg can claim any more.
    pub(crate) fn available(&self) -> Credits {
        self.record.deposit.saturating_sub(self.taken())
    }

    /// How much must be added until that much is free. What broken legs set aside may have taken more than there is.
    pub(crate) fn lacks(&self, free: Credits) -> Credits {
        let wanted = self.taken().checked_add(free).unwrap_or(Credits::MAX);
        wanted.saturating_sub(self.record.deposit)
    }

    /// Whether a leg may still begin here, as far as time goes.
    pub(crate) fn is_open(&self, now: Now) -> bool {
        now.after(EXPIRY_MARGIN).ms() < self.record.expires_ms
    }

    /// How many legs may still begin here, as far as their number goes.
    pub(crate) fn room(&self) -> usize {
        SESSION_JOBS_MAX.saturating_sub(self.paid.saturating_add(self.legs.len()))
    }

    /// Whether a leg may still begin here, if there is money for it.
    pub(crate) fn takes_jobs(&self, now: Now) -> bool {
        self.is_open(now) && self.room() > 0
    }

    /// Its provider says that it takes no more jobs. Says whether that may be: each job begins with a voucher, also before a restart.
    pub(crate) fn fill(&mut self, now: Now) -> bool {
        let may_be = !self.is_open(now) || self.record.sequence >= SESSION_JOBS_MAX as u64;
        if may_be {
            self.paid = SESSION_JOBS_MAX;
        }
        may_be
    }

    /// Whether the ledger has ended it.
    pub(crate) const fn is_over(&self) -> bool {
        self.record.expires_ms == 0
    }

    /// No leg begins any more, and nothing is added.
    pub(crate) const fn end_all(&mut self) {
        self.record.expires_ms = 0;
    }

    /// Whether no job has ever used it.
    pub(crate) fn is_unused(&self) -> bool {
        self.record.sequence == 0 && self.legs.is_empty()
    }

    /// Whether a voucher was signed so lately.
    pub(crate) fn signed_within(&self, now: Now, span: Duration) -> bool {
        self.last_signed.is_some_and(|last| now.since(last) < span)
    }

    /// Takes in what the ledger has locked in all. Says whether that is news.
    pub(crate) fn raise(&mut self, deposit: Credits) -> bool {
        let news = deposit > self.record.deposit;
        self.record.deposit = self.record.deposit.max(deposit);
        news
    }

    /// What should be free after a top-up, where `usual` is the deposit of a new session: that, or two legs like the last.
    pub(crate) fn goal(&self, usual: Credits) -> Credits {
        usual.max(self.need.checked_add(self.need).unwrap_or(Credits::MAX))
    }

    /// What should be free at least: a quarter of the goal, and what the next leg is expected to set aside.
    pub(crate) fn low_water(&self, usual: Credits) -> Credits {
        Credits::new(self.goal(usual).micro() / 4).max(self.need)
    }

    /// Whether the ledger may be asked for more.
    pub(crate) fn may_grow(&self, now: Now) -> bool {
        self.is_open(now) && now >= self.top_up_from
    }

    /// Asks for no top-up before that moment.
    pub(crate) const fn grow_from(&mut self, at: Now) {
        self.top_up_from = at;
    }

    /// Whether a leg at `price` that may cost `worst` fits.
    pub(crate) fn fits(&self, now: Now, provider: &Account, price: &Price, worst: Credits) -> bool {
        self.record.provider == *provider
            && price.within(&self.record.price_cap)
            && self.takes_jobs(now)
            && worst <= self.available()
    }

    pub(crate) fn begin(&mut self, job: JobId, leg: LegMoney) {
        let worst = leg.worst().expect("the caller saw that it fits");
        self.need = Credits::new(smooth(self.need.micro(), worst.micro()));
        self.legs.insert(job, leg);
    }

    /// A leg's opening goes out with the next voucher.
    pub(crate) fn opens(&mut self, job: &JobId) {
        if let Some(leg) = self.legs.get_mut(job) {
            leg.is_open = true;
        }
    }

    pub(crate) fn leg(&self, job: &JobId) -> Option<&LegMoney> {
        self.legs.get(job)
    }

    pub(crate) fn delivered(&mut self, job: &JobId, units: u64) {
        if let Some(leg) = self.legs.get_mut(job) {
            leg.delivered += units;
            leg.held = 0;
            leg.asks = false;
        }
    }

    /// The provider of a leg says that a chunk of this many units waits for payment.
    pub(crate) fn held(&mut self, job: &JobId, units: u64) {
        if let Some(leg) = self.legs.get_mut(job) {
            leg.held = units;
            leg.asks = units > 0;
        }
    }

    /// Ends a leg; returns what was used and what that costs.
    pub(crate) fn end(&mut self, job: &JobId, how: LegEnd) -> (Usage, Credits) {
        let Some(leg) = self.legs.remove(job) else { return (Usage::default(), Credits::ZERO) };
        let nothing = (Usage::default(), Credits::ZERO);
        let usage = leg.usage();
        if how != LegEnd::Void {
            self.paid = self.paid.saturating_add(1);
        }
        let (usage, cost) = match how {
            LegEnd::Void => return nothing,
            LegEnd::Agreed => {
                self.record.spent = sum([self.record.spent, leg.earned()].into_iter());
                (usage, leg.earned())
            }
            LegEnd::Broken => {
                // The other side may have sent more than arrived, out of all that was promised for any leg. All of that
                // is set aside, so that the next voucher covers both views; the client pays for what arrived. Nothing
                // beyond the promise can be claimed, however many legs break off: what is more stays free for others.
                let others = sum(self.legs.values().filter(|leg| leg.delivered > 0).map(LegMoney::earned));
                let ahead = sum([self.record.spent, leg.ahead()].into_iter()).min(self.record.promised);
                let most = ahead.max(self.record.promised.saturating_sub(others));
                self.record.spent = self.record.spent.max(most);
                if leg.delivered == 0 { nothing } else { (usage, leg.earned()) }
            }
        };
        self.record.usage = self.record.usage.checked_add(usage).expect("bounded by the deposit");
        (usage, cost)
    }

    /// The ledger paid this much. What it paid beyond the running legs was delivered, whatever arrived here.
    pub(crate) fn settled(&mut self, settled: Credits) {
        self.record.settled = self.record.settled.max(settled);
        let running = sum(self.legs.values().map(LegMoney::ahead));
        self.record.spent = self.record.spent.max(settled.saturating_sub(running));
    }

    /// What should be promised now: all that was delivered, and a window ahead for each leg.
    fn due(&self) -> Credits {
        sum(std::iter::once(self.record.spent).chain(self.legs.values().map(LegMoney::ahead)))
    }

    fn owed(&self) -> Credits {
        let open = self.legs.values().filter(|leg| leg.is_open);
        sum(std::iter::once(self.record.spent).chain(open.map(LegMoney::earned)))
    }

    /// Whether a new voucher should go out: half of what was paid ahead is used up, or a provider waits for more.
    pub(crate) fn wants_voucher(&self) -> bool {
        let (due, owed) = (self.due().min(self.limit()), self.owed());
        let ahead = due.saturating_sub(owed).micro();
        let half_used = self.record.promised.saturating_sub(owed).micro() * 2 <= ahead;
        (due > self.record.promised && half_used) || self.asking().is_some()
    }

    /// The most that may ever be promised.
    const fn limit(&self) -> Credits {
        #[cfg(feature = "sabotage")]
        if self.overdrawn {
            return Credits::new(u64::MAX);
        }
        self.record.deposit
    }

    /// Whether all of the deposit is promised and a running leg needs more.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.record.promised >= self.limit() && self.due() > self.limit()
    }

    /// A leg whose provider waits for a voucher. It may have missed the newest one: the same promise is sent again.
    pub(crate) fn asking(&self) -> Option<JobId> {
        self.legs.iter().find(|(_, leg)| leg.asks).map(|(job, _)| *job)
    }

    /// When the next voucher may be signed.
    pub(crate) fn voucher_at(&self, now: Now) -> Now {
        self.last_signed.map_or(now, |last| last.after(VOUCHER_EVERY)).max(now)
    }

    /// Signs what is due. Promises the same again if nothing more is due.
    pub(crate) fn sign(&mut self, now: Now, network: NetworkId, key: &SecretKey) -> Signed<Voucher> {
        // What broken legs set aside may leave less than running legs were admitted for; the deposit stays the end.
        let due = self.due().min(self.limit()).max(self.record.promised);
        self.record.promised = due;
        self.record.sequence += 1;
        self.last_signed = Some(now);
        for leg in self.legs.values_mut() {
            leg.asks = false;
        }
        let running = self.legs.values();
        let (input, output) = running
            .filter(|leg| leg.is_open)
            .fold((self.record.usage.input, self.record.usage.output), |(input, output), leg| {
                (input + leg.input, output + leg.delivered)
            });
        let voucher = Voucher {
            network,
            session: self.record.session,
            sequence: self.record.sequence,
            total: due,
            input,
            output,
        };
        Signed::sign(voucher, key)
    }

    /// What each running leg may cost by the vouchers signed so far.
    pub(crate) fn promised_by_job(&self) -> Vec<(JobId, Credits)> {
        self.legs.iter().map(|(job, leg)| (*job, leg.ahead())).collect()
    }

    /// The jobs that run on it.
    pub(crate) fn jobs(&self) -> impl Iterator<Item = JobId> {
        self.legs.keys().copied()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.legs.is_empty()
    }
}

/// Every session that this node pays.
#[derive(Debug, Default)]
pub(crate) struct PayingSessions {
    by_id: BTreeMap<SessionId, PayingSession>,
}

impl PayingSessions {
    pub(crate) fn insert(&mut self, record: Paying) {
        self.by_id.insert(record.session, PayingSession::new(record));
    }

    pub(crate) fn get_mut(&mut self, id: &SessionId) -> Option<&mut PayingSession> {
        self.by_id.get_mut(id)
    }

    pub(crate) fn get(&self, id: &SessionId) -> Option<&PayingSession> {
        self.by_id.get(id)
    }

    /// Every session, by its id.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &PayingSession> {
        self.by_id.values()
    }

    pub(crate) fn remove(&mut self, id: &SessionId) -> Option<PayingSession> {
        self.by_id.remove(id)
    }

    /// A session on which the leg fits; the fullest such, so that few are in use.
    pub(crate) fn fitting(&self, now: Now, provider: &Account, price: &Price, worst: Credits) -> Option<SessionId> {
        self.by_id
            .values()
            .filter(|session| session.fits(now, provider, price, worst))
            .min_by_key(|session| session.available())
            .map(|session| session.record.session)
    }

    /// Any session with a provider, fitting or not, and from now on without limit.
    #[cfg(feature = "sabotage")]
    pub(crate) fn any_of(&mut self, provider: &Account) -> Option<SessionId> {
        let session = self.by_id.values_mut().find(|session| session.record.provider == *provider)?;
        session.overdrawn = true;
        Some(session.record.session)
    }
}
