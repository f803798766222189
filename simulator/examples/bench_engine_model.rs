//! How fast the engine model runs: `cargo run --release -p spillway-simulator --example bench_engine_model`.
//!
//! One replica of each preset is kept at about 70 % of what it can do, with requests like those of Azure's conversation
//! trace of 2023 (mean 1,155 tokens in, 211 out), and once with conversations that share prefixes. An event is a call that
//! changes the engine (`submit`) or something that it tells (`First`, `Done`).

#![expect(clippy::disallowed_types, clippy::disallowed_methods, reason = "it measures real time")]

use spillway_simulator::draws::Draws;
use spillway_simulator::engine::{Engine, EngineRules, Progress, preset, presets};
use std::time::Instant;

struct Request {
    gap_us: u64,
    input: u32,
    output: u32,
    prefix: Vec<u64>,
}

/// A request's sizes; `prefix` shares its first pieces with others of its group if `shared`.
fn draw(draws: &mut Draws, gap_us: u64, id: u64, shared: bool) -> Request {
    let input = draws.wait(1_155).min(8_000) as u32 + 1;
    let output = draws.wait(211).min(1_000) as u32 + 1;
    let group = draws.below(50);
    let prefix =
        (0..u64::from(input / 512)).map(|at| if shared && at < 4 { group << 8 | at } else { (id + 50) << 8 | at });
    Request { gap_us: draws.wait(gap_us), input, output, prefix: prefix.collect() }
}

/// Requests a second that the replica does when there is always one waiting.
fn capacity(rules: &EngineRules) -> f64 {
    let mut engine = Engine::new(rules.clone());
    let mut draws = Draws::new(1, "capacity");
    let (mut out, mut id, mut done, mut at) = (Vec::new(), 0, 0, 0);
    while done < 2_000 {
        while engine.load().waiting < 8 {
            let request = draw(&mut draws, 1, id, false);
            engine.submit(at, id, request.input, request.output, &request.prefix, 1);
            id += 1;
        }
        at = engine.next_at().expect("it is busy");
        out.clear();
        engine.advance(at, &mut out);
        done += out.iter().filter(|told| matches!(told, Progress::Done { .. })).count();
    }
    done as f64 * 1e6 / at as f64
}

fn measure(rules: &EngineRules, shared: bool) {
    let rate = 0.7 * capacity(rules);
    let mut draws = Draws::new(2, "bench");
    let requests: Vec<_> = (0..100_000).map(|id| draw(&mut draws, (1e6 / rate) as u64, id, shared)).collect();
    let mut engine = Engine::new(rules.clone());
    let mut out = Vec::new();
    let (mut now, mut told, mut reused, mut calls) = (0, 0_u64, 0_u64, 0_u64);

    let begin = Instant::now();
    for (id, request) in (0..).zip(&requests) {
        now += request.gap_us;
        while let Some(at) = engine.next_at()
            && at <= now
        {
            engine.advance(at, &mut out);
            calls += 1;
            told += out.len() as u64;
            reused += out.iter().filter(|told| matches!(told, Progress::First { cached: 1.., .. })).count() as u64;
            out.clear();
        }
        engine.submit(now, id, request.input, request.output, &request.prefix, 1);
    }
    let real_s = begin.elapsed().as_secs_f64();

    let events = told + requests.len() as u64;
    println!(
        "{:<26} {:>6.2} {:>5.0} % {:>11.0} {:>9.0} {:>12.0} {:>10.1} {:>8.1}",
        rules.name,
        rate,
        reused as f64 * 100.0 / requests.len() as f64,
        events as f64 / real_s,
        real_s * 1e9 / events as f64,
        now as f64 / 1e6 / real_s,
        engine.steps() as f64 / engine.flights() as f64,
        (calls + requests.len() as u64) as f64 / events as f64,
    );
}

fn main() {
    println!(
        "{:<26} {:>6} {:>7} {:>11} {:>9} {:>12} {:>10} {:>8}",
        "engine at 70 % load", "req/s", "reused", "events/s", "ns/event", "sim/real", "steps/fl.", "calls/ev"
    );
    for known in presets() {
        let rules = preset(&known.name).expect("each preset has a name");
        measure(&rules, false);
        measure(&rules, true);
    }
}
