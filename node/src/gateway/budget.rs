//! Money and rates of a key or a project: what it may use, has used, and has set aside for jobs under way.
//! Invariant: in each window, spent and reserved together never exceed the budget by a reservation; only a job's actual
//! cost above its own reservation could, and the market's limits forbid that. No clock here: times come in.

use serde::{Deserialize, Serialize};
use spillway_ledger::Credits;
use time::{Date, OffsetDateTime};

const DAY_MS: u64 = 86_400_000;
/// Buckets count in parts of this, so that a limit per minute drains by itself each millisecond, without rounding.
const SCALE: u64 = 60_000;
/// The most that a limit per minute may be.
pub const PER_MINUTE_MAX: u64 = 1_000_000_000;

/// What a budget is for. Windows begin at midnight UTC; a job counts in the window in which it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// A day.
    Day,
    /// From Monday.
    Week,
    /// A calendar month.
    Month,
    /// For good.
    Total,
}

impl Window {
    /// Every window, in the order of [`Limits::budgets`].
    pub const ALL: [Self; 4] = [Self::Day, Self::Week, Self::Month, Self::Total];

    /// In words.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
            Self::Total => "total",
        }
    }

    /// When the window ends that `now_ms` lies in, in Unix milliseconds.
    #[must_use]
    pub fn end_ms(self, now_ms: u64) -> u64 {
        let days = now_ms / DAY_MS;
        match self {
            Self::Day => (days + 1) * DAY_MS,
            // Day 0 was a Thursday, so day 4 was a Monday.
            Self::Week => ((days + 3) / 7 * 7 + 4) * DAY_MS,
            Self::Month => month_end_ms(now_ms).unwrap_or(u64::MAX),
            Self::Total => u64::MAX,
        }
    }
}

fn month_end_ms(now_ms: u64) -> Option<u64> {
    let now = OffsetDateTime::from_unix_timestamp(i64::try_from(now_ms / 1000).ok()?).ok()?.date();
    let year = now.year() + i32::from(now.month() == time::Month::December);
    let next = Date::from_calendar_date(year, now.month().next(), 1).ok()?;
    u64::try_from(next.midnight().assume_utc().unix_timestamp()).ok()?.checked_mul(1000)
}

/// What a key or a project may use; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The most it may spend, by [`Window::ALL`].
    pub budgets: [Option<Credits>; 4],
    /// Requests begun in a minute.
    pub requests_per_minute: Option<u64>,
    /// Tokens of prompts and answers in a minute.
    pub tokens_per_minute: Option<u64>,
    /// Jobs under way at once.
    pub concurrency: Option<u32>,
}

/// What a job may use at most, or has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Its cost.
    pub money: Credits,
    /// Tokens of its prompt and answer.
    pub tokens: u64,
}

/// What was spent in the window that ends at `until_ms`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Spent {
    micro: Credits,
    until_ms: u64,
}

/// Drains by its limit each minute; what is in it cannot be asked for again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Bucket {
    scaled: u64,
    at_ms: u64,
}

/// The state of one key or project.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
    spent: [Spent; 4],
    reserved: Credits,
    running: u32,
    requests: Bucket,
    tokens: Bucket,
}

/// How a limit per minute stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// The limit.
    pub limit: u64,
    /// What may be asked for now.
    pub remaining: u64,
    /// Until all of the limit is there again, in milliseconds, if nothing is asked for.
    pub reset_ms: u64,
}

/// How the limits per minute stand; `None` where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Requests.
    pub requests: Option<Rate>,
    /// Tokens.
    pub tokens: Option<Rate>,
}

impl Rates {
    /// Of each limit, the one with less remaining.
    #[must_use]
    pub fn tighter(self, other: Self) -> Self {
        let tighter = |a: Option<Rate>, b: Option<Rate>| match (a, b) {
            (Some(a), Some(b)) => Some(if b.remaining < a.remaining { b } else { a }),
            (a, b) => a.or(b),
        };
        Self { requests: tighter(self.requests, other.requests), tokens: tighter(self.tokens, other.tokens) }
    }
}

/// Why a job is not begun, in order of precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Too many are under way.
    Concurrency {
        /// How many may be.
        limit: u32,
    },
    /// Too many requests in a minute.
    Requests {
        /// How many may be.
        limit: u64,
        /// Until one may be made, in milliseconds.
        wait_ms: u64,
    },
    /// Too many tokens in a minute.
    Tokens {
        /// How many may be.
        limit: u64,
        /// Until the request fits, in milliseconds; `None` if it never does.
        wait_ms: Option<u64>,
    },
    /// What is not spent does not cover it.
    Budget {
        /// Which budget.
        window: Window,
        /// What is left.
        left: Credits,
        /// When more is there, in Unix milliseconds; `None` if never.
        resets_ms: Option<u64>,
    },
    /// What is not spent covers it, but jobs under way may still need too much of that.
    Reserved {
        /// Which budget.
        window: Window,
        /// What is neither spent nor reserved.
        free: Credits,
    },
}

impl Bucket {
    fn level(self, limit: u64, now_ms: u64) -> u64 {
        self.scaled.saturating_sub(now_ms.saturating_sub(self.at_ms).saturating_mul(limit))
    }

    /// How long until `amount` fits; 0 if it does, `None` if it never will.
    fn wait_ms(self, limit: u64, amount: u64, now_ms: u64) -> Option<u64> {
        let room = limit.saturating_mul(SCALE).checked_sub(amount.saturating_mul(SCALE))?;
        Some(self.level(limit, now_ms).saturating_sub(room).div_ceil(limit.max(1)))
    }

    fn add(&mut self, limit: u64, amount: u64, now_ms: u64) {
        self.scaled = self.level(limit, now_ms).saturating_add(amount.saturating_mul(SCALE));
        // A clock that goes back drains nothing twice.
        self.at_ms = self.at_ms.max(now_ms);
    }

    fn remove(&mut self, limit: u64, amount: u64, now_ms: u64) {
        self.add(limit, 0, now_ms);
        self.scaled = self.scaled.saturating_sub(amount.saturating_mul(SCALE));
    }

    fn rate(self, limit: u64, now_ms: u64) -> Rate {
        let level = self.level(limit, now_ms);
        let remaining = limit.saturating_mul(SCALE).saturating_sub(level) / SCALE;
        Rate { limit, remaining, reset_ms: level.div_ceil(limit.max(1)) }
    }
}

impl Tally {
    /// What was spent in the window that `now_ms` lies in.
    #[must_use]
    pub fn spent(&self, window: Window, now_ms: u64) -> Credits {
        let spent = self.spent[window as usize];
        if now_ms < spent.until_ms { spent.micro } else { Credits::ZERO }
    }

    /// What jobs under way may still cost.
    #[must_use]
    pub const fn reserved(&self) -> Credits {
        self.reserved
    }

    /// Jobs under way.
    #[must_use]
    pub const fn running(&self) -> u32 {
        self.running
    }

    /// How the limits per minute stand.
    #[must_use]
    pub fn rates(&self, limits: &Limits, now_ms: u64) -> Rates {
        Rates {
            requests: limits.requests_per_minute.map(|limit| self.requests.rate(limit, now_ms)),
            tokens: limits.tokens_per_minute.map(|limit| self.tokens.rate(limit, now_ms)),
        }
    }

    /// Whether one more job may begin that uses at most `most`.
    ///
    /// # Errors
    /// In the order of [`Refused`].
    pub fn check(&self, limits: &Limits, most: Amount, now_ms: u64) -> Result<(), Refused> {
        if let Some(limit) = limits.concurrency
            && self.running >= limit
        {
            return Err(Refused::Concurrency { limit });
        }
        if let Some(limit) = limits.requests_per_minute {
            match self.requests.wait_ms(limit, 1, now_ms) {
                Some(0) => {}
                // A limit of 0 lets nothing through; terms forbid it.
                wait => return Err(Refused::Requests { limit, wait_ms: wait.unwrap_or(SCALE) }),
            }
        }
        if let Some(limit) = limits.tokens_per_minute {
            match self.tokens.wait_ms(limit, most.tokens, now_ms) {
                Some(0) => {}
                wait_ms => return Err(Refused::Tokens { limit, wait_ms }),
            }
        }
        let mut reserved = None;
        for (window, budget) in Window::ALL.into_iter().zip(limits.budgets) {
            let Some(budget) = budget else { continue };
            let left = budget.saturating_sub(self.spent(window, now_ms));
            // What costs nothing needs no money, even where more was spent than the budget is now.
            if most.money > left {
                let end_ms = window.end_ms(now_ms);
                return Err(Refused::Budget { window, left, resets_ms: (end_ms != u64::MAX).then_some(end_ms) });
            }
            let free = left.saturating_sub(self.reserved);
            if !most.money.is_zero() && most.money > free {
                reserved.get_or_insert(Refused::Reserved { window, free });
            }
        }
        reserved.map_or(Ok(()), Err)
    }

    /// Sets aside what one more job may use; for jobs that passed [`Self::check`].
    pub fn set_aside(&mut self, limits: &Limits, most: Amount, now_ms: u64) {
        self.reserved = Credits::new(self.reserved.micro().saturating_add(most.money.micro()));
        self.running = self.running.saturating_add(1);
        if let Some(limit) = limits.requests_per_minute {
            self.requests.add(limit, 1, now_ms);
        }
        if let Some(limit) = limits.tokens_per_minute {
            self.tokens.add(limit, most.tokens, now_ms);
        }
    }

    /// Charges what a job used that had `most` set aside, and frees the rest.
    pub fn settle(&mut self, limits: &Limits, most: Amount, used: Amount, now_ms: u64) {
        self.reserved = self.reserved.saturating_sub(most.money);
        self.running = self.running.saturating_sub(1);
        self.charge(used.money, now_ms);
        if let Some(limit) = limits.tokens_per_minute {
            self.tokens.remove(limit, most.tokens.saturating_sub(used.tokens), now_ms);
        }
    }

    /// Adds what a job cost for which nothing is set aside.
    pub fn charge(&mut self, cost: Credits, now_ms: u64) {
        for (window, spent) in Window::ALL.into_iter().zip(&mut self.spent) {
            // The end of a window is kept, so a clock that goes back opens no window twice.
            if now_ms >= spent.until_ms {
                *spent = Spent { micro: Credits::ZERO, until_ms: window.end_ms(now_ms) };
            }
            spent.micro = Credits::new(spent.micro.micro().saturating_add(cost.micro()));
        }
    }

    /// Takes back part of a charge that was too high.
    pub fn refund(&mut self, amount: Credits) {
        for spent in &mut self.spent {
            spent.micro = spent.micro.saturating_sub(amount);
        }
    }

    /// As it is with no job under way: after a restart that settled what was.
    #[must_use]
    pub const fn at_rest(mut self) -> Self {
        self.reserved = Credits::ZERO;
        self.running = 0;
        self
    }
}

/// A key's or a project's limits, with their state.
pub type Purse<'a> = (Limits, &'a mut Tally);

/// Sets aside what one more job may use at all of `purses`, or at none.
///
/// # Errors
/// The index of the first purse that refuses, and why; nothing is changed then.
pub fn reserve(purses: &mut [Purse<'_>], most: Amount, now_ms: u64) -> Result<Rates, (usize, Refused)> {
    for (index, (limits, tally)) in purses.iter().enumerate() {
        tally.check(limits, most, now_ms).map_err(|refused| (index, refused))?;
    }
    // Every check has passed: nothing below can fail.
    let mut rates = Rates::default();
    for (limits, tally) in purses {
        tally.set_aside(limits, most, now_ms);
        rates = rates.tighter(tally.rates(limits, now_ms));
    }
    Ok(rates)
}

#[cfg(test)]
mod tests;
