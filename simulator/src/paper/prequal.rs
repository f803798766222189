//! Prequal's load ramp: beyond what a fleet of one's own can do, up to 1.74 times.
//!
//! Prequal ran CPU-bound queries on replicas whose machines had spare capacity next to antagonists' load. Here the spare
//! capacity is what strangers' fleets leave beside their own clients. Choices, and why: `docs/published.md`.

use super::lab::setting;
use super::{Lab, PaperError, Row};
use crate::draws::Draws;
use crate::fleet::{End, Outcome, Setting};
use crate::traces::sampling::exponential;
use crate::traces::{Request, Trace};

pub(super) const SOURCE: &str =
    "Wydrowski et al., Load is Not What You Should Balance: Introducing Prequal, NSDI 2024, section 5.1";

const SEED: u64 = 1;
/// The ramp's steps above the allocation: each 10/9 of the one before, from 0.75 on. In hundredths.
const STEPS: [u32; 6] = [103, 114, 127, 141, 157, 174];
/// A query that takes longer is an error, in microseconds.
const TIMEOUT_US: u64 = 5_000_000;
/// Replicas of the fleet under load.
const HOME: u32 = 8;
/// Strangers, and replicas of each.
const STRANGERS: u32 = 8;
const EACH: u32 = 2;
/// What strangers' own clients need of their fleets: the antagonists' load, in percent, by stranger.
const ANTAGONISTS: [u32; 8] = [10, 20, 30, 40, 50, 60, 70, 80];
/// Clients of the home fleet, and of each stranger.
const CLIENTS: u32 = 1000;

fn fleets() -> Result<Setting, PaperError> {
    let mut toml = format!(
        r#"
        name = "prequal"
        duration_s = 100000
        warmup_s = 30
        own_first = true
        slo = {{ ttft_ms = 5000, ttft_per_1000_input_ms = 0, tpot_ms = 200 }}
        queue = {{ length_max = 100000, wait_ms = 5000 }}
        [[gateway]]
        name = "home"
        region = "us-east"
        organisation = "home"
        clients = [0, {}]
        [[replica]]
        name = "home"
        count = {HOME}
        engine = "rtx4090-llama-3.1-8b"
        region = "us-east"
        owner = "home"
        slots = 16
        "#,
        CLIENTS - 1
    );
    for stranger in 0..STRANGERS {
        let first = CLIENTS * (stranger + 1);
        let last = first + CLIENTS - 1;
        toml += &format!(
            r#"
            [[gateway]]
            name = "stranger-{stranger}"
            region = "us-central"
            organisation = "stranger-{stranger}"
            clients = [{first}, {last}]
            [[replica]]
            name = "stranger-{stranger}"
            count = {EACH}
            engine = "rtx4090-llama-3.1-8b"
            region = "us-central"
            owner = "stranger-{stranger}"
            sells = true
            price = {{ input_micro = 20000, output_micro = 50000 }}
            slots = 16
            reserved_slots = 2
            "#
        );
    }
    Ok(setting(&toml, Vec::new())?)
}

/// A request of chat size: the median prompt and answer of Azure's conversation trace of 2023 (1,020 and 129 tokens), spread
/// evenly from a fifth of it to nine fifths.
fn request(draws: &mut Draws, at_us: u64, client: u32) -> Request {
    let spread = |draws: &mut Draws, median: u64| draws.within([median / 5, median * 9 / 5]) as u32;
    let (input, output) = (spread(draws, 1020), spread(draws, 129));
    Request { at_us, client, session: at_us, input, output, prefix: Box::default() }
}

/// What one replica does at most, in requests a second: measured with all slots always taken.
fn capacity(lab: &Lab<'_>) -> Result<f64, PaperError> {
    let toml = r#"
        name = "prequal, one replica"
        duration_s = 1000
        queue = { wait_ms = 1000000 }
        [[gateway]]
        name = "home"
        region = "us-east"
        organisation = "home"
        [[replica]]
        name = "home"
        engine = "rtx4090-llama-3.1-8b"
        region = "us-east"
        owner = "home"
        slots = 16
        "#;
    let mut draws = Draws::new(SEED, "prequal capacity");
    let requests: Vec<_> = (0..1000).map(|client| request(&mut draws, 0, client)).collect();
    let count = requests.len() as f64;
    let outcome = lab.run(SEED, &setting(toml, Vec::new())?, Box::new(Trace::new(requests).replay()), "random")?;
    Ok(count / outcome.end_s)
}

/// Poisson arrivals: the home fleet's at `load` of its capacity, the strangers' at theirs.
fn ramp(per_replica: f64, load: f64, seconds: f64) -> Trace {
    let mut requests = Vec::new();
    let mut arrivals = |concern: &str, first: u32, per_s: f64| {
        let mut draws = Draws::new(SEED, concern);
        let mut at = 0.0;
        loop {
            at += exponential(&mut draws) / per_s.max(1e-9);
            if at >= seconds {
                return;
            }
            let client = first + draws.below(u64::from(CLIENTS)) as u32;
            requests.push(request(&mut draws, (at * 1e6) as u64, client));
        }
    };
    arrivals("prequal home", 0, load * per_replica * f64::from(HOME));
    for (stranger, percent) in (0..STRANGERS).zip(ANTAGONISTS) {
        let per_s = f64::from(percent) / 100.0 * per_replica * f64::from(EACH);
        arrivals(&format!("prequal stranger {stranger}"), CLIENTS * (stranger + 1), per_s);
    }
    Trace::new(requests)
}

/// Of the home fleet's jobs those without a first token in time, in percent.
fn errors(outcome: &Outcome) -> f64 {
    let (mut all, mut late) = (0.0, 0.0);
    for record in outcome.records.iter().filter(|record| record.client < CLIENTS) {
        all += 1.0;
        let in_time = record.end == End::Served && record.ttft_us.is_some_and(|us| us <= TIMEOUT_US);
        late += f64::from(u8::from(!in_time));
    }
    100.0 * late / all
}

/// The strangers' own jobs' time to first token, of which one in a hundred is above, in milliseconds.
fn strangers_p99_ms(outcome: &Outcome) -> f64 {
    let own = outcome.records.iter().filter(|record| record.client >= CLIENTS);
    let mut ttft: Vec<u64> = own.map(|record| record.ttft_us.unwrap_or(TIMEOUT_US)).collect();
    ttft.sort_unstable();
    ttft.get(ttft.len() * 99 / 100).map_or(f64::NAN, |us| *us as f64 / 1000.0)
}

pub(super) fn run(lab: &Lab<'_>) -> Result<Vec<Row>, PaperError> {
    on(lab, &STEPS, 300.0)
}

fn on(lab: &Lab<'_>, steps: &[u32], seconds: f64) -> Result<Vec<Row>, PaperError> {
    let setting = fleets()?;
    let per_replica = capacity(lab)?;
    let mut rows = Vec::new();
    let mut protection = None;
    for step in steps {
        let load = f64::from(*step) / 100.0;
        let workload = || Box::new(ramp(per_replica, load, seconds).replay());
        let alone = errors(&lab.run(SEED, &setting, workload(), "own-only")?);
        let turns = errors(&lab.run(SEED, &setting, workload(), "round-robin")?);
        let prequal = lab.run(SEED, &setting, workload(), "prequal")?;
        let ours = lab.ours(SEED, &setting, workload())?;
        protection = Some([&prequal, &ours].map(strangers_p99_ms));
        rows.push(
            Row::new(format!("timeouts at {load:.2} of own capacity"), "%")
                .published(0.0)
                .reproduced(errors(&prequal))
                .ours(errors(&ours))
                .achieves("ours < 1", |it| it < 1.0)
                .because(format!("{alone:.1} % with own replicas alone, {turns:.1} % with strangers in turn.")),
        );
    }
    // The same strangers when nobody buys.
    let unsold =
        strangers_p99_ms(&lab.run(SEED, &setting, Box::new(ramp(per_replica, 0.0, seconds).replay()), "own-only")?);
    if let Some([prequal, ours]) = protection {
        rows.push(
            Row::new("strangers' own P99 TTFT at the last step, of unsold", "×")
                .reproduced(prequal / unsold)
                .ours(ours / unsold)
                .achieves("ours ≤ 1.1: the own tier is protected", |it| it <= 1.1)
                .because(format!("{unsold:.0} ms when nobody buys.")),
        );
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_take_what_is_too_much() {
        let lab = Lab::on_cuts(&|_| {});
        let rows = on(&lab, &[141], 45.0).unwrap();
        let alone: f64 = rows[0].why.split(' ').next().unwrap().parse().unwrap();
        assert!(alone > 10.0 && rows[0].reproduced.unwrap() < alone, "{rows:?}");
    }
}
