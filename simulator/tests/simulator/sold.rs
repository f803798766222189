//! Selling what is idle does not slow the owner down: the same clients, with and without strangers on the owner's slots.
//! All times are virtual, and follow from the seeds.

use spillway_simulator::{Report, Scenario, Simulation};

/// What the owner's fleet does.
#[derive(Clone, Copy, Debug)]
struct Terms {
    sells: bool,
    preempt: bool,
    reserved_slots: u32,
}

/// Few without optimisation, where a run takes long.
const SEEDS: u64 = if cfg!(debug_assertions) { 3 } else { 12 };

/// The owner's own clients' waits for the first text over all seeds, the mean of the 50th and of the 99th percentile in
/// milliseconds, and how many jobs of the owner's clients and of strangers ran on the owner's slots.
fn run(terms: Terms) -> (f64, f64, u64) {
    let (mut p50, mut p99, mut sold) = (0, 0, 0);
    for seed in 0..SEEDS {
        let mut scenario = Scenario::named("sold", seed).expect("built in");
        let owner = &mut scenario.fleets[0];
        (owner.provide, owner.preempt, owner.reserved_slots) = (terms.sells, terms.preempt, terms.reserved_slots);
        let report: Report = Simulation::new(seed).scenario(scenario).run().assert_clean();
        let own = report.ttft_ms_by_fleet["owner"];
        (p50, p99, sold) = (p50 + own.p50, p99 + own.p99, sold + report.earned_micro_by_fleet["owner"]);
    }
    let mean = |sum: u64| sum as f64 / SEEDS as f64;
    (mean(p50), mean(p99), sold)
}

#[test]
fn the_owners_first_texts_come_as_soon_as_without_selling() {
    let terms = |sells, preempt, reserved_slots| Terms { sells, preempt, reserved_slots };
    let cases = [
        ("not selling", terms(false, true, 0)),
        ("selling, 0 reserved", terms(true, true, 0)),
        ("selling, 1 reserved", terms(true, true, 1)),
        ("selling without pre-emption, 0 reserved", terms(true, false, 0)),
        ("selling without pre-emption, 1 reserved", terms(true, false, 1)),
    ];
    let figures = cases.map(|(name, terms)| {
        let (p50, p99, earned) = run(terms);
        println!(
            "{name:<40} own first text: {p50:>6.0} ms (half), {p99:>6.0} ms (99 %); earned {earned} micro-credits"
        );
        (p50, p99, earned)
    });
    let [alone, sold, reserved, hard, hard_reserved] = figures;
    assert_eq!(alone.2, 0);
    for (name, case) in [("0 reserved", sold), ("1 reserved", reserved)] {
        assert!(case.0 <= alone.0 * 1.02 + 2.0, "{name}: {case:?} against {alone:?}");
        // Noise: which provider an own job that finds no slot spills to, and how near it is. A 99th percentile moves by 4 % over
        // twelve seeds for it, and by more over few.
        assert!(cfg!(debug_assertions) || case.1 <= alone.1 * 1.05, "{name}: {case:?} against {alone:?}");
        assert!(case.2 > 0, "{name}: it sells");
    }
    assert!(hard.0 > sold.0 * 1.1, "without pre-emption the owner waits: {hard:?} against {sold:?}");
    assert!(hard_reserved.0 <= hard.0, "a reserved slot helps: {hard_reserved:?} against {hard:?}");
    assert!(sold.2 >= reserved.2, "a reserved slot is not sold: {sold:?} against {reserved:?}");
}
