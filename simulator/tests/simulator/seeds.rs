//! Seeds that failed once, each with what it found. They stay.

use spillway_simulator::Simulation;
use spillway_simulator::trial::overload;

#[test]
fn seeds_that_failed_once_pass() {
    for (scenario, seed, found) in [
        ("swarm", 477, "a backend event longer than the window was never paid for"),
        ("swarm", 42, "a voucher in a refused opening counted as promised and was never sent again"),
        ("swarm", 180, "a record written with a voucher forgot what running legs had delivered"),
        ("swarm", 108, "a provider and its consumer each waited for the other's next move"),
        ("swarm", 256, "as 108, on a job that cannot be continued"),
        ("swarm", 314, "as 477, until every provider was banned"),
        (
            "swarm",
            18,
            "the newest voucher was lost with a refused opening, and what was due was less than that promise",
        ),
        ("swarm", 137, "a leg that broke beside one just opened left the consumer below what the provider had claimed"),
        ("swarm", 109, "a broken leg was booked so high that legs still running went above the deposit"),
        ("swarm", 649, "as 109"),
        ("swarm", 5780, "a voucher that came with a new job did not release what other jobs of the session held"),
        ("swarm", 5063, "as 5780"),
        ("swarm", 5780, "a better voucher inside an opening did not release what another leg of the session held"),
        ("swarm", 5063, "as 5780"),
        ("swarm", 3, "a job that was sooner served here, and had waited as long as it may, was looked at without end"),
        ("swarm", 6, "a job of which an event without text was out made way as if another could go on with it"),
        ("swarm", 866, "the owner took a job's slot, and its gateway had no money for another provider"),
        ("swarm", 1381, "owners took a job's slot three times, and every other place stayed taken"),
        ("swarm", 1720, "a gateway that had slept gave a provider up before it read that its session was open"),
        ("swarm", 589, "a slot counted as idle for a job while it was meant for an earlier one on its way"),
        ("swarm", 1790, "as 589"),
        ("swarm", 2019, "as 589"),
        ("swarm", 2327, "as 589, and the provider then refused the earlier job"),
        (
            "swarm",
            1331,
            "an owner took a job's slot when it had waited as long as it may, and the next provider turned it down",
        ),
        ("swarm", 1450, "a node whose clock is ahead asked for its deposit too early"),
        ("swarm", 35, "a leg that broke off took what was paid ahead for one beside it"),
        ("swarm", 161, "as 35"),
        ("swarm", 73, "as 35"),
        (
            "swarm",
            1478,
            "a frozen node crashed before it was told that a stream had ended, and its leg was never counted",
        ),
        ("swarm", 2942, "as 1478"),
        ("swarm", 7373, "as 1478"),
        ("swarm", 9080, "as 1478"),
        ("swarm", 2589, "each of two legs that broke off set its own window aside, beyond what was promised for both"),
        ("swarm", 2274, "as 2589, until no job fitted into the session any more"),
        ("swarm", 1490, "money just locked for one job counted as free for another"),
        (
            "swarm",
            8552,
            "one that there was no money for was tried, and a probe still under way to another was given up",
        ),
        ("faults", 1, "a claim for what a frozen provider delivered on a stream that had ended"),
    ] {
        let report = Simulation::new(seed).named(scenario).run();
        assert!(report.violations.is_empty(), "{found}: {}", report.failure().unwrap_or_default());
    }
}

#[test]
fn an_overload_that_turned_one_away_in_vain_passes() {
    // What a job found on its last look went to one that waited in the queue.
    let report = Simulation::new(921).scenario(overload::scenario(921)).run();
    assert!(report.violations.is_empty(), "{}", report.failure().unwrap_or_default());
}
