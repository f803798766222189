//! What the process itself takes, under the names that Prometheus' own clients use. Read from `/proc` when asked for.
//! Invariant: what the system does not tell is left out, not made up.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use std::fs;

/// Clock ticks in a second, as Linux counts them for programs on every architecture.
const TICKS_PER_S: f64 = 100.0;

/// Reads this process's figures.
#[derive(Debug)]
pub struct Process {
    /// When the process began, in Unix seconds.
    pub since_s: f64,
}

/// A field of `/proc/self/status`, in kilobytes or as a number.
fn status(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// User and system time of `/proc/self/stat`, in seconds.
fn cpu_seconds(text: &str) -> Option<f64> {
    // The name of the program, in brackets, may have spaces in it.
    let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<u32>().ok();
    Some((f64::from(ticks(11)?) + f64::from(ticks(12)?)) / TICKS_PER_S)
}

/// The limit of open files of `/proc/self/limits`.
fn files_max(text: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    rest.split_whitespace().next()?.parse().ok()
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let read = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
        let (state, limits) = (read("status"), read("limits"));
        let mut gauge = |name: &str, help: &str, unit: Option<&Unit>, value: Option<u64>| {
            let Some(value) = value else { return Ok(()) };
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)
        };
        let bytes = |name: &str| status(&state, name).map(|kilo| kilo.saturating_mul(1024));
        gauge("process_resident_memory", "Memory that is held", Some(&Unit::Bytes), bytes("VmRSS"))?;
        gauge("process_virtual_memory", "Memory that is addressed", Some(&Unit::Bytes), bytes("VmSize"))?;
        let open = fs::read_dir("/proc/self/fd").ok().map(|files| files.count() as u64);
        gauge("process_open_fds", "Files and sockets that are open", None, open)?;
        gauge("process_max_fds", "Files and sockets that may be open", None, files_max(&limits))?;
        gauge("process_threads", "Threads", None, status(&state, "Threads"))?;
        let since = ConstGauge::new(self.since_s);
        let help = "When the process began, in Unix time";
        since.encode(encoder.encode_descriptor(
            "process_start_time",
            help,
            Some(&Unit::Seconds),
            since.metric_type(),
        )?)?;
        let Some(cpu) = cpu_seconds(&read("stat")) else { return Ok(()) };
        let cpu = ConstCounter::new(cpu);
        cpu.encode(encoder.encode_descriptor(
            "process_cpu",
            "Time on processors",
            Some(&Unit::Seconds),
            cpu.metric_type(),
        )?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_words_are_read() {
        let stat = "7 (a (b) c) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 9 0 1 2 3";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(cpu_seconds("7 (a"), None);
        let state = "Name:\tspillway\nVmSize:\t  2048 kB\nThreads:\t9\n";
        assert_eq!(
            (status(state, "VmSize"), status(state, "Threads"), status(state, "VmRSS")),
            (Some(2048), Some(9), None)
        );
        let limits =
            "Max processes  1 2 processes\nMax open files            1024                 4096                 files\n";
        assert_eq!((files_max(limits), files_max("")), (Some(1024), None));
    }
}
