//! A workload as a setting: what a scenario's file says, and what it becomes.
//! Invariant: the same setting, seed and files give the same requests.

use super::error::{SettingError, TraceError, within};
use super::joblog::JobLog;
use super::prefixes::{Dressed, Prefixes};
use super::servegen::{Clients, Pick, Sample};
use super::talk::{Closed, Open, Talk, Users, Visitors};
use super::{Replay, Request, Trace, Workload, azure, mooncake};
use serde::Deserialize;
use std::path::PathBuf;

/// Where requests come from. Without a path, a trace is the cut that lies in the repository.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Spec {
    /// Azure's conversation trace.
    Azure {
        /// The file.
        #[serde(default)]
        path: Option<PathBuf>,
        /// Conversations and system prompts, which the trace does not tell.
        #[serde(default)]
        prefixes: Option<Prefixes>,
        /// What of it, and how.
        #[serde(flatten)]
        play: Play,
    },
    /// A trace of Mooncake's, with prefixes.
    Mooncake {
        /// The file.
        #[serde(default)]
        path: Option<PathBuf>,
        /// What of it, and how.
        #[serde(flatten)]
        play: Play,
    },
    /// A gateway's own log.
    JobLog {
        /// The file.
        path: PathBuf,
        /// The model; all if not set.
        #[serde(default)]
        model: Option<String>,
        /// How many of the log's units are a token.
        #[serde(default = "one")]
        units_per_token: u32,
        /// What of it, and how.
        #[serde(flatten)]
        play: Play,
    },
    /// Requests drawn from ServeGen's tables.
    Servegen {
        /// The table of rates; with it, `lengths`.
        #[serde(default)]
        rates: Option<PathBuf>,
        /// The table of lengths; with it, `rates`.
        #[serde(default)]
        lengths: Option<PathBuf>,
        /// Every rate is multiplied by it.
        #[serde(default = "unit")]
        scale: f64,
        /// From when, in seconds.
        #[serde(default)]
        from_s: u32,
        /// Until when, in seconds.
        #[serde(default = "end")]
        to_s: u32,
        /// Only so many clients, those with the most requests.
        #[serde(default)]
        greatest: Option<usize>,
        /// Conversations and system prompts, which the tables do not tell.
        #[serde(default)]
        prefixes: Option<Prefixes>,
    },
    /// A fixed number of users, each of whom waits for the answer.
    Users {
        /// What they ask.
        talk: Talk,
        /// When they ask.
        #[serde(flatten)]
        closed: Closed,
    },
    /// Conversations that begin whether or not others are done.
    Visitors {
        /// What they ask.
        talk: Talk,
        /// When they ask.
        #[serde(flatten)]
        open: Open,
    },
}

/// How a trace is played.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Play {
    /// From when, in seconds.
    #[serde(default)]
    pub from_s: u32,
    /// Until when, in seconds.
    #[serde(default = "end")]
    pub to_s: u32,
    /// So many times as fast.
    #[serde(default = "unit")]
    pub pace: f64,
    /// Spread over so many clients, where the trace does not tell them.
    #[serde(default)]
    pub clients: Option<u32>,
}

const fn one() -> u32 {
    1
}

const fn unit() -> f64 {
    1.0
}

const fn end() -> u32 {
    u32::MAX
}

/// Why a setting is no workload.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// A file is wrong.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// A setting is wrong.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// One of ServeGen's tables is named without the other.
    #[error("rates, lengths: one without the other")]
    Half,
}

impl Spec {
    /// Ready to play.
    pub fn workload(&self, seed: u64) -> Result<Box<dyn Workload>, SpecError> {
        Ok(match self {
            Self::Azure { path, prefixes, play } => {
                let trace = path.as_deref().map_or_else(|| Ok(azure::cut()), azure::read)?;
                dressed(seed, *prefixes, play.trace(trace)?)?
            }
            Self::Mooncake { path, play } => {
                let trace =
                    path.as_deref().map_or_else(|| Ok(mooncake::cut(seed)), |path| mooncake::read(path, seed))?;
                Box::new(play.trace(trace)?)
            }
            Self::JobLog { path, model, units_per_token, play } => {
                Box::new(play.trace(JobLog::read(path)?.trace(model.as_deref(), *units_per_token))?)
            }
            Self::Servegen { rates, lengths, scale, from_s, to_s, greatest, prefixes } => {
                let pick = greatest.map_or(Pick::All, Pick::Greatest);
                let sample = Sample { seed, scale: *scale, from_s: *from_s, to_s: *to_s, pick };
                let stream = match (rates, lengths) {
                    (Some(rates), Some(lengths)) => Clients::read(rates, lengths)?.stream(&sample)?,
                    (None, None) => Clients::day().stream(&sample)?,
                    _ => return Err(SpecError::Half),
                };
                dressed(seed, *prefixes, stream)?
            }
            Self::Users { talk, closed } => Box::new(Users::new(seed, talk.clone(), closed)?),
            Self::Visitors { talk, open } => Box::new(Visitors::new(seed, talk.clone(), open.clone())?),
        })
    }
}

impl Play {
    fn trace(&self, trace: Trace) -> Result<Replay, SettingError> {
        within("pace", self.pace, 1e-6, 1e6)?;
        within("to_s", self.to_s.into(), f64::from(self.from_s) + 1.0, u32::MAX.into())?;
        let micros = |seconds: u32| u64::from(seconds) * 1_000_000;
        let trace = trace.between(micros(self.from_s), micros(self.to_s)).paced(self.pace);
        let trace = if let Some(clients) = self.clients { trace.spread(clients) } else { trace };
        Ok(trace.replay())
    }
}

fn dressed<I>(seed: u64, prefixes: Option<Prefixes>, bare: I) -> Result<Box<dyn Workload>, SettingError>
where
    I: Iterator<Item = Request> + Workload + 'static,
{
    Ok(match prefixes {
        Some(rules) => Box::new(Dressed::new(seed, rules, bare)?),
        None => Box::new(bare),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(text: &str) -> Result<Box<dyn Workload>, SpecError> {
        toml::from_str::<Spec>(text).unwrap().workload(1)
    }

    #[test]
    fn every_kind_reads_and_plays() {
        let talk = "talk = { groups = 2, users = 3, question = 100, answer = { min = 5, max = 9 } }";
        let cases = [
            "kind = \"azure\"\nclients = 5\npace = 2.0".to_owned(),
            "kind = \"mooncake\"\nfrom_s = 60\nto_s = 120".to_owned(),
            "kind = \"servegen\"\nscale = 0.01\nto_s = 3600\ngreatest = 20\nprefixes = { system = 300 }".to_owned(),
            format!("kind = \"users\"\nthink_s = 1.5\nuntil_s = 60.0\n{talk}"),
            format!("kind = \"visitors\"\nuntil_s = 60.0\narrivals = {{ kind = \"poisson\", per_s = 2.0 }}\n{talk}"),
        ];
        for text in cases {
            let mut workload = workload(&text).unwrap_or_else(|error| panic!("{text}\n{error}"));
            let mut last = 0;
            let count = std::iter::from_fn(|| workload.next()).inspect(|request| {
                assert!(request.at_us >= last, "{text}");
                last = request.at_us;
            });
            assert!(count.count() > 5, "{text}");
        }
    }

    #[test]
    fn bad_settings_are_named() {
        let cases = [
            ("kind = \"azure\"\npace = 0.0", "pace: 0 is not from 0.000001 to 1000000"),
            ("kind = \"mooncake\"\nfrom_s = 9\nto_s = 9", "to_s: 9 is not from 10 to 4294967295"),
            ("kind = \"servegen\"\nrates = \"x\"", "rates, lengths: one without the other"),
            ("kind = \"servegen\"\nscale = 5000.0", "scale: 5000 is not from 0.000001 to 1000"),
        ];
        for (text, error) in cases {
            assert_eq!(workload(text).err().map(|error| error.to_string()).as_deref(), Some(error));
        }
        let missing = workload("kind = \"job_log\"\npath = \"no/such/file\"").err().unwrap().to_string();
        assert!(missing.starts_with("no/such/file: "), "{missing}");
        assert!(toml::from_str::<Spec>("kind = \"azure\"\nspeed = 2.0").is_err(), "unknown settings are refused");
    }
}
