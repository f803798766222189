//! How fast routing is simulated: `cargo run --release -p spillway-simulator --example bench_fleet`.
//!
//! ServeGen's day on fleets of 100 and 1,000 replicas, requests in proportion; then the day as often as is asked for on
//! 1,000 replicas: `bench_fleet 1.6` is 24 million requests. One core. Prints events a second of that core's time, simulated over
//! real time by replica, and the process's peak memory so far. The core's time is the wall clock's where the system does not
//! tell it, as Linux does: on a busy machine the wall clock says little.

#![expect(clippy::disallowed_types, clippy::disallowed_methods, reason = "it measures real time")]

use spillway_simulator::fleet::{Fleet, Outcome, Setting, policies};
use std::time::Instant;

fn main() {
    let scale = std::env::args().nth(1).map_or(0.2, |text| text.parse().expect("a number: times ServeGen's day"));
    println!(
        "{:<12} {:>8} {:>6} {:>12} {:>12} {:>9} {:>9} {:>14} {:>16} {:>10} {:>9}",
        "policy",
        "replicas",
        "hours",
        "requests",
        "events",
        "wall s",
        "core s",
        "events/core s",
        "x real time each",
        "alive max",
        "peak MiB"
    );
    measure("two-choices", 100, 24, 0.1 * scale);
    for policy in ["spillway", "random", "two-choices", "prequal", "sglang", "least-load"] {
        measure(policy, 1000, 2, scale);
    }
    measure("two-choices", 1000, 24, scale);
    measure("spillway", 1000, 24, scale);
}

/// That many replicas in three regions, and a gateway in each.
fn setting(replicas: u32, hours: u64, scale: f64) -> Setting {
    let mut toml = format!(
        "name = \"bench\"\nduration_s = {}\nworkload = {{ kind = \"servegen\", scale = {scale} }}\n",
        hours * 3600
    );
    for (region, count) in [("us-east", replicas.div_ceil(2)), ("france", replicas / 4), ("japan", replicas / 4)] {
        toml += &format!(
            "[[gateway]]\nname = \"{region}\"\nregion = \"{region}\"\norganisation = \"{region}\"\n\
             [[replica]]\nname = \"{region}-gpu\"\ncount = {count}\nengine = \"rtx4090-llama-3.1-8b\"\n\
             region = \"{region}\"\nowner = \"strangers\"\nsells = true\nslots = 16\n"
        );
    }
    Setting::from_toml(&toml).expect("it holds")
}

fn measure(policy: &str, replicas: u32, hours: u64, scale: f64) {
    let setting = setting(replicas, hours, scale);
    let entry = policies::named(policy).expect("it is in the table");
    let workload = setting.requests(1).expect("it holds");
    let fleet = Fleet::new(1, setting, workload, policy, &|gateway| (entry.make)(1, gateway)).expect("it holds");
    let (begin, core) = (Instant::now(), core_s());
    let Outcome { jobs, events, end_s, alive_max, .. } = fleet.run();
    let wall = begin.elapsed().as_secs_f64();
    let seconds = core.zip(core_s()).map_or(wall, |(before, after)| after - before);
    println!(
        "{policy:<12} {replicas:>8} {hours:>6} {:>12} {events:>12} {wall:>9.2} {seconds:>9.2} {:>14.0} {:>16.0} {alive_max:>10} {:>9}",
        jobs.total,
        events as f64 / seconds,
        end_s * f64::from(replicas) / seconds,
        peak_mib().map_or_else(|| "?".to_owned(), |mib| mib.to_string()),
    );
}

/// How long this thread has had a core, in seconds, where the system tells.
fn core_s() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(stat.split(' ').next()?.parse::<u64>().ok()? as f64 / 1e9)
}

/// The most memory that the process has had, in MiB, where the system tells.
fn peak_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib / 1024)
}
