//! The router on small markets, as tables.

use super::*;
use rand::SeedableRng as _;
use rand_chacha::ChaCha12Rng;
use spillway_ledger::{Credits, Price};

const NOW: Now = Now(1_000_000_000);

struct Stalls(BTreeMap<u32, Candidate>);

impl Market<u32> for Stalls {
    fn candidate(&self, id: &u32) -> Option<Candidate> {
        self.0.get(id).copied()
    }
    fn propose(&self, into: &mut Vec<u32>, _busy: impl Fn(&u32) -> bool, _doubt: bool, _rng: &mut impl rand::Rng) {
        into.extend(self.0.keys().copied());
    }
}

fn candidate(price: u64, distance_ms: f64) -> Candidate {
    let price = Credits::new(price);
    Candidate {
        price: Price { input: price, cached: price, output: price },
        slots: 4,
        distance_ms: Some(distance_ms),
        standing: 1.0,
        cached: None,
        billed: None,
        ready_ms: 0.0,
        rank: 0,
    }
}

fn report(free: u32, start_ms: u32) -> Report {
    Report {
        at: NOW,
        covers: NOW,
        slots_free: free,
        pending: 0,
        running: 4 - free.min(4),
        start_ms,
        read_us_per_kilo: 10_000,
        per_unit_us: 100,
        free_at: NOW.after(Duration::from_secs(5)),
    }
}

fn ask(target_ms: Option<f64>) -> Ask<'static> {
    Ask {
        units: 1000,
        output: 1000,
        prefix: &[],
        prefix_units: 100,
        target_ms,
        rate_us: None,
        weights: Weights::new(Credits::new(1000), None),
        thorough: false,
        settled: false,
    }
}

fn rules() -> RouterRules {
    RouterRules { explore_per_mille: 0, ..RouterRules::default() }
}

/// What a router decides that knows those reports.
fn decide(stalls: &[(u32, Candidate)], reports: &[(u32, Report)], ask: &Ask<'_>, asked: &[u32]) -> Decision<u32> {
    let mut router = Router::new(rules());
    for (id, report) in reports {
        router.reported(NOW, *id, *report);
    }
    let market = Stalls(stalls.iter().copied().collect());
    router.decide(NOW, ask, asked, &market, &mut ChaCha12Rng::from_seed([1; 32]))
}

fn goes_to(decision: &Decision<u32>) -> Option<u32> {
    if let Decision::Go { to, .. } = decision { Some(*to) } else { None }
}

#[test]
fn the_best_of_those_that_are_free() {
    let [cheap, dear, far] = [candidate(1_000, 20.0), candidate(9_000_000, 20.0), candidate(1_000, 400.0)];
    for (what, stalls, reports, target, want) in [
        ("the cheaper of equals", vec![(1, dear), (2, cheap)], vec![(1, report(2, 50)), (2, report(2, 50))], None, 2),
        ("the nearer of equals", vec![(1, far), (2, cheap)], vec![(1, report(2, 50)), (2, report(2, 50))], None, 2),
        ("the sooner of equals", vec![(1, cheap), (2, cheap)], vec![(1, report(2, 900)), (2, report(2, 50))], None, 2),
        (
            "the cheapest that meets the target, though it is later",
            vec![(1, dear), (2, far)],
            vec![(1, report(2, 50)), (2, report(2, 50))],
            Some(1000.0),
            2,
        ),
        (
            "the soonest if none meets it",
            vec![(1, dear), (2, far)],
            vec![(1, report(2, 50)), (2, report(2, 50))],
            Some(10.0),
            1,
        ),
        (
            "of equals that meet the target the emptier one",
            vec![(1, cheap), (2, cheap)],
            vec![(1, report(1, 50)), (2, report(4, 50))],
            Some(1000.0),
            2,
        ),
        (
            "an empty one that is a little dearer than a full one",
            vec![(1, candidate(1_000_000, 20.0)), (2, candidate(1_200_000, 20.0))],
            vec![(1, report(1, 50)), (2, report(4, 50))],
            Some(1000.0),
            2,
        ),
        (
            "a full one that is much cheaper than an empty one",
            vec![(1, candidate(1_000_000, 20.0)), (2, candidate(1_600_000, 20.0))],
            vec![(1, report(1, 50)), (2, report(4, 50))],
            Some(1000.0),
            1,
        ),
        (
            "the user's order before all",
            vec![(1, Candidate { rank: 1, ..cheap }), (2, dear)],
            vec![(1, report(2, 50)), (2, report(2, 900))],
            None,
            2,
        ),
        (
            "whoever has been good",
            vec![(1, Candidate { standing: 0.3, ..cheap }), (2, cheap)],
            vec![(1, report(2, 50)), (2, report(2, 50))],
            None,
            2,
        ),
    ] {
        assert_eq!(goes_to(&decide(&stalls, &reports, &ask(target), &[1, 2])), Some(want), "{what}");
    }
}

#[test]
fn a_wished_rate_holds_without_a_target() {
    let (cheap, dear) = (candidate(1_000, 20.0), candidate(2_000, 20.0));
    let fast = Report { per_unit_us: 50, ..report(2, 50) };
    let reports = [(1, report(2, 50)), (2, fast)];
    // Microseconds per unit that are wished for, and who is taken.
    for (rate_us, want) in [(None, 1), (Some(200.0), 1), (Some(80.0), 2)] {
        let ask = Ask { rate_us, weights: Weights::new(Credits::ZERO, None), ..ask(None) };
        assert_eq!(goes_to(&decide(&[(1, cheap), (2, dear)], &reports, &ask, &[1, 2])), Some(want), "{rate_us:?}");
    }
}

#[test]
fn who_is_not_known_is_probed_and_who_is_busy_waited_for() {
    let stalls: Vec<_> = (0..6).map(|id| (id, candidate(1_000, 20.0))).collect();
    let Decision::Probe(probes) = decide(&stalls, &[], &ask(None), &[]) else { panic!("nobody is probed") };
    assert_eq!(probes.len(), 3);
    // Those that were asked and did not answer are left out; nobody is left.
    assert_eq!(decide(&stalls[..2], &[], &ask(None), &[0, 1]), Decision::Nobody { free_at: None });
    // All are busy: the soonest is named.
    let soon = Report { free_at: NOW.after(Duration::from_secs(1)), ..report(0, 50) };
    let busy = decide(&stalls[..2], &[(0, report(0, 50)), (1, soon)], &ask(None), &[]);
    assert_eq!(busy, Decision::Nobody { free_at: Some(soon.free_at) });
    // The last look asks them again all the same.
    let last = Ask { thorough: true, ..ask(None) };
    assert!(
        matches!(decide(&stalls[..2], &[(0, report(0, 50)), (1, soon)], &last, &[]), Decision::Probe(who) if who.len() == 2)
    );
}

#[test]
fn a_sure_place_is_taken_unless_asking_is_worth_the_wait() {
    let (near, dear) = (candidate(1_000, 20.0), candidate(50_000_000, 20.0));
    // A known good place, and unknown ones that cost the same.
    let stalls: Vec<_> = (0..6).map(|id| (id, near)).collect();
    let decision = decide(&stalls, &[(3, report(2, 50))], &ask(None), &[]);
    assert!(matches!(&decision, Decision::Go { to: 3, refresh, .. } if refresh.len() == 1), "{decision:?}");
    // The known one is dear: others are asked first.
    let stalls = [(1, near), (2, dear)];
    assert_eq!(decide(&stalls, &[(2, report(2, 50))], &ask(None), &[]), Decision::Probe(vec![1]));
}

#[test]
fn slots_that_were_used_since_the_report_are_not_used_again() {
    let mut router = Router::new(rules());
    let market = Stalls((0..2).map(|id| (id, candidate(1_000, 20.0))).collect());
    let mut rng = ChaCha12Rng::from_seed([1; 32]);
    router.reported(NOW, 0, report(2, 50));
    router.reported(NOW, 1, report(1, 50));
    let mut went = Vec::new();
    for _ in 0..3 {
        let Decision::Go { to, expected, .. } = router.decide(NOW, &ask(None), &[0, 1], &market, &mut rng) else {
            panic!("a slot is free")
        };
        router.sent(NOW, to, &ask(None), expected.cached);
        went.push(to);
    }
    went.sort_unstable();
    assert_eq!(went, [0, 0, 1]);
    assert!(matches!(router.decide(NOW, &ask(None), &[0, 1], &market, &mut rng), Decision::Nobody { .. }));
    // An old word is no ground to act on.
    let later = NOW.after(Duration::from_secs(6));
    assert!(matches!(router.decide(later, &ask(None), &[], &market, &mut rng), Decision::Probe(_)));
}

#[test]
fn a_conversation_stays_where_its_prefix_is_unless_that_is_too_slow() {
    let prefix = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
    let talk = Ask { prefix: &prefix, ..ask(None) };
    for (what, start_ms, running, want) in [
        ("a little slower", 300, 0, 1),
        ("much slower", 5_000, 0, 2),
        // Reading the prompt anew takes 10 ms from each of a thousand.
        ("much slower, but the other one is crowded", 5_000, 1_000, 1),
    ] {
        let mut router = Router::new(rules());
        let market = Stalls([(1, candidate(1_000, 20.0)), (2, candidate(1_000, 20.0))].into());
        router.reported(NOW, 1, report(4, 10));
        router.sent(NOW, 1, &talk, 0);
        router.ended(NOW, 1, None);
        router.reported(NOW, 1, report(2, start_ms));
        router.reported(NOW, 2, Report { running, ..report(4, 50) });
        let decision = router.decide(NOW, &talk, &[1, 2], &market, &mut ChaCha12Rng::from_seed([1; 32]));
        assert_eq!(goes_to(&decision), Some(want), "{what}");
    }
}

#[test]
fn words_are_weighed_by_what_was_measured() {
    let mut router = Router::new(rules());
    let market = Stalls([(1, candidate(1_000, 20.0)), (2, candidate(1_000, 20.0))].into());
    let mut rng = ChaCha12Rng::from_seed([1; 32]);
    for _ in 0..20 {
        // It promises 50 ms and takes 1,000.
        router.ended(
            NOW,
            1,
            Some(Served { first_ms: (80.0, 1_030.0), per_unit_us: Some((100.0, 900.0)), output: 100 }),
        );
    }
    router.reported(NOW, 1, report(2, 50));
    router.reported(NOW, 2, report(2, 100));
    assert_eq!(goes_to(&router.decide(NOW, &ask(None), &[1, 2], &market, &mut rng)), Some(2));
    // Whatever is reported, nothing gets out of hand.
    let mad = Report { start_ms: u32::MAX, read_us_per_kilo: u32::MAX, per_unit_us: u32::MAX, ..report(u32::MAX, 0) };
    router.reported(NOW, 1, mad);
    router.ended(
        NOW,
        1,
        Some(Served { first_ms: (1e-9, f64::INFINITY), per_unit_us: Some((0.0, -1.0)), output: u64::MAX }),
    );
    assert_eq!(goes_to(&router.decide(NOW, &ask(None), &[1, 2], &market, &mut rng)), Some(2));
}

#[test]
fn money_is_reckoned_by_the_quote_at_hand_and_time_by_the_cache() {
    let prefix = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
    let talk = Ask { prefix: &prefix, ..ask(None) };
    let price = Price { input: Credits::new(9_000_000), cached: Credits::new(0), output: Credits::new(0) };
    // What is believed to be cached, what a quote bills as cached; units that are reckoned with, and money.
    for (held, billed, cached, money) in
        [(1000, None, 1000, 0.0), (1000, Some(0), 1000, 9_000.0), (0, Some(400), 400, 5_400.0), (0, None, 0, 9_000.0)]
    {
        let mut router = Router::new(rules());
        router.reported(NOW, 1, report(2, 50));
        router.holds_of(1, &prefix, 100, held);
        let market = Stalls([(1, Candidate { price, billed, ..candidate(0, 20.0) })].into());
        let decision = router.decide(NOW, &talk, &[], &market, &mut ChaCha12Rng::from_seed([1; 32]));
        let Decision::Go { expected, .. } = decision else { panic!("{decision:?}") };
        assert_eq!((expected.cached, expected.money), (cached, money), "{held} held, {billed:?} billed");
        // Its own word is better than what was remembered.
        router.holds_of(1, &prefix, 100, 300);
        assert_eq!(router.holders.held(&prefix, &1), 300);
    }
}

#[test]
fn a_load_on_a_jobs_frame_counts_as_a_report_and_forgives_nothing() {
    let mut router = Router::new(rules());
    let market = Stalls([(1, candidate(1_000, 20.0)), (2, candidate(1_000, 20.0))].into());
    let mut rng = ChaCha12Rng::from_seed([1; 32]);
    let slow = Served { first_ms: (80.0, 1_030.0), per_unit_us: Some((100.0, 900.0)), output: 100 };
    for _ in 0..20 {
        router.ended(NOW, 1, Some(slow));
    }
    router.overheard(NOW, 2, report(2, 100));
    for _ in 0..500 {
        router.overheard(NOW, 1, report(2, 50));
    }
    assert_eq!(goes_to(&router.decide(NOW, &ask(None), &[], &market, &mut rng)), Some(2));
    for _ in 0..500 {
        router.reported(NOW, 1, report(2, 50));
    }
    assert_eq!(
        goes_to(&router.decide(NOW, &ask(None), &[], &market, &mut rng)),
        Some(1),
        "who is asked may be forgiven"
    );

    // Jobs that were sent after what the word covers are taken off it; those before are in it.
    let ms = |ms| NOW.after(Duration::from_millis(ms));
    let mut router = Router::new(rules());
    for at in [0, 50] {
        router.sent(ms(at), 1, &ask(None), 0);
    }
    for (covers, free) in [(0, 1), (49, 1), (50, 2)] {
        router.overheard(ms(60), 1, Report { covers: ms(covers), ..report(2, 50) });
        assert_eq!(router.known[&1].free(), free, "covers {covers} ms");
    }
}

/// Liars are cheaper, nearer and idle, by their word.
#[test]
fn where_strangers_break_their_word_the_proven_come_first_and_the_rest_in_turn() {
    let liar = candidate(10, 1.0);
    let market = Stalls((1..=20).map(|id| (id, liar)).chain([(99, candidate(100, 50.0))]).collect());
    let mut rng = ChaCha12Rng::from_seed([2; 32]);
    // Strangers that failed, whether somebody is proven; whether the proven one is chosen.
    for (failures, proven, chosen) in [(0, true, false), (5, true, false), (6, true, true), (6, false, false)] {
        let mut router = Router::new(rules());
        if proven {
            router.proved(99);
        }
        for id in 1..=failures {
            router.failed(&id);
        }
        for id in market.0.keys() {
            router.reported(NOW, *id, report(4, if *id == 99 { 500 } else { 1 }));
        }
        let Decision::Go { to, .. } = router.decide(NOW, &ask(None), &[], &market, &mut rng) else { panic!() };
        assert_eq!(to == 99, chosen, "{failures} failed");
    }

    // Nobody is proven: who has not failed yet is tried before those who have, though they ask ten times as much.
    let mut router = Router::new(rules());
    let found = |standing| Candidate { standing, ..liar };
    let market = Stalls([(1, found(0.9)), (2, found(0.9)), (3, candidate(100, 50.0))].into());
    for id in [1, 2, 1, 2, 1, 2] {
        router.failed(&id);
    }
    for id in 1..=3 {
        router.reported(NOW, id, report(4, 1));
    }
    let decision = router.decide(NOW, &ask(None), &[], &market, &mut rng);
    assert!(matches!(decision, Decision::Go { to: 3, .. }), "{decision:?}");
    // As strangers keep their word again, it counts again.
    for id in 10..16 {
        router.proved(id);
    }
    let decision = router.decide(NOW, &ask(None), &[], &market, &mut rng);
    assert!(matches!(decision, Decision::Go { to: 1 | 2, .. }), "{decision:?}");
}

/// The first text is a proof until it is broken off; a job that ended is one for good.
#[test]
fn who_gave_text_is_believed_until_he_breaks_off() {
    let mut router = Router::new(rules());
    for id in 1..=6 {
        router.failed(&id);
    }
    assert!([1, 7, 8].iter().all(|id| router.doubts(id)));
    router.spoke(7);
    router.spoke(8);
    assert!(!router.doubts(&7) && !router.doubts(&8) && router.doubts(&9));
    let before = router.credit;
    router.failed(&7);
    assert!(router.doubts(&7) && router.credit < before, "it gave text and broke off");
    router.proved(8);
    let before = router.credit;
    router.failed(&8);
    assert!(!router.doubts(&8) && router.credit.total_cmp(&before).is_eq(), "its slot was taken meanwhile");
    // Whoever only speaks takes nobody's place who has served.
    for id in 100..100 + u32::try_from(PROVEN_MAX).expect("few") {
        router.proved(id);
    }
    router.spoke(9);
    assert!(router.proof(&9).is_none() && router.proof(&100).is_some());
    assert_eq!(router.proven.len(), PROVEN_MAX);
}

/// Nobody can make a name that is asked first.
#[test]
fn equal_strangers_are_asked_in_a_drawn_order() {
    let market = Stalls((0..20).map(|id| (id, candidate(100, 20.0))).collect());
    let mut rng = ChaCha12Rng::from_seed([4; 32]);
    let mut first = BTreeMap::new();
    for _ in 0..400 {
        let mut router = Router::new(rules());
        let Decision::Probe(who) = router.decide(NOW, &ask(None), &[], &market, &mut rng) else { panic!() };
        *first.entry(who[0]).or_insert(0) += 1;
    }
    // 20 each is expected; five standard deviations are 22.
    assert!(first.len() == 20 && first.values().all(|count| *count < 42), "{first:?}");
}

#[test]
fn some_jobs_explore() {
    let mut router = Router::new(RouterRules { explore_per_mille: 500, ..RouterRules::default() });
    let market = Stalls([(1, candidate(1_000, 20.0)), (2, candidate(90_000, 20.0))].into());
    let mut rng = ChaCha12Rng::from_seed([1; 32]);
    let mut dear = 0;
    for _ in 0..200 {
        router.reported(NOW, 1, report(4, 50));
        router.reported(NOW, 2, report(4, 50));
        dear += u32::from(goes_to(&router.decide(NOW, &ask(None), &[1, 2], &market, &mut rng)) == Some(2));
    }
    assert!((30..70).contains(&dear), "{dear} of 200 explored, a quarter expected");

    // A conversation whose prefix is held is no occasion.
    let prefix = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
    let talk = Ask { prefix: &prefix, ..ask(None) };
    router.sent(NOW, 1, &talk, 0);
    router.ended(NOW, 1, None);
    router.reported(NOW, 1, report(4, 50));
    for _ in 0..50 {
        assert_eq!(goes_to(&router.decide(NOW, &talk, &[1, 2], &market, &mut rng)), Some(1));
    }
}

#[test]
fn memory_is_bounded() {
    let mut router = Router::new(rules());
    for id in 0..u32::try_from(KNOWN_MAX).expect("small") + 100 {
        router.reported(Now(u64::from(id)), id, report(1, 1));
    }
    assert_eq!((router.known.len(), router.pool.len()), (KNOWN_MAX, rules().pool_max));
}
