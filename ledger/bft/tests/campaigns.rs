//! The campaigns in their short form, on real processes. `scripts/validators.sh` runs the long form.

mod committee;

use std::sync::{Mutex, PoisonError};

use committee::scenarios;

/// One committee at a time: four validators keep a small machine busy enough.
static ALONE: Mutex<()> = Mutex::new(());

fn alone(run: impl FnOnce() -> serde_json::Value) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    println!("{}", run());
}

#[test]
fn with_one_of_four_down_the_rest_goes_on_and_it_catches_up() {
    alone(|| scenarios::one_down(1));
}

#[test]
fn random_kills_lose_nothing_and_fork_nothing() {
    alone(|| scenarios::kill_cycles(8, 7));
}

#[test]
fn wrong_blocks_are_never_committed() {
    alone(|| scenarios::lies(1));
}

#[test]
fn two_processes_with_one_key_end_up_as_evidence() {
    alone(scenarios::twins);
}

#[test]
fn a_fifth_validator_is_elected_without_a_pause() {
    alone(scenarios::election);
}

#[test]
fn two_and_two_halt_and_heal_without_a_fork() {
    alone(|| scenarios::partition(1));
}

#[test]
fn a_slow_clock_votes_for_nothing_and_still_follows() {
    alone(scenarios::slow_clock);
}
