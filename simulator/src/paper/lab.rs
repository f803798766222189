//! What every published result is run with: traces from a folder, and policies on a setting.
//! Invariant: the same result with the same traces gives the same figures; every run has a seed of its own name.

use crate::fleet::policies::Spillway;
use crate::fleet::{Fleet, GatewayId, Outcome, Policy, Setting, SettingError, policies};
use crate::traces::{SettingError as WorkloadError, Trace, TraceError, Workload, mooncake};
use std::path::{Path, PathBuf};

/// Why a result cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum PaperError {
    /// There is none of that name.
    #[error("no published result is named `{name}`; there are {known}, and all")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A whole trace is needed that is not in the repository.
    #[error("{file} is not in {folder}: it comes from {origin}; name its folder with --traces or SPILLWAY_TRACES")]
    Missing {
        /// The file.
        file: &'static str,
        /// Where it was looked for.
        folder: String,
        /// Where it comes from.
        origin: &'static str,
    },
    /// A trace does not read.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// A setting does not hold.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The settings of a workload do not hold.
    #[error("workload: {0}")]
    Workload(#[from] WorkloadError),
}

/// Mooncake's conversation trace: 12,031 requests in 59 minutes.
const MOONCAKE: &str = "mooncake_conversation.jsonl.zst";
const MOONCAKE_ORIGIN: &str =
    "github.com/kvcache-ai/Mooncake, FAST25-release/traces/conversation_trace.jsonl, packed with zstd";

/// Where results are run.
pub struct Lab<'a> {
    folder: Option<PathBuf>,
    cut: bool,
    progress: &'a dyn Fn(&str),
}

impl<'a> Lab<'a> {
    /// Reads whole traces from `folder`; tells `progress` what is being run.
    #[must_use]
    pub const fn new(folder: Option<PathBuf>, progress: &'a dyn Fn(&str)) -> Self {
        Self { folder, cut: false, progress }
    }

    /// Uses the cuts in the repository: quick, and not what was published.
    #[must_use]
    pub const fn on_cuts(progress: &'a dyn Fn(&str)) -> Self {
        Self { folder: None, cut: true, progress }
    }

    /// Whether the traces are cuts.
    pub(super) const fn cut(&self) -> bool {
        self.cut
    }

    /// The conversation trace.
    pub(super) fn conversations(&self, seed: u64) -> Result<Trace, PaperError> {
        if self.cut {
            return Ok(mooncake::cut(seed));
        }
        let folder = self.folder.as_deref().unwrap_or_else(|| Path::new(""));
        let path = folder.join(MOONCAKE);
        if self.folder.is_none() || !path.exists() {
            let folder = self.folder.as_ref().map_or("no folder".to_owned(), |folder| folder.display().to_string());
            return Err(PaperError::Missing { file: MOONCAKE, folder, origin: MOONCAKE_ORIGIN });
        }
        Ok(mooncake::read(&path, seed)?)
    }

    /// Says what is being done.
    pub(super) fn says(&self, what: &str) {
        (self.progress)(what);
    }

    /// Runs a policy of [`policies::TABLE`] on a setting.
    pub(super) fn run(
        &self,
        seed: u64,
        setting: &Setting,
        workload: Box<dyn Workload>,
        policy: &str,
    ) -> Result<Outcome, PaperError> {
        let entry = policies::named(policy).unwrap_or_else(|why| panic!("{why}"));
        self.run_with(seed, setting, workload, policy, &|gateway| (entry.make)(seed, gateway))
    }

    /// Runs a policy that `make` makes.
    pub(super) fn run_with(
        &self,
        seed: u64,
        setting: &Setting,
        workload: Box<dyn Workload>,
        policy: &str,
        make: &dyn Fn(GatewayId) -> Box<dyn Policy>,
    ) -> Result<Outcome, PaperError> {
        self.says(&format!("{}: {policy}", setting.name));
        Ok(Fleet::new(seed, setting.clone(), workload, policy, make)?.keep_records().run())
    }

    /// Runs Spillway's own policy, for jobs with the setting's target.
    pub(super) fn ours(
        &self,
        seed: u64,
        setting: &Setting,
        workload: Box<dyn Workload>,
    ) -> Result<Outcome, PaperError> {
        self.run(seed, setting, workload, OURS)
    }

    /// Runs Spillway's own policy for jobs without a target: time is weighed, as where nothing was promised.
    pub(super) fn ours_untargeted(
        &self,
        seed: u64,
        setting: &Setting,
        workload: Box<dyn Workload>,
    ) -> Result<Outcome, PaperError> {
        self.run_with(seed, setting, workload, OURS, &|gateway| Box::new(Spillway::new(seed, gateway).without_target()))
    }
}

/// Spillway's own policy.
const OURS: &str = "spillway";

/// A setting as TOML, with engines of its own.
pub(super) fn setting(toml: &str, engines: Vec<crate::engine::EngineRules>) -> Result<Setting, SettingError> {
    let mut setting: Setting = toml::from_str(toml).map_err(|error| SettingError::Malformed(error.to_string()))?;
    setting.engines = engines;
    setting.validate()?;
    Ok(setting)
}
