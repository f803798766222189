//! What a validator is told by its operator.
//! Invariant: settings that passed [`Settings::validate`] start an engine; an error names the field.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use arc_malachitebft_core_types::LinearTimeouts;
use serde::{Deserialize, Serialize};
use spillway_ledger::block::VALIDATORS_MAX;

/// What is wrong with a setting: the field's name and the rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("validator setting `{field}`: {rule}")]
pub struct SettingsError {
    /// The field, as in the file.
    pub field: &'static str,
    /// What it must be.
    pub rule: String,
}

/// How one validator runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where the other validators reach this one: `/ip4/…/tcp/…` or `/ip6/…/tcp/…`. Names are not resolved: the
    /// engine's resolver has known faults.
    pub listen: String,
    /// Where the other validators are, in the same form; all of them, since nobody passes votes on. At most 256.
    #[serde(default)]
    pub peers: Vec<String>,
    /// The folder for the engine's log. It must outlive a crash: it is what keeps this validator from voting twice.
    pub folder: PathBuf,
    /// How long a round waits for its proposal, in milliseconds. Default 500: a dead proposer costs this much.
    #[serde(default = "propose_ms")]
    pub propose_ms: u64,
    /// How long a round waits for stragglers once enough have voted, but not alike, in milliseconds. Default 250.
    #[serde(default = "vote_ms")]
    pub vote_ms: u64,
    /// How much longer each further round of a height waits, in milliseconds. Default 250: whatever the network's
    /// delay, some round is long enough.
    #[serde(default = "vote_ms")]
    pub longer_ms: u64,
    /// The longest any round waits, in milliseconds. Default 5,000: so long after the network heals, it goes on.
    #[serde(default = "longest_ms")]
    pub longest_ms: u64,
    /// How long to wait for entries before an empty block is made, in milliseconds. Default 1,000: block time goes on,
    /// and refunds with it, while an idle network stays quiet.
    #[serde(default = "idle_ms")]
    pub idle_ms: u64,
    /// How far ahead of our clock a block's time may be, in milliseconds. Default 10,000: one wrong clock must not end
    /// everybody's sessions.
    #[serde(default = "ahead_ms")]
    pub ahead_ms: u64,
    /// How often the others are told how far we are, in milliseconds. Default 500: so long, at most, before one that
    /// fell behind notices.
    #[serde(default = "status_ms")]
    pub status_ms: u64,
    /// The most connections from one address. Default 256: validators behind one address, or all on one machine.
    #[serde(default = "connections_per_ip_max")]
    pub connections_per_ip_max: usize,
}

fn propose_ms() -> u64 {
    500
}

fn vote_ms() -> u64 {
    250
}

fn longest_ms() -> u64 {
    5_000
}

fn idle_ms() -> u64 {
    1_000
}

fn ahead_ms() -> u64 {
    10_000
}

fn status_ms() -> u64 {
    500
}

fn connections_per_ip_max() -> usize {
    256
}

impl Settings {
    /// Defaults for all but what has none.
    pub fn new(listen: impl Into<String>, peers: Vec<String>, folder: impl Into<PathBuf>) -> Self {
        Settings {
            listen: listen.into(),
            peers,
            folder: folder.into(),
            propose_ms: propose_ms(),
            vote_ms: vote_ms(),
            longer_ms: vote_ms(),
            longest_ms: longest_ms(),
            idle_ms: idle_ms(),
            ahead_ms: ahead_ms(),
            status_ms: status_ms(),
            connections_per_ip_max: connections_per_ip_max(),
        }
    }

    /// Checks every field; the error names the first that is wrong.
    pub fn validate(&self) -> Result<(), SettingsError> {
        let err = |field, rule: &str| Err(SettingsError { field, rule: rule.to_owned() });
        check_address("listen", &self.listen)?;
        if self.peers.len() > 2 * VALIDATORS_MAX {
            return err("peers", "must be at most 256 addresses");
        }
        for peer in &self.peers {
            check_address("peers", peer)?;
        }
        if self.folder.as_os_str().is_empty() {
            return err("folder", "must name a folder");
        }
        for (field, value, low, high) in [
            ("propose_ms", self.propose_ms, 10, 500),
            ("vote_ms", self.vote_ms, 10, 10_000),
            ("longer_ms", self.longer_ms, 1, 10_000),
            ("longest_ms", self.longest_ms, self.propose_ms.max(self.vote_ms), 60_000),
            ("idle_ms", self.idle_ms, 0, 3_600_000),
            ("ahead_ms", self.ahead_ms, 1_000, 3_600_000),
            ("status_ms", self.status_ms, 50, 60_000),
            ("connections_per_ip_max", self.connections_per_ip_max as u64, 1, 4_096),
        ] {
            if !(low..=high).contains(&value) {
                return Err(SettingsError { field, rule: format!("must be {low} to {high}, not {value}") });
            }
        }
        Ok(())
    }

    pub(crate) fn timeouts(&self) -> LinearTimeouts {
        let ms = Duration::from_millis;
        LinearTimeouts {
            propose: ms(self.propose_ms),
            propose_delta: ms(self.longer_ms),
            prevote: ms(self.vote_ms),
            prevote_delta: ms(self.longer_ms),
            precommit: ms(self.vote_ms),
            precommit_delta: ms(self.longer_ms),
            // Votes that were lost are said again once a whole round would have gone by.
            rebroadcast: ms(self.propose_ms + 2 * self.vote_ms),
            max_timeout: ms(self.longest_ms),
        }
    }
}

/// Accepts `/ip4/A/tcp/P` and `/ip6/A/tcp/P`, and nothing else.
fn check_address(field: &'static str, text: &str) -> Result<(), SettingsError> {
    let words: Vec<&str> = text.split('/').collect();
    let good = match words.as_slice() {
        ["", "ip4", address, "tcp", port] => address.parse::<Ipv4Addr>().is_ok() && port.parse::<u16>().is_ok(),
        ["", "ip6", address, "tcp", port] => address.parse::<Ipv6Addr>().is_ok() && port.parse::<u16>().is_ok(),
        _ => false,
    };
    if good {
        return Ok(());
    }
    let shown: String = text.chars().take(80).collect();
    Err(SettingsError { field, rule: format!("must be /ip4/ADDRESS/tcp/PORT or /ip6/ADDRESS/tcp/PORT, not {shown:?}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wrong_field_is_named() {
        let good = || Settings::new("/ip4/127.0.0.1/tcp/27000", vec!["/ip6/::1/tcp/27001".to_owned()], "log");
        assert_eq!(good().validate(), Ok(()));
        type Case = (&'static str, fn(&mut Settings));
        let cases: &[Case] = &[
            ("listen", |s| s.listen = "/dns4/example.org/tcp/1".to_owned()),
            ("listen", |s| s.listen = "/ip4/127.0.0.1/udp/1/quic-v1".to_owned()),
            ("listen", |s| s.listen = "/ip4/300.0.0.1/tcp/1".to_owned()),
            ("listen", |s| s.listen = "127.0.0.1:27000".to_owned()),
            ("peers", |s| s.peers.push("/dns6/example.org/tcp/1".to_owned())),
            ("peers", |s| s.peers.push("/ip4/127.0.0.1/tcp/70000".to_owned())),
            ("peers", |s| s.peers = vec!["/ip4/127.0.0.1/tcp/1".to_owned(); 257]),
            ("folder", |s| s.folder = PathBuf::new()),
            ("propose_ms", |s| s.propose_ms = 501),
            ("vote_ms", |s| s.vote_ms = 0),
            ("longer_ms", |s| s.longer_ms = 0),
            ("longest_ms", |s| s.longest_ms = 499),
            ("idle_ms", |s| s.idle_ms = u64::MAX),
            ("ahead_ms", |s| s.ahead_ms = 0),
            ("status_ms", |s| s.status_ms = 0),
            ("connections_per_ip_max", |s| s.connections_per_ip_max = 0),
        ];
        for (field, change) in cases {
            let mut settings = good();
            change(&mut settings);
            assert_eq!(settings.validate().map_err(|error| error.field), Err(*field));
        }
    }
}
