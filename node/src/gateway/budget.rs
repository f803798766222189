//! One key's money: what it may spend, has spent, and has set aside for jobs under way.
//! Invariant: with a budget, spent and reserved together never exceed it by a reservation; only a job's actual cost above
//! its own reservation could, and the market's limits forbid that.

use spillway_ledger::Credits;

/// The state of one key's budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// The most it may spend in all; `None` is no limit.
    pub budget: Option<Credits>,
    /// What it spent.
    pub spent: Credits,
    /// What jobs under way may still cost.
    pub reserved: Credits,
    /// Jobs under way.
    pub running: u32,
}

/// Why a job is not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Too many are under way.
    Concurrency {
        /// How many may be.
        limit: u32,
    },
    /// It could cost more than is left.
    Budget {
        /// What is left.
        left: Credits,
    },
}

impl Tally {
    /// Sets `amount` aside for one more job.
    ///
    /// # Errors
    /// If too many jobs are under way, then if the budget does not cover it. An error changes nothing.
    pub fn reserve(&mut self, amount: Credits, concurrency: Option<u32>) -> Result<(), Refused> {
        if let Some(limit) = concurrency
            && self.running >= limit
        {
            return Err(Refused::Concurrency { limit });
        }
        let taken = self.spent.checked_add(self.reserved);
        let after = taken.and_then(|taken| taken.checked_add(amount));
        if let Some(budget) = self.budget
            && after.is_none_or(|after| after > budget)
        {
            return Err(Refused::Budget { left: budget.saturating_sub(taken.unwrap_or(Credits::MAX)) });
        }
        // Every check has passed: nothing below can fail.
        self.reserved = Credits::new(self.reserved.micro().saturating_add(amount.micro()));
        self.running = self.running.saturating_add(1);
        Ok(())
    }

    /// Frees what was set aside for a job that is over.
    pub fn release(&mut self, amount: Credits) {
        self.reserved = self.reserved.saturating_sub(amount);
        self.running = self.running.saturating_sub(1);
    }

    /// Adds what a job cost.
    pub fn charge(&mut self, cost: Credits) {
        self.spent = Credits::new(self.spent.micro().saturating_add(cost.micro()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_fit_or_change_nothing() {
        let max = u64::MAX;
        // budget, spent, reserved, running; amount, concurrency; refusal
        let budget = |left| Some(Refused::Budget { left: Credits::new(left) });
        let cases = [
            ((Some(10), 0, 0, 0), (10, None), None),
            ((Some(10), 0, 0, 0), (11, None), budget(10)),
            ((Some(10), 4, 4, 1), (2, None), None),
            ((Some(10), 4, 4, 1), (3, None), budget(2)),
            ((Some(10), 12, 0, 0), (0, None), budget(0)),
            ((Some(0), 0, 0, 0), (0, None), None),
            ((Some(0), 0, 0, 0), (1, None), budget(0)),
            ((Some(max), max, 0, 0), (1, None), budget(0)),
            ((Some(max), max, max, 0), (max, None), budget(0)),
            ((None, max, max, 0), (max, None), None),
            ((Some(0), 0, 0, 2), (1, Some(2)), Some(Refused::Concurrency { limit: 2 })),
            ((None, 0, 0, 1), (1, Some(2)), None),
        ];
        for ((budget, spent, reserved, running), (amount, concurrency), want) in cases {
            let before = Tally {
                budget: budget.map(Credits::new),
                spent: Credits::new(spent),
                reserved: Credits::new(reserved),
                running,
            };
            let mut tally = before;
            let got = tally.reserve(Credits::new(amount), concurrency).err();
            assert_eq!(got, want, "{before:?} reserving {amount}");
            assert_eq!(tally == before, want.is_some(), "{before:?} reserving {amount}");
        }
    }
}
