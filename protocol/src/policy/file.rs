//! Policies in `spillway.toml`: `[policy.NAME]` and its `[[policy.NAME.target]]`.
//! Invariant: a section that became a [`Policy`] names existing backends only, and its numbers are within their bounds.

use super::rule::{COOLDOWN_MAX, LIMIT_MAX, RETRIES_MAX, RETRY_WAIT_MAX};
use super::{BreakerRule, Condition, NAME_BYTES_MAX, Place, Policy, Retry, Shadow, Statuses, Target, Timeouts, Tree};
use crate::config::ConfigError;
use crate::job::MODEL_BYTES_MAX;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::time::Duration;

/// `[policy.NAME]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicySection {
    /// HTTP statuses on which the next target is tried; absent means 408, 429, 500, 502, 503 and 504.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on: Option<Vec<u16>>,
    /// Whether requests of one conversation, or else of one key, go to the same target while its share lasts.
    pub sticky: bool,
    /// Seconds that a request may take over all attempts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_s: Option<f64>,
    /// A file with a config in Portkey's form, relative to the configuration's folder, instead of all else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub portkey: Option<String>,
    /// Where some requests are copied to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowSection>,
    /// Where requests go.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub target: Vec<TargetSection>,
}

/// `[[policy.NAME.target]]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TargetSection {
    /// What it is called; absent means by its place in the list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The own backends that may serve it. With neither this nor `network`, it goes where it would without a policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backends: Option<Vec<String>>,
    /// Whether strangers alone serve it.
    pub network: bool,
    /// The model, if not the one asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Its share among targets of the same priority.
    pub weight: u32,
    /// Lower ones are tried first.
    pub priority: u32,
    /// Only requests of which this holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when: Option<Value>,
    /// Fields of the request that are set.
    #[serde(rename = "override", skip_serializing_if = "Map::is_empty")]
    pub overrides: Map<String, Value>,
    /// How often it is tried again.
    pub retries: u32,
    /// On which statuses; absent means as for `on`'s default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_on: Option<Vec<u16>>,
    /// Seconds before the first repetition; each further one waits twice as long.
    pub retry_wait_s: f64,
    /// The longest wait, in seconds, whatever a server's `retry-after` asks.
    pub retry_wait_max_s: f64,
    /// Seconds to the first piece of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_s: Option<f64>,
    /// Seconds between two pieces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub between_s: Option<f64>,
    /// Seconds for the whole answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_s: Option<f64>,
    /// When it is left alone for a while.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub breaker: Option<BreakerSection>,
}

impl Default for TargetSection {
    fn default() -> Self {
        Self {
            name: None,
            backends: None,
            network: false,
            model: None,
            weight: 1,
            priority: 0,
            when: None,
            overrides: Map::new(),
            retries: 0,
            retry_on: None,
            retry_wait_s: 0.25,
            retry_wait_max_s: 10.0,
            first_s: None,
            between_s: None,
            total_s: None,
            breaker: None,
        }
    }
}

/// `breaker` of a target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BreakerSection {
    /// Failures within the window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failures: Option<u32>,
    /// Or failures of a hundred attempts within it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
    /// Attempts before which it never rests.
    pub minimum: u32,
    /// Seconds that failures count.
    pub window_s: f64,
    /// Seconds that it rests.
    pub cooldown_s: f64,
    /// The statuses that count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on: Option<Vec<u16>>,
}

impl Default for BreakerSection {
    fn default() -> Self {
        Self { failures: None, percent: None, minimum: 1, window_s: 60.0, cooldown_s: 30.0, on: None }
    }
}

/// `[policy.NAME.shadow]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShadowSection {
    /// The own backends that get the copies.
    pub backends: Vec<String>,
    /// The model, if not the one asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Of how many requests, in per cent.
    pub percent: f64,
}

fn fail<T>(field: String, why: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError { field, why: why.into() })
}

/// Whether something may be called so.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(plain)
}

fn seconds(field: String, value: f64, max: Duration) -> Result<Duration, ConfigError> {
    if value > 0.0 && value <= max.as_secs_f64() {
        Ok(Duration::from_secs_f64(value))
    } else {
        fail(field, format!("not above 0 and at most {} seconds", max.as_secs()))
    }
}

fn statuses(field: String, codes: Option<&Vec<u16>>) -> Result<Statuses, ConfigError> {
    let Some(codes) = codes else { return Ok(Statuses::default()) };
    if codes.len() > 64 || codes.iter().any(|code| !(400..600).contains(code)) {
        return fail(field, "not a list of up to 64 HTTP statuses from 400 to 599");
    }
    Ok(Statuses::Codes(codes.clone()))
}

fn known(field: &str, names: &[String], backends: &[String]) -> Result<(), ConfigError> {
    match names.iter().position(|name| !backends.contains(name)) {
        Some(index) => fail(format!("{field}[{index}]"), format!("no backend is called `{}`", names[index])),
        None => Ok(()),
    }
}

fn model(field: String, model: Option<&String>) -> Result<Option<String>, ConfigError> {
    match model {
        Some(name) if name.is_empty() || name.len() > MODEL_BYTES_MAX || name.chars().any(char::is_control) => {
            fail(field, format!("empty, over {MODEL_BYTES_MAX} bytes, or with control characters"))
        }
        other => Ok(other.cloned()),
    }
}

impl PolicySection {
    /// The policy of this name. `None` where it is kept in a file of Portkey's form.
    ///
    /// # Errors
    /// The first field that does not hold.
    pub fn policy(&self, name: &str, backends: &[String]) -> Result<Option<Policy>, ConfigError> {
        let path = format!("policy.{name}");
        if !is_name(name) {
            return fail(path, "a name has 1 to 64 letters, digits, dots, underscores and dashes");
        }
        if self.portkey.is_some() {
            let alone = Self { portkey: self.portkey.clone(), ..Self::default() };
            return if *self == alone { Ok(None) } else { fail(format!("{path}.portkey"), "set beside other fields") };
        }
        if self.target.is_empty() {
            return fail(format!("{path}.target"), "missing");
        }
        let on = statuses(format!("{path}.on"), self.on.as_ref())?;
        let mut groups: BTreeMap<u32, Vec<(u32, Tree)>> = BTreeMap::new();
        for (index, section) in self.target.iter().enumerate() {
            let at = format!("{path}.target[{index}]");
            let target = Tree::Target(Box::new(section.target(&at, index, backends)?));
            let tree = match &section.when {
                None => target,
                Some(value) => {
                    let when = Condition::parse(value);
                    let when = when.or_else(|error| fail(format!("{at}.when"), error.to_string()))?;
                    Tree::Conditional { cases: vec![(when, target)], default: None }
                }
            };
            groups.entry(section.priority).or_default().push((section.weight, tree));
        }
        let mut tiers: Vec<Tree> = groups
            .into_values()
            .map(|choices| Tree::Weighted { choices, on: on.clone(), sticky: self.sticky })
            .collect();
        let tree = if tiers.len() == 1 { tiers.remove(0) } else { Tree::Fallback { tries: tiers, on } };
        let mut policy = Policy::new(tree).or_else(|error| fail(format!("{path}.target"), error.to_string()))?;
        policy.total = self.total_s.map(|total| seconds(format!("{path}.total_s"), total, LIMIT_MAX)).transpose()?;
        if let Some(shadow) = &self.shadow {
            known(&format!("{path}.shadow.backends"), &shadow.backends, backends)?;
            if shadow.backends.is_empty() {
                return fail(format!("{path}.shadow.backends"), "empty: copies go to own backends that are named");
            }
            if !(shadow.percent > 0.0 && shadow.percent <= 100.0) {
                return fail(format!("{path}.shadow.percent"), "not above 0 and at most 100");
            }
            let mut target = Target::new("shadow", Place::Own(shadow.backends.clone()));
            target.model = model(format!("{path}.shadow.model"), shadow.model.as_ref())?;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to a million")]
            let per_million = (shadow.percent * 10_000.0).round() as u32;
            policy.shadow = Some(Shadow { target, per_million });
        }
        Ok(Some(policy))
    }
}

impl TargetSection {
    fn target(&self, at: &str, index: usize, backends: &[String]) -> Result<Target, ConfigError> {
        let place = match (&self.backends, self.network) {
            (Some(_), true) => return fail(format!("{at}.network"), "set beside `backends`"),
            (Some(names), false) => {
                known(&format!("{at}.backends"), names, backends)?;
                Place::Own(names.clone())
            }
            (None, true) => Place::Network,
            (None, false) => Place::Market,
        };
        let name = self.name.clone().unwrap_or_else(|| format!("target{index}"));
        if !is_name(&name) {
            return fail(format!("{at}.name"), "not 1 to 64 letters, digits, dots, underscores and dashes");
        }
        if self.retries > RETRIES_MAX {
            return fail(format!("{at}.retries"), format!("more than {RETRIES_MAX}"));
        }
        for field in ["model", "stream", "models", "provider"] {
            if self.overrides.contains_key(field) {
                return fail(format!("{at}.override.{field}"), "cannot be set here");
            }
        }
        let limit = |field: &str, value: Option<f64>| {
            value.map(|value| seconds(format!("{at}.{field}"), value, LIMIT_MAX)).transpose()
        };
        let breaker = self.breaker.as_ref().map(|section| section.rule(&format!("{at}.breaker"))).transpose()?;
        Ok(Target {
            name,
            place,
            model: model(format!("{at}.model"), self.model.as_ref())?,
            overrides: self.overrides.clone(),
            retry: Retry {
                attempts: self.retries,
                on: statuses(format!("{at}.retry_on"), self.retry_on.as_ref())?,
                wait: seconds(format!("{at}.retry_wait_s"), self.retry_wait_s, RETRY_WAIT_MAX)?,
                wait_max: seconds(format!("{at}.retry_wait_max_s"), self.retry_wait_max_s, RETRY_WAIT_MAX)?,
                heed_server: true,
            },
            timeouts: Timeouts {
                first: limit("first_s", self.first_s)?,
                between: limit("between_s", self.between_s)?,
                total: limit("total_s", self.total_s)?,
            },
            breaker,
        })
    }
}

impl BreakerSection {
    fn rule(&self, at: &str) -> Result<BreakerRule, ConfigError> {
        if self.percent.is_some_and(|percent| !(1..=100).contains(&percent)) {
            return fail(format!("{at}.percent"), "not between 1 and 100");
        }
        if self.failures == Some(0) {
            return fail(format!("{at}.failures"), "0 would never let it be tried");
        }
        let default = BreakerRule::default();
        Ok(BreakerRule {
            // With a share alone, the share decides.
            failures: self.failures.or(if self.percent.is_some() { None } else { default.failures }),
            percent: self.percent,
            minimum: self.minimum.max(1),
            window: seconds(format!("{at}.window_s"), self.window_s, COOLDOWN_MAX)?,
            cooldown: seconds(format!("{at}.cooldown_s"), self.cooldown_s, COOLDOWN_MAX)?,
            on: statuses(format!("{at}.on"), self.on.as_ref())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Result<Option<Policy>, ConfigError> {
        let section: PolicySection = serde_json::from_value(value).expect("a section");
        section.policy("p", &["one".into(), "two".into()])
    }

    #[test]
    fn sections_become_policies() {
        let policy = read(json!({
            "on": [429], "total_s": 9.5, "sticky": true,
            "shadow": {"backends": ["two"], "percent": 0.5, "model": "m2"},
            "target": [
                {"name": "a", "backends": ["one"], "weight": 3, "retries": 2, "first_s": 1, "override": {"top_k": 1}},
                {"backends": ["two"], "when": {"metadata.plan": "gold"}, "model": "m2", "breaker": {"percent": 50}},
                {"network": true, "priority": 1},
            ],
        }));
        let policy = policy.expect("good").expect("no file");
        let names: Vec<_> = policy.targets().map(|(_, target)| (target.name.as_str(), target.place.clone())).collect();
        let own = |name: &str| Place::Own(vec![name.to_owned()]);
        assert_eq!(names, [("a", own("one")), ("target1", own("two")), ("target2", Place::Network)]);
        assert_eq!((policy.total, policy.tries_again()), (Some(Duration::from_millis(9500)), true));
        let shadow = policy.shadow.as_ref().expect("one");
        assert_eq!((shadow.per_million, shadow.target.model.as_deref()), (5000, Some("m2")));
        let breaker = policy.targets().find_map(|(_, target)| target.breaker.clone()).expect("one");
        assert_eq!((breaker.failures, breaker.percent), (None, Some(50)));
        assert_eq!(read(json!({"portkey": "x.json"})), Ok(None));
    }

    #[test]
    fn bad_fields_are_named() {
        let target = |fields: Value| json!({"target": [fields]});
        for (section, field) in [
            (json!({}), "policy.p.target"),
            (json!({"portkey": "x", "sticky": true}), "policy.p.portkey"),
            (json!({"on": [200], "target": [{}]}), "policy.p.on"),
            (json!({"total_s": 0, "target": [{}]}), "policy.p.total_s"),
            (json!({"shadow": {"backends": [], "percent": 1}, "target": [{}]}), "policy.p.shadow.backends"),
            (json!({"shadow": {"backends": ["one"], "percent": 101}, "target": [{}]}), "policy.p.shadow.percent"),
            (target(json!({"backends": ["three"]})), "policy.p.target[0].backends[0]"),
            (target(json!({"backends": ["one"], "network": true})), "policy.p.target[0].network"),
            (target(json!({"name": "a b"})), "policy.p.target[0].name"),
            (target(json!({"model": ""})), "policy.p.target[0].model"),
            (target(json!({"weight": 0})), "policy.p.target"),
            (target(json!({"retries": 6})), "policy.p.target[0].retries"),
            (target(json!({"retry_on": [99]})), "policy.p.target[0].retry_on"),
            (target(json!({"retry_wait_max_s": 61})), "policy.p.target[0].retry_wait_max_s"),
            (target(json!({"first_s": -1})), "policy.p.target[0].first_s"),
            (target(json!({"between_s": 1e9})), "policy.p.target[0].between_s"),
            (target(json!({"override": {"stream": true}})), "policy.p.target[0].override.stream"),
            (target(json!({"when": {"plan": 1}})), "policy.p.target[0].when"),
            (target(json!({"breaker": {"percent": 0}})), "policy.p.target[0].breaker.percent"),
            (target(json!({"breaker": {"failures": 0}})), "policy.p.target[0].breaker.failures"),
            (target(json!({"breaker": {"cooldown_s": 0}})), "policy.p.target[0].breaker.cooldown_s"),
        ] {
            assert_eq!(read(section.clone()).expect_err("bad").field, field, "{section}");
        }
        let named = PolicySection { target: vec![TargetSection::default()], ..PolicySection::default() };
        assert_eq!(named.policy("a b", &[]).expect_err("bad").field, "policy.a b");
    }
}
