//! Says what a workload holds: how many requests, how fast, how uneven, how long, how much of it is shared prefix.
//!
//!     cargo run --release -p spillway-simulator --example workload -- FILE.toml [SEED]
//!
//! where the file holds a workload's settings, as `docs/simulator.md` "Workloads" has them.

use anyhow::{Context, Result, bail};
use spillway_simulator::traces::{PREFIX_BLOCK, Spec};
use std::collections::{BTreeMap, BTreeSet};

/// What windows are counted in, in microseconds.
const WINDOW_US: u64 = 600_000_000;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (file, seed) = match arguments.as_slice() {
        [file] => (file, 1),
        [file, seed] => (file, seed.parse().context("SEED")?),
        _ => bail!("workload FILE.toml [SEED]"),
    };
    let spec: Spec = toml::from_str(&std::fs::read_to_string(file).with_context(|| file.clone())?)?;
    let mut workload = spec.workload(seed)?;

    let (mut count, mut input, mut output, mut shared, mut last_us) = (0_u64, 0_u64, 0_u64, 0_u64, 0);
    let mut clients: BTreeMap<u32, u64> = BTreeMap::new();
    let mut windows: Vec<u64> = Vec::new();
    let mut blocks: BTreeSet<u64> = BTreeSet::new();
    while let Some(request) = workload.next() {
        count += 1;
        input += u64::from(request.input);
        output += u64::from(request.output);
        last_us = request.at_us;
        *clients.entry(request.client).or_default() += 1;
        let window = (request.at_us / WINDOW_US) as usize;
        windows.resize(windows.len().max(window + 1), 0);
        windows[window] += 1;
        shared += request.prefix.iter().filter(|name| !blocks.insert(**name)).count() as u64 * u64::from(PREFIX_BLOCK);
    }
    if count == 0 {
        bail!("no requests");
    }
    let mut greatest: Vec<u64> = clients.values().copied().collect();
    greatest.sort_unstable_by(|a, b| b.cmp(a));
    let share = |part: u64, whole: u64| 100.0 * part as f64 / whole as f64;
    println!(
        "requests        {count} in {:.0} s, {:.2} a second",
        last_us as f64 / 1e6,
        count as f64 * 1e6 / last_us.max(1) as f64
    );
    if windows.len() > 2 {
        let (peak, trough) = (windows.iter().max().unwrap_or(&0), windows.iter().min().unwrap_or(&0));
        let mean = count as f64 / windows.len() as f64;
        println!(
            "10 min windows  peak/mean {:.2}, peak/trough {:.1}",
            *peak as f64 / mean,
            *peak as f64 / (*trough).max(1) as f64
        );
    }
    println!(
        "clients         {}; the top ten have {:.1} %",
        clients.len(),
        share(greatest.iter().take(10).sum(), count)
    );
    println!("mean tokens     {:.1} in, {:.1} out", input as f64 / count as f64, output as f64 / count as f64);
    println!("met before      {:.1} % of the input, in whole blocks", share(shared, input));
    Ok(())
}
