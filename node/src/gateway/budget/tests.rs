//! The decision alone: tables of states, questions and answers, and a random history against a plain model.

use super::*;

/// Wednesday, 2026-11-25, 12:00 UTC.
const NOON: u64 = 1_795_608_000_000;

fn money(micro: u64) -> Amount {
    Amount { money: Credits::new(micro), tokens: 0 }
}

fn total(budget: Option<u64>) -> Limits {
    Limits { budgets: [None, None, None, budget.map(Credits::new)], ..Limits::default() }
}

/// With `spent` behind it and one job under way that may cost `reserved`.
fn tally(spent: u64, reserved: u64) -> Tally {
    let mut tally = Tally::default();
    tally.charge(Credits::new(spent), NOON);
    tally.set_aside(&Limits::default(), money(reserved), NOON);
    tally
}

#[test]
fn windows_end_at_midnight_utc() {
    let at = |text: &str| {
        let format = &time::format_description::well_known::Rfc3339;
        u64::try_from(OffsetDateTime::parse(text, format).expect("a time").unix_timestamp()).expect("after 1970") * 1000
    };
    for (now, day, week, month) in [
        ("2026-11-25T12:00:00Z", "2026-11-26T00:00:00Z", "2026-11-30T00:00:00Z", "2026-12-01T00:00:00Z"),
        ("2026-11-30T00:00:00Z", "2026-12-01T00:00:00Z", "2026-12-07T00:00:00Z", "2026-12-01T00:00:00Z"),
        ("2026-11-29T23:59:59Z", "2026-11-30T00:00:00Z", "2026-11-30T00:00:00Z", "2026-12-01T00:00:00Z"),
        ("2026-12-31T23:59:59Z", "2027-01-01T00:00:00Z", "2027-01-04T00:00:00Z", "2027-01-01T00:00:00Z"),
        ("2028-02-29T00:00:00Z", "2028-03-01T00:00:00Z", "2028-03-06T00:00:00Z", "2028-03-01T00:00:00Z"),
        ("1970-01-01T00:00:00Z", "1970-01-02T00:00:00Z", "1970-01-05T00:00:00Z", "1970-02-01T00:00:00Z"),
    ] {
        let ends = Window::ALL.map(|window| window.end_ms(at(now)));
        assert_eq!(ends, [at(day), at(week), at(month), u64::MAX], "{now}");
    }
    assert_eq!(Window::Month.end_ms(u64::MAX), u64::MAX);
}

#[test]
fn reservations_fit_or_change_nothing() {
    let max = u64::MAX;
    let spent = |left| Some(Refused::Budget { window: Window::Total, left: Credits::new(left), resets_ms: None });
    let taken = |free| Some(Refused::Reserved { window: Window::Total, free: Credits::new(free) });
    // budget, spent, reserved, amount; refusal
    for (budget, before, reserved, amount, want) in [
        (Some(10), 0, 0, 10, None),
        (Some(10), 0, 0, 11, spent(10)),
        (Some(10), 4, 4, 2, None),
        (Some(10), 4, 4, 3, taken(2)),
        (Some(10), 4, 4, 7, spent(6)),
        (Some(10), 12, 0, 0, None),
        (Some(10), 12, 0, 1, spent(0)),
        (Some(0), 0, 0, 0, None),
        (Some(0), 0, 0, 1, spent(0)),
        (Some(max), max, 0, 1, spent(0)),
        (Some(max), 0, max, max, taken(0)),
        (None, max, max, max, None),
    ] {
        let mut after = tally(before, reserved);
        let limits = total(budget);
        let got = reserve(&mut [(limits, &mut after)], money(amount), NOON).err().map(|(_, refused)| refused);
        let case = format!("{amount} of {budget:?} with {before} spent and {reserved} reserved");
        assert_eq!(got, want, "{case}");
        assert_eq!(after == tally(before, reserved), want.is_some(), "{case}");
    }
}

#[test]
fn the_first_limit_that_fails_is_told() {
    let limits = Limits {
        budgets: [Some(Credits::new(5)), None, Some(Credits::new(4)), None],
        requests_per_minute: Some(2),
        tokens_per_minute: Some(100),
        concurrency: Some(2),
    };
    let mut tally = Tally::default();
    let most = |money, tokens| Amount { money: Credits::new(money), tokens };
    assert_eq!(tally.check(&limits, most(0, 101), NOON), Err(Refused::Tokens { limit: 100, wait_ms: None }));
    let resets_ms = Some(Window::Day.end_ms(NOON));
    let left = Credits::new(5);
    assert_eq!(tally.check(&limits, most(6, 0), NOON), Err(Refused::Budget { window: Window::Day, left, resets_ms }));
    let (left, resets_ms) = (Credits::new(4), Some(Window::Month.end_ms(NOON)));
    assert_eq!(tally.check(&limits, most(5, 0), NOON), Err(Refused::Budget { window: Window::Month, left, resets_ms }));
    tally.set_aside(&limits, most(1, 60), NOON);
    assert_eq!(tally.check(&limits, most(0, 41), NOON), Err(Refused::Tokens { limit: 100, wait_ms: Some(600) }));
    tally.set_aside(&limits, most(1, 30), NOON);
    assert_eq!(tally.check(&limits, most(9, 99), NOON), Err(Refused::Concurrency { limit: 2 }));
    tally.settle(&limits, most(1, 60), most(0, 20), NOON);
    assert_eq!(tally.check(&limits, most(9, 99), NOON), Err(Refused::Requests { limit: 2, wait_ms: 30_000 }));
    // Half a minute later one request and half of the tokens are back, and those that were not used are too.
    let later = NOON + 30_000;
    assert_eq!(tally.check(&limits, most(1, 100), later), Ok(()));
    let rates = tally.rates(&limits, NOON);
    assert_eq!(rates.requests, Some(Rate { limit: 2, remaining: 0, reset_ms: 60_000 }));
    assert_eq!(rates.tokens, Some(Rate { limit: 100, remaining: 50, reset_ms: 30_000 }));
    let other = Rates { requests: Some(Rate { limit: 9, remaining: 1, reset_ms: 1 }), tokens: None };
    assert_eq!(other.tighter(rates), rates);
    assert_eq!(Rates::default().tighter(rates), rates);
}

#[test]
fn a_new_window_starts_at_zero_but_for_jobs_under_way() {
    let limits = Limits { budgets: [Some(Credits::new(10)), None, None, Some(Credits::new(25))], ..Limits::default() };
    let mut tally = Tally::default();
    reserve(&mut [(limits, &mut tally)], money(6), NOON).expect("room");
    tally.settle(&limits, money(6), money(6), NOON);
    reserve(&mut [(limits, &mut tally)], money(4), NOON).expect("room");
    let tomorrow = Window::Day.end_ms(NOON);
    // The job that is still under way counts where it ends.
    let refused = Refused::Reserved { window: Window::Day, free: Credits::new(6) };
    assert_eq!(tally.check(&limits, money(7), tomorrow), Err(refused));
    tally.settle(&limits, money(4), money(3), tomorrow);
    let spent = |tally: &Tally, now| Window::ALL.map(|window| tally.spent(window, now).micro());
    assert_eq!(spent(&tally, tomorrow), [3, 9, 9, 9]);
    // A clock that goes back opens no window again.
    tally.charge(Credits::new(1), NOON);
    assert_eq!(spent(&tally, tomorrow), [4, 10, 10, 10]);
    assert_eq!(spent(&tally, Window::Month.end_ms(NOON)), [0, 0, 0, 10]);
    tally.refund(Credits::new(5));
    assert_eq!(spent(&tally, tomorrow), [0, 5, 5, 5]);
    assert_eq!((tally.reserved(), tally.running()), (Credits::ZERO, 0));
}

#[test]
fn all_purses_pay_or_none() {
    let (mut key, mut project) = (Tally::default(), Tally::default());
    let limits = [total(Some(10)), total(Some(5))];
    let mut ask = |amount| {
        let purses = &mut [(limits[0], &mut key), (limits[1], &mut project)];
        reserve(purses, money(amount), NOON).map_err(|(index, _)| index)
    };
    assert_eq!(ask(11), Err(0));
    assert_eq!(ask(6), Err(1));
    assert_eq!(ask(5), Ok(Rates::default()));
    assert_eq!(ask(1), Err(1));
    assert_eq!((key.reserved(), project.reserved()), (Credits::new(5), Credits::new(5)));
}

/// A history of random questions: no window is ever overdrawn, and a refusal is always right.
#[test]
fn a_random_history_stays_within_its_budgets() {
    for seed in 1..200u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut draw = |below: u64| {
            // Xorshift; the low bits are the weak ones.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) % below
        };
        let limits = Limits {
            budgets: [Some(Credits::new(50)), None, Some(Credits::new(300)), Some(Credits::new(1000))],
            ..Limits::default()
        };
        let (mut now, mut tally, mut open) = (NOON, Tally::default(), Vec::new());
        // What was spent when, kept in full.
        let mut history: Vec<(u64, u64)> = Vec::new();
        for _ in 0..400 {
            now += draw(3_600_000);
            let spent = |window: Window| -> u64 {
                let same = |at: u64| window.end_ms(at) == window.end_ms(now);
                history.iter().filter(|(at, _)| same(*at)).map(|(_, cost)| cost).sum()
            };
            let reserved: u64 = open.iter().sum();
            if draw(2) == 0 {
                let amount = draw(30) + 1;
                let fits = Window::ALL.into_iter().zip(limits.budgets).all(|(window, budget)| {
                    budget.is_none_or(|budget| spent(window) + reserved + amount <= budget.micro())
                });
                let got = reserve(&mut [(limits, &mut tally)], money(amount), now);
                assert_eq!(got.is_ok(), fits, "seed {seed}: {amount} at {now}: {got:?}");
                if fits {
                    open.push(amount);
                }
            } else if !open.is_empty() {
                let index = usize::try_from(draw(open.len() as u64)).expect("small");
                let amount = open.swap_remove(index);
                let cost = draw(amount + 1);
                tally.settle(&limits, money(amount), money(cost), now);
                history.push((now, cost));
            }
            for (window, budget) in Window::ALL.into_iter().zip(limits.budgets) {
                let spent: u64 = {
                    let same = |at: u64| window.end_ms(at) == window.end_ms(now);
                    history.iter().filter(|(at, _)| same(*at)).map(|(_, cost)| cost).sum()
                };
                assert_eq!(tally.spent(window, now).micro(), spent, "seed {seed}: {window:?}");
                assert!(budget.is_none_or(|budget| spent <= budget.micro()), "seed {seed}: {window:?}");
            }
        }
    }
}
