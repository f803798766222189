//! The loop against small settings where what has to happen is known.

use super::policies;
use super::*;
use crate::draws::Draws;
use crate::traces::{Request, Workload};
use std::collections::VecDeque;

/// Requests from a list.
pub(super) struct Listed(pub(super) VecDeque<Request>);

impl Workload for Listed {
    fn next(&mut self) -> Option<Request> {
        self.0.pop_front()
    }
}

pub(super) fn request(at_ms: u64, client: u32, input: u32, output: u32) -> Request {
    Request { at_us: at_ms * 1000, client, session: u64::from(client), input, output, prefix: Box::default() }
}

/// `count` requests from `clients`, on average `gap_ms` apart.
pub(super) fn poisson(seed: u64, count: u32, clients: u32, gap_ms: u64) -> Listed {
    let mut draws = Draws::new(seed, "test workload");
    let mut at_us = 0;
    let requests = (0..count).map(|_| {
        at_us += draws.wait(gap_ms * 1000);
        let session = draws.below(u64::from(clients) * 3);
        let blocks = draws.below(4);
        let input = 200 + 512 * blocks as u32 + draws.below(300) as u32;
        let prefix = (0..blocks).map(|block| session << 16 | block).collect();
        let output = draws.wait(120).min(800) as u32;
        Request { at_us, client: (session % u64::from(clients)) as u32, session, input, output, prefix }
    });
    Listed(requests.collect())
}

pub(super) fn setting(toml: &str) -> Setting {
    let head = "name = \"test\"\nduration_s = 100000\n";
    Setting::from_toml(&format!("{head}{toml}")).unwrap_or_else(|error| panic!("{error}"))
}

pub(super) fn run(seed: u64, setting: &Setting, workload: Listed, policy: &str) -> Outcome {
    let entry = policies::named(policy).unwrap();
    let make = |gateway| (entry.make)(seed, gateway);
    let fleet = Fleet::new(seed, setting.clone(), Box::new(workload), policy, &make).unwrap();
    fleet.keep_records().run()
}

/// A gateway with one own replica of two slots, and a stranger's.
const OWN_AND_STRANGER: &str = r#"
own_first = true
network = { jitter_us = 0 }
[[gateway]]
name = "acme"
region = "france"
organisation = "acme"
[[replica]]
name = "own"
engine = "rtx4090-llama-3.1-8b"
region = "france"
owner = "acme"
slots = 2
[[replica]]
name = "other"
engine = "rtxpro6000-llama-3.1-8b"
region = "us-east"
owner = "far"
sells = true
slots = 2
reserved_slots = 1
price = { input_micro = 20000, output_micro = 60000 }
"#;

#[test]
fn own_first_then_the_stranger_then_the_queue() {
    let outputs = [100, 100, 200, 100];
    let jobs = (0..4).map(|client| request(u64::from(client), client, 1000, outputs[client as usize])).collect();
    let outcome = run(1, &setting(OWN_AND_STRANGER), Listed(jobs), "least-load");
    let mut replicas: Vec<_> = outcome.records.iter().map(|record| (record.client, record.replica.unwrap())).collect();
    replicas.sort_unstable();
    // Two fit at home, the third goes to the stranger's one slot that is not reserved, the fourth waits for its own.
    assert_eq!(replicas, [(0, 0), (1, 0), (2, 1), (3, 0)], "{outcome:?}");
    assert_eq!((outcome.jobs.waited, outcome.jobs.network, outcome.jobs.own), (1, 1, 3));
    let spilled = outcome.records.iter().find(|record| record.client == 2).unwrap();
    assert_eq!(spilled.cost_micro, 20 + 12, "1,000 tokens at 20,000 and 200 at 60,000 micro-credits per million");
    assert!(outcome.records.iter().all(|record| record.client == 2 || record.cost_micro == 0));
    assert!(spilled.ttft_us.unwrap() > 90_000, "the round trip alone is 90 ms");
    assert!((outcome.providers[0].revenue - 22e-6).abs() < 1e-12, "70 % of 32, rounded down: {:?}", outcome.providers);
}

#[test]
fn the_owner_cuts_in_and_the_stranger_goes_on_elsewhere() {
    let toml = r#"
    network = { jitter_us = 0 }
    [[gateway]]
    name = "acme"
    region = "france"
    organisation = "acme"
    clients = [0, 0]
    [[gateway]]
    name = "guest"
    region = "france"
    organisation = "guest"
    clients = [1, 1]
    [[replica]]
    name = "first"
    engine = "rtx4090-llama-3.1-8b"
    region = "france"
    owner = "acme"
    sells = true
    slots = 1
    price = { input_micro = 1000000, output_micro = 1000000 }
    [[replica]]
    name = "second"
    engine = "rtx4090-llama-3.1-8b"
    region = "france"
    owner = "other"
    sells = true
    slots = 1
    price = { input_micro = 1000000, output_micro = 1000000 }
    "#;
    let jobs = [request(0, 1, 1000, 200), request(1000, 0, 500, 50)].into();
    let outcome = run(1, &setting(toml), Listed(jobs), "round-robin");
    let guest = outcome.records.iter().find(|record| record.client == 1).unwrap();
    assert_eq!(
        (outcome.jobs.cut, outcome.jobs.failed, guest.attempts, guest.replica),
        (1, 0, 1, Some(1)),
        "{outcome:?}"
    );
    // The prompt is read twice, the text so far once, and the whole answer is made once; a token costs a micro-credit.
    let made = guest.cost_micro - 2 * 1000 - 200;
    assert!((20..70).contains(&made), "a second at some 18 ms each: {made}");
    for (owner, paid) in [("acme", 1000 + made), ("other", 1000 + made + (200 - made))] {
        let provider = outcome.providers.iter().find(|provider| provider.owner == owner).unwrap();
        assert_eq!((provider.revenue * 1e6).round() as u64, paid * 70 / 100, "{owner}");
    }
    let owner = outcome.records.iter().find(|record| record.client == 0).unwrap();
    assert!(owner.ttft_us.unwrap() < 120_000, "it did not wait: {owner:?}");
}

#[test]
fn a_dead_replica_is_noticed_by_its_silence_and_its_job_goes_on() {
    let toml = OWN_AND_STRANGER.replace("slots = 2\n[[", "slots = 2\ndown_s = [[1, 60]]\n[[");
    let outcome = run(1, &setting(&toml), Listed([request(0, 0, 1000, 200)].into()), "least-load");
    let record = outcome.records[0];
    assert_eq!((outcome.jobs.died, record.attempts, record.replica, record.end), (1, 1, Some(1), End::Served));
    assert!(record.ttft_us.unwrap() < 200_000, "it began at home");
    // About 45 of 200 tokens are out after a second; 1.5 s of silence; the rest at the stranger's.
    assert!((4_000_000..6_000_000).contains(&record.e2e_us), "{record:?}");
}

/// Three organisations and two strangers that come and go.
const CHURN: &str = r#"
own_first = true
assign = "organisation"
queue = { length_max = 20, wait_ms = 4000 }
[[gateway]]
name = "a"
region = "france"
organisation = "a"
[[gateway]]
name = "b"
count = 2
region = "us-east"
organisation = "b"
[[gateway]]
name = "c"
region = "india"
organisation = "c"
[[replica]]
name = "a-gpu"
engine = "rtx4090-llama-3.1-8b"
region = "france"
owner = "a"
sells = true
slots = 3
reserved_slots = 1
churn = { up_s = 60, down_s = 10 }
price = { input_micro = 20000, output_micro = 50000 }
[[replica]]
name = "b-gpu"
engine = "rtx4090-llama-3.1-8b"
region = "us-east"
owner = "b"
slots = 2
queue_max = 5
[[replica]]
name = "stranger"
count = 2
engine = "rtxpro6000-llama-3.1-8b"
region = "us-west"
owner = "stranger"
sells = true
slots = 4
churn = { up_s = 30, down_s = 5 }
price = { input_micro = 10000, output_micro = 20000 }
"#;

#[test]
fn every_job_ends_once_under_every_policy() {
    let setting = setting(CHURN);
    for entry in policies::TABLE {
        for seed in 0..2 {
            let workload = poisson(seed, 600, 9, 120);
            let mut asked: Vec<_> = workload.0.iter().map(|it| (it.at_us, it.client, it.input, it.output)).collect();
            let outcome = run(seed, &setting, workload, entry.name);
            let mut ended: Vec<_> =
                outcome.records.iter().map(|it| (it.at_us, it.client, it.input, it.output)).collect();
            asked.sort_unstable();
            ended.sort_unstable();
            assert_eq!(asked, ended, "{} with seed {seed}", entry.name);
            let jobs = outcome.jobs;
            assert_eq!(jobs.total, jobs.own + jobs.network + jobs.failed + jobs.refused, "{}: {jobs:?}", entry.name);
            assert!(jobs.in_time <= jobs.own + jobs.network);
            assert!(jobs.own + jobs.network > 100, "{} does something: {jobs:?}", entry.name);
        }
    }
}

#[test]
fn a_seed_is_one_run() {
    let setting = setting(CHURN);
    for entry in policies::TABLE {
        let outcome = |seed| run(seed, &setting, poisson(1, 200, 9, 120), entry.name);
        assert_eq!(outcome(1), outcome(1), "{}", entry.name);
        assert_ne!(outcome(1).hash, outcome(2).hash, "{}: jitter and deaths differ", entry.name);
    }
}

#[test]
fn what_does_not_hold_is_named() {
    let good = format!("name = \"test\"\nduration_s = 100\n{CHURN}");
    for (from, to, says) in [
        ("duration_s = 100", "duration_s = 0", "duration_s: 0 is not between"),
        ("region = \"india\"", "region = \"mars\"", "gateway[2].region: `mars`"),
        ("engine = \"rtx4090-llama-3.1-8b\"", "engine = \"abacus\"", "replica[0].engine: no engine is named `abacus`"),
        ("slots = 3", "slots = 0", "replica[0].slots: 0"),
        ("reserved_slots = 1", "reserved_slots = 4", "replica[0].reserved_slots: 4"),
        ("owner = \"stranger\"\nsells = true", "owner = \"stranger\"", "replica[2].sells: is not set"),
        ("up_s = 60", "up_s = 0", "replica[0].churn.up_s: 0"),
        ("wait_ms", "wait_s", "wait_s"),
        ("own_first = true", "policies = [\"luck\"]", "policies[0]: no policy is named `luck`"),
    ] {
        assert!(good.contains(from), "`{from}`");
        let error = Setting::from_toml(&good.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(error.contains(says), "{from} -> {to} says: {error}");
    }
}

#[test]
fn every_built_in_reads() {
    for setting in built_in() {
        assert_eq!(named(&setting.name).unwrap(), setting);
    }
    let error = named("nowhere").unwrap_err().to_string();
    assert!(error.contains("spillover, corner"), "{error}");
}

#[test]
fn a_drawn_market_follows_from_its_seed_and_is_sized_for_the_mean() {
    let corner = named("corner").unwrap();
    let [one, again, other] = [1, 1, 2].map(|seed| corner.drawn(seed).unwrap());
    assert_eq!(one, again);
    assert_ne!(one.replicas, other.replicas);
    assert_eq!(one.gateways.len(), 3);
    let own = |setting: &Setting| {
        setting.replicas.iter().filter(|it| it.owner.starts_with("organisation")).map(|it| it.count).sum::<u32>()
    };
    let rules = corner.market.clone().unwrap();
    let mut lavish = corner.clone();
    lavish.market = Some(MarketRules { utilisation_percent: rules.utilisation_percent / 4, ..rules });
    assert!(own(&lavish.drawn(1).unwrap()) > own(&one), "a fleet that is to be less used is larger");
    // Every seller asks what a host in the table asks.
    let hosts = crate::data::prices::prices("llama-3.1-8b");
    for replica in one.replicas.iter().filter(|replica| replica.sells) {
        let price = replica.price;
        let known = hosts.iter().any(|it| (it.input_micro, it.output_micro) == (price.input_micro, price.output_micro));
        assert!(known, "{price:?}");
    }
}

#[test]
fn a_comparison_is_the_same_on_any_number_of_cores() {
    let corner = named("corner").unwrap();
    let entries = ["two-choices", "oracle"].map(|name| policies::named(name).unwrap());
    let [one, three] = [1, 3].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| compare(&corner, &entries, 3..5, |_, _| {})).unwrap()
    });
    assert_eq!(one, three);
    assert_eq!((one.policies.len(), one.seeds), (2, [3, 5]));
}

#[test]
fn nobody_keeps_more_promises_than_the_oracle_that_minds_no_cost() {
    let corner = named("corner").unwrap();
    let names = ["oracle-fast", "oracle", "random", "least-load", "prequal", "skywalker", "gorgo", "openrouter"];
    let entries = names.map(|name| policies::named(name).unwrap());
    let comparison = compare(&corner, &entries, 0..2, |_, _| {}).unwrap();
    let best = comparison.policies[0].slo.mean;
    for row in &comparison.policies {
        assert!(row.slo.mean <= best, "{} keeps {}, the oracle {best}", row.policy, row.slo.mean);
    }
}

#[test]
fn who_sees_all_refuses_only_when_all_is_full() {
    // Four slots for a load of many times that.
    let toml = OWN_AND_STRANGER.replace("own_first = true", "queue = { length_max = 5, wait_ms = 2000 }");
    let setting = setting(&toml);
    for seed in 0..20 {
        let outcome = run(seed, &setting, poisson(seed, 120, 3, 100), "oracle");
        assert!(outcome.jobs.refused > 10, "seed {seed}: {:?}", outcome.jobs);
        assert!(outcome.jobs.refused_while_free == 0, "seed {seed}: {:?}", outcome.jobs);
    }
}
