//! What a process and its descendants use, as Linux tells it in `/proc`.
//! Invariant: a descendant that ends between two looks takes its CPU time along into its parent's waited-for time, so none is lost.

use anyhow::{Context, Result};
use std::time::Duration;

/// One line of `/proc/PID/stat`, as far as it is wanted.
struct Stat {
    pid: u32,
    parent: u32,
    ticks: u64,
}

/// Source: proc_pid_stat(5). The name in parentheses may hold anything, so fields are counted from its end.
fn stat(text: &str) -> Option<Stat> {
    let pid = text.split_once(' ')?.0.parse().ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    // utime, stime, and those of children waited for.
    let ticks = fields.get(11..15)?.iter().map(|field| field.parse::<u64>()).sum::<Result<u64, _>>().ok()?;
    Some(Stat { pid, parent: fields.get(1)?.parse().ok()?, ticks })
}

/// The process and all that descend from it.
fn family(pid: u32) -> Result<Vec<Stat>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc").context("/proc")?.flatten() {
        if !entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        // One that ended meanwhile is no longer of the family.
        if let Some(stat) = std::fs::read_to_string(entry.path().join("stat")).ok().as_deref().and_then(stat) {
            all.push(stat);
        }
    }
    let mut pids = vec![pid];
    let mut at = 0;
    while let Some(parent) = pids.get(at).copied() {
        pids.extend(all.iter().filter(|stat| stat.parent == parent).map(|stat| stat.pid));
        at += 1;
    }
    all.retain(|stat| pids.contains(&stat.pid));
    if all.is_empty() {
        anyhow::bail!("process {pid} does not run");
    }
    Ok(all)
}

/// CPU time used so far, in user and kernel mode.
pub(super) fn cpu(pid: u32) -> Result<Duration> {
    let ticks: u64 = family(pid)?.iter().map(|stat| stat.ticks).sum();
    let each = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
    Ok(Duration::from_nanos(ticks.saturating_mul(each)))
}

/// Resident memory in MB (10^6 bytes). Pages that several processes of a family share count for each.
pub(super) fn resident_mb(pid: u32) -> Result<f64> {
    let mut kib = 0;
    for stat in family(pid)? {
        let Ok(status) = std::fs::read_to_string(format!("/proc/{}/status", stat.pid)) else { continue };
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        kib += line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(kib as f64 * 1024.0 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_whatever_the_process_is_called() {
        let line = "42 (a) b (c) S 7 42 42 0 -1 0 10 0 0 0 100 20 3 4 20 0 1 0 5 6 7";
        let read = stat(line).expect("a line");
        assert_eq!((read.pid, read.parent, read.ticks), (42, 7, 127));
        assert!(stat("42 (cut").is_none());
    }

    #[test]
    fn this_process_is_found_with_its_children() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("cat");
        let family: Vec<u32> = family(std::process::id()).expect("runs").iter().map(|stat| stat.pid).collect();
        assert!(family.contains(&std::process::id()) && family.contains(&child.id()));
        assert!(resident_mb(std::process::id()).expect("runs") > 1.0);
        drop(child.stdin.take());
        child.wait().expect("ends");
    }
}
