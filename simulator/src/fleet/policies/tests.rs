//! Each policy in a tiny fleet where the right choice is known.

use crate::fleet::tests::{Listed, request, run, setting};
use crate::fleet::{Outcome, Record};
use crate::traces::Request;

/// A gateway in France and a replica each in France, the eastern US and Australia, of other owners, in one data centre's
/// sight: 0 is near, 1 is far and cheap, 2 is farthest and dear.
const WORLD: &str = r#"
live = true
network = { jitter_us = 0 }
slo = { ttft_ms = 250, ttft_per_1000_input_ms = 0, tpot_ms = 100 }
[[gateway]]
name = "gateway"
region = "france"
organisation = "acme"
[[replica]]
name = "near"
engine = "rtx4090-llama-3.1-8b"
region = "france"
owner = "near"
sells = true
slots = 64
price = { input_micro = 30000, output_micro = 30000 }
[[replica]]
name = "far"
engine = "rtx4090-llama-3.1-8b"
region = "us-east"
owner = "far"
sells = true
slots = 64
price = { input_micro = 10000, output_micro = 10000 }
[[replica]]
name = "farthest"
engine = "rtx4090-llama-3.1-8b"
region = "australia"
owner = "farthest"
sells = true
slots = 64
price = { input_micro = 40000, output_micro = 40000 }
"#;

/// A prompt of `input` tokens whose blocks are named after `text`.
fn prompt(at_ms: u64, text: u64, input: u32, output: u32) -> Request {
    let prefix = (0..u64::from(input) / 512).map(|block| text << 16 | block).collect();
    Request { session: text, prefix, ..request(at_ms, 0, input, output) }
}

/// Where jobs ended, in the order in which they were asked.
fn places(policy: &str, toml: &str, requests: Vec<Request>) -> (Vec<u32>, Outcome) {
    let outcome = run(1, &setting(toml), Listed(requests.into()), policy);
    let mut records: Vec<&Record> = outcome.records.iter().collect();
    records.sort_by_key(|record| record.at_us);
    let places = records.iter().map(|record| record.replica.expect("all are served")).collect();
    (places, outcome)
}

fn count(places: &[u32], replica: u32) -> usize {
    places.iter().filter(|it| **it == replica).count()
}

/// `count` jobs, so far apart that each finds an empty fleet.
fn apart(count: u64) -> Vec<Request> {
    (0..count).map(|nth| prompt(nth * 10_000, nth, 600, 20)).collect()
}

/// `count` jobs at once, microseconds apart.
fn together(count: u64) -> Vec<Request> {
    (0..count).map(|nth| Request { at_us: nth, ..prompt(0, nth, 600, 100) }).collect()
}

#[test]
fn random_takes_each_as_often() {
    let (places, _) = places("random", WORLD, apart(300));
    assert!((0..3).all(|replica| (75..125).contains(&count(&places, replica))), "{places:?}");
}

#[test]
fn round_robin_goes_round() {
    assert_eq!(places("round-robin", WORLD, apart(5)).0, [0, 1, 2, 0, 1]);
}

#[test]
fn least_load_fills_evenly_and_counts_what_is_on_its_way() {
    let (places, _) = places("least-load", WORLD, together(30));
    assert_eq!([0, 1, 2].map(|replica| count(&places, replica)), [10, 10, 10]);
}

#[test]
fn two_choices_are_nearly_even() {
    let (places, _) = places("two-choices", WORLD, together(60));
    assert!((0..3).all(|replica| (15..=25).contains(&count(&places, replica))), "{places:?}");
}

#[test]
fn a_session_stays_and_sessions_spread() {
    let requests = (0..60).map(|nth| prompt(nth * 10_000, nth % 20, 600, 20)).collect();
    let (places, _) = places("session-hash", WORLD, requests);
    assert!((0..40).all(|nth| places[nth] == places[nth + 20]), "{places:?}");
    assert!((0..3).all(|replica| count(&places, replica) >= 6), "{places:?}");
}

#[test]
fn a_prefix_goes_where_it_is_cached_however_busy_that_is() {
    let mut requests = vec![prompt(0, 1, 2048, 20)];
    requests.extend((0..40).map(|nth| Request { at_us: 10_000_000 + nth, ..prompt(0, 1, 2048, 100) }));
    let (places, outcome) = places("longest-prefix", WORLD, requests);
    assert_eq!(count(&places, places[0]), 41, "{places:?}");
    assert!(outcome.hit_rate > 0.7, "{}", outcome.hit_rate);
}

#[test]
fn sglang_leaves_the_cache_when_queues_are_out_of_balance() {
    // All of one prompt: the 34th finds a queue of 33 against 0, which is more than 32 more.
    let one = (0..40).map(|nth| Request { at_us: nth, ..prompt(0, 1, 2048, 100) }).collect();
    let first = |places: &[u32]| places.iter().take_while(|it| **it == places[0]).count();
    assert_eq!(first(&places("sglang", WORLD, one).0), 33);
    let one = (0..80).map(|nth| Request { at_us: nth, ..prompt(0, 1, 2048, 100) }).collect();
    let later = places("sglang-2025", &WORLD.replace("slots = 64", "slots = 200"), one).0;
    assert_eq!(first(&later), 65);
    // Prompts of which little is known go to the smallest tree: evenly.
    let (spread, _) = places("sglang", WORLD, apart(9));
    assert_eq!([0, 1, 2].map(|replica| count(&spread, replica)), [3, 3, 3]);
}

#[test]
fn skywalker_pushes_only_where_nothing_waits() {
    // Two prompts of 19,000 tokens fill a replica's memory, so the third waits in its engine: the fourth goes elsewhere.
    let every = |gap_ms: u64, count: u64| (0..count).map(|nth| prompt(nth * gap_ms, nth, 19_000, 1000)).collect();
    let (places, outcome) = places("skywalker", WORLD, every(5_000, 4));
    assert_eq!(places[..3], [0, 0, 0], "near as long as nothing waits there");
    assert_ne!(places[3], 0);
    assert_eq!(outcome.jobs.waited, 0);
    // Where all have one that waits, the balancer keeps it.
    let (_, outcome) = self::places("skywalker", WORLD, every(1_000, 14));
    assert!(outcome.jobs.waited > 0 && outcome.jobs.refused == 0, "{:?}", outcome.jobs);
}

#[test]
fn skywalker_forwards_to_the_balancer_of_the_other_region() {
    let toml = r#"
    live = true
    network = { jitter_us = 0 }
    [[gateway]]
    name = "here"
    region = "france"
    organisation = "acme"
    clients = [0, 0]
    [[gateway]]
    name = "there"
    region = "us-east"
    organisation = "acme"
    clients = [1, 1]
    [[replica]]
    name = "there"
    engine = "rtx4090-llama-3.1-8b"
    region = "us-east"
    owner = "acme"
    slots = 64
    "#;
    let (places, outcome) = places("skywalker", toml, vec![prompt(0, 1, 600, 20)]);
    assert_eq!((places, outcome.records[0].gateway), (vec![0], 0));
    // There and back over 90 ms, by way of a balancer next to the replica: a millisecond more.
    let ttft_us = outcome.records[0].ttft_us.unwrap();
    assert!((150_000..200_000).contains(&ttft_us), "{ttft_us}");
}

#[test]
fn gorgo_weighs_distance_cache_and_queue() {
    // Nothing cached, nothing queued: the nearest.
    assert_eq!(places("gorgo", WORLD, apart(3)).0, [0, 0, 0]);
    // A queue worth more than the distance: the next.
    let (far, _) = places("gorgo", WORLD, together(80));
    assert!(count(&far, 0) > count(&far, 1) && count(&far, 1) > 0, "{far:?}");
    // The near one dies; its job's prompt is then cached far away, and that outweighs the distance of the next.
    let toml = WORLD.replacen("slots = 64", "slots = 64\ndown_s = [[0, 20]]", 1);
    let cached = vec![prompt(5_000, 7, 8_192, 20), prompt(60_000, 7, 8_192, 20), prompt(120_000, 8, 8_192, 20)];
    assert_eq!(places("gorgo", &toml, cached).0, [1, 1, 0]);
}

#[test]
fn prequal_probes_three_times_a_job_and_avoids_the_slow() {
    let toml = WORLD.replace("live = true", "live = false").replace("\"australia\"", "\"france\"");
    let toml = toml.replace("\"us-east\"", "\"france\"").replace("rtx4090", "rtxpro6000");
    let toml = toml.replacen("rtxpro6000", "rtx4090", 1);
    let requests = (0..300).map(|nth| prompt(nth * 100, nth, 3_000, 40)).collect();
    let (places, outcome) = places("prequal", &toml, requests);
    let slow = count(&places, 0);
    assert!(slow < 45, "{slow} of 300 to the slow one; a third would be blind");
    assert!((2.9..3.1).contains(&outcome.probes_per_job), "{}", outcome.probes_per_job);
}

#[test]
fn openrouter_draws_by_the_inverse_square() {
    // 1/3², 1/1², 1/4²: 9.5 %, 85.2 %, 5.3 %.
    let (places, _) = places("openrouter", WORLD, apart(1000));
    let counts = [0, 1, 2].map(|replica| count(&places, replica));
    assert!((65..125).contains(&counts[0]) && (35..75).contains(&counts[2]), "{counts:?}");
}

#[test]
fn the_cheapest_is_taken_until_it_is_full() {
    assert_eq!(places("cheapest", WORLD, apart(3)).0, [1, 1, 1]);
    let toml = WORLD.replace("slots = 64", "slots = 2");
    let (mut places, outcome) = places("cheapest", &toml, together(5));
    places.sort_unstable();
    assert_eq!((places, outcome.jobs.turned_away), (vec![0, 0, 1, 1, 2], 5 - 2 + 1), "by price: 1, 0, 2");
}

#[test]
fn own_only_waits_rather_than_leave() {
    let toml =
        WORLD.replacen("organisation = \"acme\"", "organisation = \"near\"", 1).replace("slots = 64", "slots = 2");
    let (places, outcome) = places("own-only", &toml, together(6));
    assert_eq!((places, outcome.jobs.waited, outcome.jobs.network), (vec![0; 6], 4, 0));
}

#[test]
fn the_oracle_takes_the_cheapest_that_is_in_time() {
    // 90 ms away and a prompt of 600 tokens: within 250 ms, so the cheap one. With 120 ms to go, only the near one is.
    assert_eq!(places("oracle", WORLD, apart(2)).0, [1, 1]);
    assert_eq!(places("oracle", &WORLD.replace("ttft_ms = 250", "ttft_ms = 120"), apart(2)).0, [0, 0]);
    // None is in time: the fastest.
    assert_eq!(places("oracle", &WORLD.replace("ttft_ms = 250", "ttft_ms = 5"), apart(2)).0, [0, 0]);
    // Two are all that the cheap one serves in time; the next go to the near one.
    let (spread, outcome) = places("oracle", WORLD, together(40));
    assert_eq!(spread[..3], [1, 1, 0], "{spread:?}");
    let blind = places("cheapest", WORLD, together(40)).1;
    assert!(outcome.slo > blind.slo, "{} and {}", outcome.slo, blind.slo);
}
