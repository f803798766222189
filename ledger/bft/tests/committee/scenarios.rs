//! What is done to a committee, and what must be true afterwards. Each gives its figures as JSON.

use std::time::Instant;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use spillway_ledger::{Action, Credits, Digest};

use super::load::Load;
use super::{Committee, Manner, wait_for};

const ALL: [usize; 4] = [0, 1, 2, 3];

/// Kills the first `victims` validators once each, under load: the others go on, and it catches up after its restart.
pub fn one_down(victims: usize) -> Value {
    let mut committee = Committee::four();
    let load = Load::start(&mut committee, 8, 4);
    let mut caught_up_ms = Vec::new();
    for victim in ALL.into_iter().take(victims) {
        let others: Vec<usize> = ALL.into_iter().filter(|index| *index != victim).collect();
        let height = committee.top(&ALL);
        committee.wait_height(&others, height + 10);
        committee.kill(victim);
        let height = committee.top(&others);
        committee.wait_height(&others, height + 20);
        let missed = committee.top(&others);
        let start = Instant::now();
        committee.start(victim);
        committee.wait_height(&[victim], missed);
        caught_up_ms.push(start.elapsed().as_millis());
        // It decides with the others again: nothing happens without three of four, so do not let a fourth one do it.
        let silent = others[0];
        committee.kill(silent);
        let rest: Vec<usize> = ALL.into_iter().filter(|index| *index != silent).collect();
        let height = committee.top(&rest);
        committee.wait_height(&rest, height + 5);
        committee.start(silent);
    }
    let entries = load.count();
    finish(
        &mut committee,
        load,
        &ALL,
        json!({ "campaign": "one_down", "entries": entries, "caught_up_ms": caught_up_ms }),
    )
}

/// Kills and restarts validators at random moments; at most one is down for long, sometimes two at once for a moment.
pub fn kill_cycles(cycles: u64, seed: u64) -> Value {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut committee = Committee::four();
    let load = Load::start(&mut committee, 8, 4);
    let (start, mut two_down, mut kills, mut replays) = (Instant::now(), 0, 0, 0);
    for cycle in 0..cycles {
        let victim = random.random_range(0..4);
        let mut down = vec![victim];
        if random.random_range(0..8) == 0 {
            down.push((victim + random.random_range(1..4)) % 4);
            two_down += 1;
        }
        // A random moment within a block's way; then some while down.
        pause(random.random_range(0..400));
        for index in &down {
            committee.kill(*index);
            kills += 1;
        }
        pause(random.random_range(0..600));
        for index in &down {
            committee.start(*index);
        }
        // Heights go on before the next cycle: this would never end if a restart left a validator stuck for good.
        let height = committee.top(&ALL);
        wait_for(&format!("heights to go on in cycle {cycle} (seed {seed})"), || {
            committee.check_alive();
            (committee.top(&ALL) > height + 1).then_some(())
        });
        let replayed = down.iter().filter_map(|index| committee.status(*index)).filter(|status| status.replayed > 0);
        replays += replayed.count();
    }
    let entries = load.count();
    assert!(entries > 0, "nothing was acknowledged");
    let seconds = start.elapsed().as_secs_f64();
    let figures = json!({
        "campaign": "kill_cycles", "seed": seed, "cycles": cycles, "kills": kills, "two_down": two_down,
        "restarts_in_mid_height": replays,
        "entries": entries, "seconds": seconds,
    });
    finish(&mut committee, load, &ALL, figures)
}

/// One validator proposes wrong blocks whenever it is its turn: none is committed, and the others go on.
pub fn lies(each: usize) -> Value {
    let kinds = ["state_root", "forged", "double_spend", "future"];
    let mut manners = vec![Manner::default(); 4];
    manners[1].lies = kinds.to_vec();
    let mut committee = Committee::new(4, &manners, false);
    ALL.into_iter().for_each(|index| committee.start(index));
    let liar = committee.keys[1].clone();
    let load = Load::start(&mut committee, 4, 1);
    committee.fund(&[liar], 1_000);
    let told = wait_for("enough lies", || {
        committee.check_alive();
        let told = lies_told(&committee, 1);
        kinds.iter().all(|kind| told.iter().filter(|(lie, _)| lie == kind).count() >= each).then_some(told)
    });
    let height = committee.top(&ALL);
    committee.wait_height(&ALL, height + 4);
    let rounds = committee.status(0).map_or(0, |status| status.extra_rounds);
    let entries = load.count();
    assert!(entries > 0, "nothing was acknowledged");
    let acknowledged = load.stop();
    let told_last = lies_told(&committee, 1);
    let comparison = committee.compare(&ALL, &acknowledged);
    comparison.check();
    let committed = told_last.iter().filter(|(_, block)| comparison.blocks.contains(block)).count();
    assert_eq!(committed, 0, "a wrong block is in the books");
    json!({
        "campaign": "lies", "told": told.len(), "committed": committed, "entries": entries,
        "heights": comparison.heights, "extra_rounds": rounds, "conflicts": comparison.conflicts,
        "lost": comparison.lost,
    })
}

/// The lies that a validator told: their kinds and blocks.
fn lies_told(committee: &Committee, index: usize) -> Vec<(String, Digest)> {
    let text = std::fs::read_to_string(committee.nodes[index].folder.join("lies.jsonl")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines
        .map(|line| {
            let word = |name: &str| line[name].as_str().expect("the program wrote it").to_owned();
            (word("lie"), word("block").parse().expect("a digest"))
        })
        .collect()
}

/// A validator's key runs twice: the two contradict each other, the ledger records it and takes the validator out.
pub fn twins() -> Value {
    let mut committee = Committee::four();
    let load = Load::start(&mut committee, 4, 3);
    let culprit = committee.keys[3].public();
    let twin = committee.twin(3);
    committee.start(twin);
    let honest = [0, 1, 2];
    let status = wait_for("the ledger to know of the offence", || {
        committee.check_alive();
        committee.status(0).filter(|status| !status.validators.contains(&culprit))
    });
    let removed = status.height;
    // The other three are the committee now, and go on.
    committee.wait_height(&honest, removed + 5);
    let entries = load.count();
    let figures = json!({ "campaign": "twins", "removed_at": removed, "entries": entries });
    let figures = finish(&mut committee, load, &honest, figures);
    assert_ne!(figures["evidence"], json!(0), "the ledger has no evidence");
    figures
}

/// A fifth validator is elected while heights go on, and takes part afterwards.
pub fn election() -> Value {
    let mut committee = Committee::new(4, &vec![Manner::default(); 5], false);
    let everyone = [0, 1, 2, 3, 4];
    everyone.into_iter().for_each(|index| committee.start(index));
    let load = Load::start(&mut committee, 4, 4);
    let fifth = committee.keys[4].clone();
    committee.fund(std::slice::from_ref(&fifth), 10_000);
    let bond = committee.entry(&fifth, 0, 1, Action::Bond { amount: Credits::new(1_000) });
    committee.submit(0, &bond).expect("it has the credits");
    let now = committee.top(&ALL);
    let at = now + 30;
    for voter in &ALL[..3] {
        let elect = Action::Elect { validator: fifth.public(), member: true, at };
        let elect = committee.entry(&committee.keys[*voter], 0, now, elect);
        committee.submit(*voter, &elect).expect("a validator may vote");
    }
    committee.wait_height(&everyone, at + 5);
    let status = wait_for("an answer", || committee.status(0));
    assert!(status.validators.contains(&fifth.public()), "elected, but no validator");
    // With five, four must agree: with one of the first four dead, nothing goes on without the fifth.
    committee.kill(0);
    let rest = [1, 2, 3, 4];
    let height = committee.top(&rest);
    committee.wait_height(&rest, height + 5);
    committee.start(0);
    let entries = load.count();
    finish(&mut committee, load, &everyone, json!({ "campaign": "election", "at": at, "entries": entries }))
}

/// Two and two cannot hear each other: nothing is decided; together again, they go on without a fork.
pub fn partition(times: u32) -> Value {
    let mut committee = Committee::new(4, &vec![Manner::default(); 4], true);
    ALL.into_iter().for_each(|index| committee.start(index));
    let load = Load::start(&mut committee, 4, 4);
    let mut healed_ms = Vec::new();
    for round in 0..times {
        let height = committee.top(&ALL);
        committee.wait_height(&ALL, height + 10);
        let other = 1 + (round as usize) % 3;
        let one = [0, other];
        let two: Vec<usize> = ALL.into_iter().filter(|index| !one.contains(index)).collect();
        committee.cut(&one, &two, true);
        // What was decided before the cut may still arrive within a half; then heights stand still.
        let settled = still(&committee);
        let entries = load.count();
        pause(3_000);
        assert_eq!(committee.heights(&ALL), settled, "a half decided alone");
        assert_eq!(load.count(), entries, "a half acknowledged an entry alone");
        let top = committee.top(&ALL);
        let start = Instant::now();
        committee.cut(&one, &two, false);
        committee.wait_height(&ALL, top + 3);
        healed_ms.push(start.elapsed().as_millis());
    }
    let entries = load.count();
    finish(
        &mut committee,
        load,
        &ALL,
        json!({ "campaign": "partition", "times": times, "entries": entries, "healed_ms": healed_ms }),
    )
}

/// A validator whose clock is a minute slow refuses what the others propose, and follows them all the same.
pub fn slow_clock() -> Value {
    let mut manners = vec![Manner::default(); 4];
    manners[2].clock_ms = -60_000;
    let mut committee = Committee::new(4, &manners, false);
    ALL.into_iter().for_each(|index| committee.start(index));
    let load = Load::start(&mut committee, 4, 4);
    let height = committee.top(&ALL);
    committee.wait_height(&ALL, height + 20);
    let entries = load.count();
    finish(&mut committee, load, &ALL, json!({ "campaign": "slow_clock", "entries": entries }))
}

/// Waits until heights have not moved for a second; gives them.
fn still(committee: &Committee) -> Vec<u64> {
    let mut last = (committee.heights(&ALL), Instant::now());
    wait_for("heights to stand still", || {
        let now = committee.heights(&ALL);
        if now != last.0 {
            last = (now, Instant::now());
        }
        (last.1.elapsed().as_secs() >= 1).then(|| last.0.clone())
    })
}

/// Lets some time pass: here it is the moment of a fault that matters, not a state to wait for.
fn pause(ms: u64) {
    std::thread::sleep(std::time::Duration::from_millis(ms));
}

/// Stops the load, lets everybody catch up, and compares the books.
fn finish(committee: &mut Committee, load: Load, of: &[usize], mut figures: Value) -> Value {
    let acknowledged = load.stop();
    let top = acknowledged.iter().map(|entry| entry.height).max().unwrap_or(0).max(committee.top(of));
    committee.wait_height(of, top);
    let rounds = committee.status(of[0]).map_or(0, |status| status.extra_rounds);
    figures["processor_seconds"] = json!(of.iter().map(|index| committee.processor_seconds(*index)).sum::<f64>());
    let comparison = committee.compare(of, &acknowledged);
    comparison.check();
    figures["acknowledged"] = json!(comparison.acknowledged);
    figures["heights"] = json!(comparison.heights);
    figures["extra_rounds"] = json!(rounds);
    figures["evidence"] = json!(comparison.evidence);
    figures["conflicts"] = json!(comparison.conflicts);
    figures["lost"] = json!(comparison.lost);
    figures
}
