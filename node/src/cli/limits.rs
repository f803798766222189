//! The limits of a key or a project, as options of a command.
//! Invariant: what is not given is not sent, so an update changes only what it names.

use super::jobs::unix_ms;
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};
use std::time::SystemTime;
use time::OffsetDateTime;

/// Where jobs may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Prefer {
    /// Own hardware first, then the network
    #[value(name = "own_first")]
    OwnFirst,
    /// Own hardware or not at all
    #[value(name = "own")]
    Own,
    /// Whatever is best at the moment
    #[value(name = "any")]
    Any,
}

impl Prefer {
    const fn as_str(self) -> &'static str {
        match self {
            Self::OwnFirst => "own_first",
            Self::Own => "own",
            Self::Any => "any",
        }
    }
}

#[derive(Debug, Default, Args)]
pub(super) struct LimitArguments {
    /// The most it may spend in all, in credits; own hardware costs nothing
    #[arg(long, value_name = "CREDITS")]
    budget: Option<f64>,
    /// The most it may spend in a day, which begins at midnight UTC
    #[arg(long, value_name = "CREDITS")]
    budget_day: Option<f64>,
    /// The most it may spend in a week, which begins on Monday
    #[arg(long, value_name = "CREDITS")]
    budget_week: Option<f64>,
    /// The most it may spend in a calendar month
    #[arg(long, value_name = "CREDITS")]
    budget_month: Option<f64>,
    /// The most requests in a minute
    #[arg(long, value_name = "N")]
    requests_per_minute: Option<u64>,
    /// The most tokens in a minute, of prompts and answers together
    #[arg(long, value_name = "N")]
    tokens_per_minute: Option<u64>,
    /// The most jobs under way at once
    #[arg(long, value_name = "N")]
    concurrency: Option<u32>,
    /// When it ends: RFC 3339, a date (UTC), or a span from now such as 90d, 12h, 30m
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
    /// Where its jobs may run [own_first if not given]
    #[arg(long, value_enum)]
    prefer: Option<Prefer>,
    /// A model it may use; repeat for more; none given allows all
    #[arg(long = "model", value_name = "MODEL")]
    models: Vec<String>,
    /// A provider its jobs may go to; repeat for more; none given allows all: a node or account id, `region:…`, `own`
    #[arg(long, value_name = "PROVIDER")]
    provider_only: Vec<String>,
    /// A provider that is tried first; repeat for the next ones
    #[arg(long, value_name = "PROVIDER")]
    provider_order: Vec<String>,
    /// The time to first text that its jobs ask for: the cheapest place that meets it is taken
    #[arg(long, value_name = "MS")]
    target_ms: Option<u32>,
    /// For how many seconds an answer is given again to the same request of the key, or of any key of the project
    #[arg(long, value_name = "SECONDS")]
    cache: Option<u32>,
    /// With --cache: how similar a question must be to get the answer to another one, 0.92 to 1; only the same request, if not given
    #[arg(long, value_name = "COSINE")]
    cache_similar: Option<f64>,
    /// The policy that its requests go by where they name none, from `spillway.toml`
    #[arg(long, value_name = "POLICY")]
    policy: Option<String>,
    /// A name and a value that mean something to you, such as team=red; repeat for more
    #[arg(long = "label", value_name = "NAME=VALUE")]
    labels: Vec<String>,
}

/// A limit that an update takes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Clear {
    Budget,
    BudgetDay,
    BudgetWeek,
    BudgetMonth,
    RequestsPerMinute,
    TokensPerMinute,
    Concurrency,
    Expires,
    Prefer,
    Model,
    ProviderOnly,
    ProviderOrder,
    TargetMs,
    Cache,
    CacheSimilar,
    Policy,
    Label,
    Project,
}

impl Clear {
    /// The field in the admin API.
    pub(super) const fn field(self) -> &'static str {
        match self {
            Self::Budget => "budget_micro",
            Self::BudgetDay => "budget_day_micro",
            Self::BudgetWeek => "budget_week_micro",
            Self::BudgetMonth => "budget_month_micro",
            Self::RequestsPerMinute => "requests_per_minute",
            Self::TokensPerMinute => "tokens_per_minute",
            Self::Concurrency => "concurrency",
            Self::Expires => "expires_ms",
            Self::Prefer => "prefer",
            Self::Model => "models",
            Self::ProviderOnly => "providers_only",
            Self::ProviderOrder => "providers_order",
            Self::TargetMs => "target_ms",
            Self::Cache => "cache_s",
            Self::CacheSimilar => "cache_similar",
            Self::Policy => "policy",
            Self::Label => "labels",
            Self::Project => "project",
        }
    }
}

/// Credits as micro-credits; at least one if any were given.
pub(super) fn micro(field: &str, credits: f64) -> Result<u64> {
    let micro = credits * 1e6;
    if !micro.is_finite() || !(0.0..=1e15).contains(&micro) {
        bail!("{field}: {credits} is not between 0 and 1,000,000,000 credits");
    }
    if credits > 0.0 && micro < 0.999_999 {
        bail!("{field}: {credits} is less than a micro-credit, 0.000001");
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to lie within 0 and 1e15")]
    Ok(micro.round() as u64)
}

impl LimitArguments {
    /// The fields for the admin API, of what was given.
    pub(super) fn fields(&self) -> Result<Map<String, Value>> {
        let mut fields = Map::new();
        for (option, field, credits) in [
            ("--budget", "budget_micro", self.budget),
            ("--budget-day", "budget_day_micro", self.budget_day),
            ("--budget-week", "budget_week_micro", self.budget_week),
            ("--budget-month", "budget_month_micro", self.budget_month),
        ] {
            if let Some(credits) = credits {
                fields.insert(field.into(), micro(option, credits)?.into());
            }
        }
        let concurrency = self.concurrency.map(u64::from);
        for (field, number) in [
            ("requests_per_minute", self.requests_per_minute),
            ("tokens_per_minute", self.tokens_per_minute),
            ("concurrency", concurrency),
            ("target_ms", self.target_ms.map(u64::from)),
            ("cache_s", self.cache.map(u64::from)),
        ] {
            if let Some(number) = number {
                fields.insert(field.into(), number.into());
            }
        }
        if let Some(least) = self.cache_similar {
            fields.insert("cache_similar".into(), json!(least));
        }
        if let Some(expires) = &self.expires {
            let now = OffsetDateTime::from(SystemTime::now());
            fields.insert("expires_ms".into(), unix_ms("--expires", expires, now, 1)?.into());
        }
        if let Some(prefer) = self.prefer {
            fields.insert("prefer".into(), prefer.as_str().into());
        }
        if let Some(policy) = &self.policy {
            fields.insert("policy".into(), policy.as_str().into());
        }
        for (field, list) in [
            ("models", &self.models),
            ("providers_only", &self.provider_only),
            ("providers_order", &self.provider_order),
        ] {
            if !list.is_empty() {
                fields.insert(field.into(), json!(list));
            }
        }
        if !self.labels.is_empty() {
            let mut labels = Map::new();
            for label in &self.labels {
                let (name, value) =
                    label.split_once('=').with_context(|| format!("--label: {label:?} is not NAME=VALUE"))?;
                labels.insert(name.into(), value.into());
            }
            fields.insert("labels".into(), labels.into());
        }
        Ok(fields)
    }
}

/// An id of a key or project.
pub(super) fn checked_id(id: &str) -> Result<&str> {
    if id.len() != 8 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        bail!("ID: {id:?} is no id: those are 8 hexadecimal digits");
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credits_become_micro_credits_or_an_error_that_names_the_field() {
        let cases: &[(f64, Option<u64>)] = &[
            (0.0, Some(0)),
            (0.000_001, Some(1)),
            (1.5, Some(1_500_000)),
            (1e9, Some(1_000_000_000_000_000)),
            (0.000_000_1, None),
            (-1.0, None),
            (2e9, None),
            (f64::NAN, None),
            (f64::INFINITY, None),
        ];
        for (credits, expected) in cases {
            let got = micro("--budget", *credits);
            assert_eq!(got.as_ref().ok(), expected.as_ref(), "{credits}");
            if let Err(error) = got {
                assert!(error.to_string().starts_with("--budget: "), "{error}");
            }
        }
    }

    #[test]
    fn only_what_is_given_is_sent() {
        assert_eq!(LimitArguments::default().fields().expect("nothing"), Map::new());
        let given = LimitArguments {
            budget_day: Some(1.5),
            concurrency: Some(3),
            prefer: Some(Prefer::Own),
            labels: vec!["team=red=blue".into()],
            ..LimitArguments::default()
        };
        let fields = json!({
            "budget_day_micro": 1_500_000, "concurrency": 3, "prefer": "own", "labels": {"team": "red=blue"},
        });
        assert_eq!(Value::from(given.fields().expect("good")), fields);
        for (arguments, field) in [
            (LimitArguments { budget_month: Some(-1.0), ..LimitArguments::default() }, "--budget-month: "),
            (LimitArguments { expires: Some("soon".into()), ..LimitArguments::default() }, "--expires: "),
            (LimitArguments { labels: vec!["team".into()], ..LimitArguments::default() }, "--label: "),
        ] {
            let error = arguments.fields().expect_err(field);
            assert!(error.to_string().starts_with(field), "{error}");
        }
    }

    #[test]
    fn every_limit_can_be_taken_away_by_its_name() {
        let fields: Vec<_> = Clear::value_variants().iter().map(|clear| clear.field()).collect();
        let all = json!({
            "budget_micro": 0, "budget_day_micro": 0, "budget_week_micro": 0, "budget_month_micro": 0,
            "requests_per_minute": 1, "tokens_per_minute": 1, "concurrency": 1, "expires_ms": 1, "prefer": "any",
            "models": ["m"], "providers_only": ["own"], "providers_order": ["own"], "target_ms": 1, "cache_s": 1, "cache_similar": 0.95,
            "policy": "p", "labels": {"a": "b"}, "project": "00000000", "name": "test",
        });
        let terms = spillway_node::gateway::Terms::read(all).expect("good terms");
        let patch = fields.iter().map(|field| ((*field).to_owned(), Value::Null)).collect();
        let bare = spillway_node::gateway::Terms { name: "test".into(), ..Default::default() };
        assert_eq!(terms.patched(patch).expect("good terms"), bare);
    }
}
