//! Portkey's config JSON and headers, as policies.
//! Invariant: no URL, key or provider of a client's is ever used: a target names a configured backend, or the request is refused.
//!
//! Fields and meanings are those of Portkey's public documentation, "Configs". `docs/from-portkey.md` lists what is taken, what
//! is ignored because it changes nothing here, and what is refused.

use super::{CacheConfig, Hints, Policies};
use crate::gateway::error::ApiError;
use crate::openai::BadRequest;
use crate::openai::fields::depth;
use axum::http::HeaderMap;
use serde_json::{Map, Value};
use spillway_ledger::Digest;
use spillway_protocol::job::MODEL_BYTES_MAX;
use spillway_protocol::policy::rule::{COOLDOWN_MAX, LIMIT_MAX, RETRIES_MAX};
use spillway_protocol::policy::{
    BreakerRule, Condition, DEPTH_MAX, Place, Policy, Retry, Statuses, Target, Timeouts, Tree,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The header that names or holds a config.
pub const CONFIG: &str = "x-portkey-config";
/// Our own, for a policy's name.
const POLICY: &str = "x-spillway-policy";
/// Longest config or metadata in a header, in bytes, and how deep its JSON may nest.
const HEADER_BYTES_MAX: usize = 16 << 10;
const NESTING_MAX: usize = 32;
/// The shortest that a target rests: shorter times are raised to it, as Portkey does.
const COOLDOWN_MIN: Duration = Duration::from_secs(30);
/// Statuses of which Portkey repeats a request, where a config does not say.
const RETRY_CODES: [u16; 5] = [429, 500, 502, 503, 504];
/// What a breaker counts where a config does not say: everything above 500, and 500 itself.
const BREAKER_CODES: std::ops::Range<u16> = 500..600;
/// The first repetition's wait, and the longest.
const RETRY_WAIT: Duration = Duration::from_secs(1);
const RETRY_WAIT_MAX: Duration = Duration::from_secs(60);

/// A config, read.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where requests go.
    pub policy: Policy,
    /// What it asks of the cache.
    pub cache: Option<CacheConfig>,
}

/// What a target has from the config around it, unless it says otherwise.
#[derive(Clone, Debug, Default)]
struct Inherited {
    provider: Option<Place>,
    overrides: Map<String, Value>,
    retry: Option<Retry>,
    timeout: Option<Duration>,
    breaker: Option<BreakerRule>,
}

struct Reading<'a> {
    policies: &'a Policies,
    /// Whether the request asks for a stream: then its time limit is that to the first piece.
    stream: bool,
    cache: Option<CacheConfig>,
    /// Targets so far, for their names.
    targets: usize,
}

fn bad<T>(place: &str, field: &str, why: impl Into<String>) -> Result<T, BadRequest> {
    Err(BadRequest::new(join(place, field), why))
}

fn join(place: &str, field: &str) -> String {
    match (place.is_empty(), field.is_empty()) {
        (true, _) => field.to_owned(),
        (_, true) => place.to_owned(),
        (false, false) => format!("{place}.{field}"),
    }
}

/// Fields that Portkey reads for itself, and that say nothing of where a request goes.
const IGNORED: [&str; 16] = [
    "after_request_hooks",
    "before_request_hooks",
    "description",
    "forward_headers",
    "id",
    "input_mutators",
    "metadata",
    "name",
    "output_mutators",
    "prompt_id",
    "status",
    "strict_open_ai_compliance",
    "tags",
    "trace_id",
    "version",
    "weight",
];

impl Config {
    /// Reads a config. `stream` is whether the request that it is for asks for a stream.
    ///
    /// # Errors
    /// The first field that does not hold.
    pub fn read(value: &Value, stream: bool, policies: &Policies) -> Result<Self, BadRequest> {
        let mut reading = Reading { policies, stream, cache: None, targets: 0 };
        let tree = reading.config(value, "", &Inherited::default(), DEPTH_MAX + 1)?;
        let policy = Policy::new(tree).map_err(|error| BadRequest::new("targets", error.to_string()))?;
        Ok(Self { policy, cache: reading.cache })
    }
}

impl Reading<'_> {
    /// A config, or a target, which is one within another.
    fn config(&mut self, value: &Value, at: &str, above: &Inherited, depth: usize) -> Result<Tree, BadRequest> {
        let Value::Object(fields) = value else { return bad(at, "", "not an object") };
        if depth == 0 {
            return bad(at, "", "nested too deep");
        }
        let mut own = above.clone();
        let (mut strategy, mut targets) = (None, None);
        for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
            match name.as_str() {
                "strategy" => strategy = Some(value),
                "targets" => targets = Some(value),
                "provider" | "virtual_key" | "virtualKey" => own.provider = Some(self.provider(value, at, name)?),
                "custom_host" | "customHost" => own.provider = Some(self.host(value, at, name)?),
                "api_key" | "apiKey" | "authorization" => {
                    return bad(
                        at,
                        name,
                        "keys of providers are configured at the gateway, and none is taken from a request",
                    );
                }
                "override_params" | "overrideParams" => self.overrides(value, at, name, &mut own)?,
                "retry" => own.retry = Some(retry(value, &join(at, name))?),
                "request_timeout" | "requestTimeout" => {
                    own.timeout = Some(millis(value, at, name, Duration::from_millis(1), LIMIT_MAX)?);
                }
                "cache" => self.cache = Some(cache(value, &join(at, name))?),
                "cb_config" | "cbConfig" => own.breaker = Some(breaker(value, &join(at, name))?),
                _ if IGNORED.contains(&name.as_str()) => {}
                _ => return bad(at, name, "this gateway does not have it"),
            }
        }
        let Some(targets) = targets else {
            return match strategy.map(|strategy| mode(strategy, at)).transpose()?.as_deref() {
                None | Some("single") => Ok(self.target(own)),
                Some(mode) => bad(at, "targets", format!("missing for the mode `{mode}`")),
            };
        };
        let Value::Array(targets) = targets else { return bad(at, "targets", "not an array") };
        if targets.is_empty() {
            return bad(at, "targets", "empty");
        }
        // A breaker is the strategy's; what belongs to the request is each target's, unless it says otherwise.
        if let Some(Value::Object(strategy)) = strategy
            && let Some(value) = strategy.get("cb_config").or_else(|| strategy.get("cbConfig"))
        {
            own.breaker = Some(breaker(value, &join(at, "strategy.cb_config"))?);
        }
        let mode = strategy.map_or_else(|| Ok("single".to_owned()), |strategy| mode(strategy, at))?;
        let child = |reading: &mut Self, index: usize| {
            reading.config(&targets[index], &join(at, &format!("targets[{index}]")), &own, depth - 1)
        };
        match mode.as_str() {
            "single" => child(self, 0),
            "fallback" => {
                let on = self.statuses_of(strategy, at)?;
                let tries: Result<_, _> = (0..targets.len()).map(|index| child(self, index)).collect();
                Ok(Tree::Fallback { tries: tries?, on })
            }
            "loadbalance" => {
                let mut choices = Vec::with_capacity(targets.len());
                for (index, target) in targets.iter().enumerate() {
                    let weight = weight(target, &join(at, &format!("targets[{index}]")))?;
                    choices.push((weight, child(self, index)?));
                }
                // One is drawn, and how it ends is how the request ends.
                Ok(Tree::Weighted { choices, on: Statuses::Codes(Vec::new()), sticky: false })
            }
            _ => self.conditional(strategy.expect("its mode was read"), targets, at, &own, depth),
        }
    }

    fn conditional(
        &mut self,
        strategy: &Value,
        targets: &[Value],
        at: &str,
        own: &Inherited,
        depth: usize,
    ) -> Result<Tree, BadRequest> {
        let at_strategy = join(at, "strategy");
        let mut by_name = BTreeMap::new();
        for (index, target) in targets.iter().enumerate() {
            let place = join(at, &format!("targets[{index}]"));
            let Some(name) = target.get("name").and_then(Value::as_str) else {
                return bad(&place, "name", "missing, or not a string; conditions name targets");
            };
            if by_name.insert(name, index).is_some() {
                return bad(&place, "name", "another target has this name");
            }
        }
        let then = |reading: &mut Self, name: &Value, place: &str| {
            let Some(index) = name.as_str().and_then(|name| by_name.get(name)) else {
                return bad(place, "", "no target has this name");
            };
            reading.config(&targets[*index], &join(at, &format!("targets[{index}]")), own, depth - 1)
        };
        let mut cases = Vec::new();
        match strategy.get("conditions") {
            Some(Value::Array(conditions)) if !conditions.is_empty() => {
                for (index, condition) in conditions.iter().enumerate() {
                    let place = format!("{at_strategy}.conditions[{index}]");
                    let query = Condition::parse(condition.get("query").unwrap_or(&Value::Null));
                    let query = query
                        .map_err(|error| BadRequest::new(join(&format!("{place}.query"), &error.place), error.why))?;
                    let name = condition.get("then").unwrap_or(&Value::Null);
                    cases.push((query, then(self, name, &format!("{place}.then"))?));
                }
            }
            _ => return bad(&at_strategy, "conditions", "missing, or no array of conditions"),
        }
        let default = strategy.get("default").filter(|name| !name.is_null());
        let default = default.map(|name| then(self, name, &join(&at_strategy, "default"))).transpose()?;
        Ok(Tree::Conditional { cases, default: default.map(Box::new) })
    }

    fn statuses_of(&self, strategy: Option<&Value>, at: &str) -> Result<Statuses, BadRequest> {
        let codes =
            strategy.and_then(|strategy| strategy.get("on_status_codes").or_else(|| strategy.get("onStatusCodes")));
        // Portkey goes on after any failure where a config does not say.
        codes.map_or(Ok(Statuses::Any), |codes| statuses(codes, &join(at, "strategy.on_status_codes")))
    }

    fn target(&mut self, own: Inherited) -> Tree {
        let mut target = Target::new(&format!("target{}", self.targets), own.provider.unwrap_or(Place::Market));
        self.targets += 1;
        let mut overrides = own.overrides;
        target.model = match overrides.remove("model") {
            Some(Value::String(model)) => Some(model),
            _ => None,
        };
        target.overrides = overrides;
        target.retry = own.retry.unwrap_or_default();
        target.timeouts = match own.timeout {
            None => Timeouts::default(),
            Some(limit) if self.stream => Timeouts { first: Some(limit), ..Timeouts::default() },
            Some(limit) => Timeouts { total: Some(limit), ..Timeouts::default() },
        };
        target.breaker = own.breaker;
        Tree::Target(Box::new(target))
    }

    /// A provider's name: an own backend, or one of the words that mean something here.
    fn provider(&self, value: &Value, at: &str, field: &str) -> Result<Place, BadRequest> {
        let Some(name) = value.as_str() else { return bad(at, field, "not a string") };
        let bare = name.strip_prefix('@').unwrap_or(name);
        match bare {
            _ if self.policies.is_backend(bare) => Ok(Place::Own(vec![bare.to_owned()])),
            "spillway" | "market" => Ok(Place::Market),
            "own" => Ok(Place::Own(Vec::new())),
            "network" => Ok(Place::Network),
            _ => {
                let shown: String = bare.chars().take(64).collect();
                bad(at, field, format!("no backend of this gateway is called `{shown}`"))
            }
        }
    }

    /// A host: the URL of an own backend, and nothing else.
    fn host(&self, value: &Value, at: &str, field: &str) -> Result<Place, BadRequest> {
        let found = value.as_str().and_then(|url| self.policies.backend_at(url));
        match found {
            Some(name) => Ok(Place::Own(vec![name.to_owned()])),
            None => bad(at, field, "no backend of this gateway is there, and requests go nowhere else"),
        }
    }

    fn overrides(&self, value: &Value, at: &str, field: &str, own: &mut Inherited) -> Result<(), BadRequest> {
        let place = join(at, field);
        let Value::Object(fields) = value else { return bad(&place, "", "not an object") };
        for (name, value) in fields {
            match name.as_str() {
                "stream" | "models" | "provider" | "route" => return bad(&place, name, "cannot be set here"),
                "model" => {
                    let Some(model) = value.as_str() else { return bad(&place, name, "not a string") };
                    // `@backend/model` says both.
                    let model = match model.strip_prefix('@').and_then(|rest| rest.split_once('/')) {
                        Some((backend, model)) if self.policies.is_backend(backend) => {
                            own.provider = Some(Place::Own(vec![backend.to_owned()]));
                            model
                        }
                        Some((backend, _)) => {
                            let shown: String = backend.chars().take(64).collect();
                            return bad(&place, name, format!("no backend of this gateway is called `{shown}`"));
                        }
                        None => model,
                    };
                    if model.is_empty() || model.len() > MODEL_BYTES_MAX || model.chars().any(char::is_control) {
                        return bad(&place, name, "no model's name");
                    }
                    own.overrides.insert(name.clone(), model.into());
                }
                _ => _ = own.overrides.insert(name.clone(), value.clone()),
            }
        }
        Ok(())
    }
}

fn mode(strategy: &Value, at: &str) -> Result<String, BadRequest> {
    let place = join(at, "strategy");
    let Value::Object(fields) = strategy else { return bad(&place, "", "not an object") };
    for name in fields.keys() {
        let known = ["mode", "on_status_codes", "onStatusCodes", "conditions", "default", "cb_config", "cbConfig"];
        if !known.contains(&name.as_str()) {
            return bad(&place, name, "this gateway does not have it");
        }
    }
    match fields.get("mode").and_then(Value::as_str) {
        Some(mode @ ("single" | "loadbalance" | "fallback" | "conditional")) => Ok(mode.to_owned()),
        _ => bad(&place, "mode", "not `single`, `loadbalance`, `fallback` or `conditional`"),
    }
}

/// A weight, in thousandths.
fn weight(target: &Value, at: &str) -> Result<u32, BadRequest> {
    let Some(value) = target.get("weight").filter(|value| !value.is_null()) else { return Ok(1000) };
    match value.as_f64() {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to a billion")]
        Some(weight) if (0.0..=1e6).contains(&weight) => Ok((weight * 1000.0).round() as u32),
        _ => bad(at, "weight", "not a number from 0 to a million"),
    }
}

fn statuses(value: &Value, place: &str) -> Result<Statuses, BadRequest> {
    let codes: Option<Vec<u16>> = value
        .as_array()
        .and_then(|codes| codes.iter().map(|code| code.as_u64().and_then(|code| u16::try_from(code).ok())).collect());
    match codes {
        Some(codes) if codes.len() <= 64 && codes.iter().all(|code| (100..600).contains(code)) => {
            Ok(Statuses::Codes(codes))
        }
        _ => bad(place, "", "not a list of up to 64 HTTP statuses"),
    }
}

fn millis(value: &Value, at: &str, field: &str, min: Duration, max: Duration) -> Result<Duration, BadRequest> {
    match value.as_u64().map(Duration::from_millis) {
        Some(span) if (min..=max).contains(&span) => Ok(span),
        _ => bad(at, field, format!("not from {} to {} milliseconds", min.as_millis(), max.as_millis())),
    }
}

fn retry(value: &Value, place: &str) -> Result<Retry, BadRequest> {
    let Value::Object(fields) = value else { return bad(place, "", "not an object") };
    let mut retry = Retry {
        on: Statuses::Codes(RETRY_CODES.to_vec()),
        wait: RETRY_WAIT,
        wait_max: RETRY_WAIT_MAX,
        heed_server: false,
        ..Retry::default()
    };
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
        match name.as_str() {
            "attempts" => match value.as_u64().and_then(|attempts| u32::try_from(attempts).ok()) {
                Some(attempts) if attempts <= RETRIES_MAX => retry.attempts = attempts,
                _ => return bad(place, name, format!("not a number from 0 to {RETRIES_MAX}")),
            },
            "on_status_codes" | "onStatusCodes" => retry.on = statuses(value, &join(place, name))?,
            "use_retry_after_headers" | "use_retry_after_header" | "useRetryAfterHeader" => match value.as_bool() {
                Some(heed) => retry.heed_server = heed,
                None => return bad(place, name, "not true or false"),
            },
            _ => return bad(place, name, "this gateway does not have it"),
        }
    }
    Ok(retry)
}

fn breaker(value: &Value, place: &str) -> Result<BreakerRule, BadRequest> {
    let Value::Object(fields) = value else { return bad(place, "", "not an object") };
    let mut rule = BreakerRule {
        failures: None,
        percent: None,
        on: Statuses::Codes(BREAKER_CODES.collect()),
        ..BreakerRule::default()
    };
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
        match (name.as_str(), number) {
            ("failure_threshold" | "failureThreshold", Some(count @ 1..)) => rule.failures = Some(count),
            ("failure_threshold_percentage" | "failureThresholdPercentage", Some(share @ 1..=100)) => {
                rule.percent = u8::try_from(share).ok();
            }
            ("minimum_requests" | "minimumRequests", Some(count)) => rule.minimum = count.max(1),
            ("cooldown_interval" | "cooldownInterval", Some(_)) => {
                let span = millis(value, place, name, Duration::ZERO, COOLDOWN_MAX)?;
                rule.cooldown = span.max(COOLDOWN_MIN);
            }
            ("failure_status_codes" | "failureStatusCodes", _) => rule.on = statuses(value, &join(place, name))?,
            (
                "failure_threshold"
                | "failureThreshold"
                | "failure_threshold_percentage"
                | "failureThresholdPercentage"
                | "minimum_requests"
                | "minimumRequests"
                | "cooldown_interval"
                | "cooldownInterval",
                _,
            ) => return bad(place, name, "not a number that it can be"),
            _ => return bad(place, name, "this gateway does not have it"),
        }
    }
    if rule.failures.is_none() && rule.percent.is_none() {
        return bad(place, "failure_threshold", "missing, and no percentage either");
    }
    Ok(rule)
}

fn cache(value: &Value, place: &str) -> Result<CacheConfig, BadRequest> {
    let Value::Object(fields) = value else { return bad(place, "", "not an object") };
    let mut wish = CacheConfig { semantic: false, max_age_s: None };
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
        match name.as_str() {
            "mode" => match value.as_str() {
                Some("simple") => wish.semantic = false,
                Some("semantic") => wish.semantic = true,
                _ => return bad(place, name, "neither `simple` nor `semantic`"),
            },
            "max_age" | "maxAge" => match value.as_u64() {
                Some(age) => wish.max_age_s = Some(age),
                None => return bad(place, name, "not a number of seconds"),
            },
            _ => return bad(place, name, "this gateway does not have it"),
        }
    }
    Ok(wish)
}

/// What a request's headers say of how it is to go. `stream` is whether its body asks for a stream.
///
/// # Errors
/// 400 naming the header, and the field within it; 403 for a host that is no backend's.
pub fn hints(headers: &HeaderMap, stream: impl FnOnce() -> bool, policies: &Policies) -> Result<Hints, ApiError> {
    let mut hints = Hints::default();
    if !headers.keys().any(|name| name.as_str().starts_with("x-portkey-") || name.as_str() == POLICY) {
        return Ok(hints);
    }
    let refused = |field: &str, status, code: &str, why: &str| ApiError {
        param: Some(field.into()),
        ..ApiError::new(status, code, format!("{field}: {why}"))
    };
    let text = |field: &str| match headers.get(field).map(|value| value.to_str()) {
        None => Ok(None),
        Some(Ok(text)) if text.len() <= HEADER_BYTES_MAX => Ok(Some(text.trim())),
        Some(_) => Err(refused(field, 400, "invalid_request", "over 16 KiB, or not plain text")),
    };
    let json = |field: &str, text: &str| {
        let value = if depth(text.as_bytes()) > NESTING_MAX { None } else { serde_json::from_str::<Value>(text).ok() };
        value.ok_or_else(|| refused(field, 400, "invalid_request", "not JSON, or nested too deep"))
    };
    if let Some(text) = text("x-portkey-metadata")? {
        let Value::Object(fields) = json("x-portkey-metadata", text)? else {
            return Err(refused("x-portkey-metadata", 400, "invalid_request", "not an object"));
        };
        hints.metadata = fields;
    }
    let mut config = None;
    match (text(POLICY)?, text(CONFIG)?) {
        (Some(_), Some(_)) => return Err(refused(POLICY, 400, "invalid_request", "set beside x-portkey-config")),
        (Some(name), None) => policies.named(POLICY, name, &mut hints)?,
        (None, Some(text)) if text.starts_with('{') => config = Some(json(CONFIG, text)?),
        (None, Some(name)) => policies.named(CONFIG, name, &mut hints)?,
        (None, None) => {}
    }
    // Headers of their own say the same as fields of a config.
    for (field, name) in [
        ("x-portkey-provider", "provider"),
        ("x-portkey-virtual-key", "virtual_key"),
        ("x-portkey-custom-host", "custom_host"),
        ("x-portkey-request-timeout", "request_timeout"),
    ] {
        let Some(value) = text(field)? else { continue };
        if name == "custom_host" && policies.backend_at(value).is_none() {
            let why = "no backend of this gateway is there, and requests go nowhere else";
            return Err(refused(field, 403, "host_not_allowed", why));
        }
        if hints.policy.is_some() {
            return Err(refused(field, 400, "invalid_request", "set beside a named policy"));
        }
        let fields = config.get_or_insert_with(|| Value::Object(Map::new())).as_object_mut();
        let number = value.parse::<u64>().ok().filter(|_| name == "request_timeout");
        let value = number.map_or_else(|| Value::from(value), Value::from);
        fields.map(|fields| fields.entry(name).or_insert(value));
    }
    if let Some(value) = config {
        let read = Config::read(&value, stream(), policies);
        let read = read.map_err(|error| {
            let within = error.field.unwrap_or_default();
            let field = if within.is_empty() { CONFIG.to_owned() } else { format!("{CONFIG}: {within}") };
            let host = within.ends_with("custom_host") || within.ends_with("customHost");
            let (status, code) = if host { (403, "host_not_allowed") } else { (400, "invalid_request") };
            ApiError { param: Some(field.clone()), ..ApiError::new(status, code, format!("{field}: {}", error.why)) }
        })?;
        let digest = Digest::of("spillway/portkey-config/1", &[value.to_string().as_bytes()]);
        hints.policy = Some((Arc::new(read.policy), format!("inline/{digest}")));
        hints.cache = read.cache.or(hints.cache);
    }
    Ok(hints)
}

#[cfg(test)]
mod tests {
    use super::super::Known;
    use super::*;
    use serde_json::json;
    use spillway_ledger::Price;

    fn policies() -> Policies {
        let known = |name: &str, url: &str| Known { name: name.into(), url: url.parse().ok(), price: Price::ZERO };
        Policies::of(vec![known("openai", "https://api.openai.com/v1"), known("gpu", "http://127.0.0.1:8000/v1")])
    }

    fn own(name: &str) -> Place {
        Place::Own(vec![name.to_owned()])
    }

    #[test]
    fn configs_become_policies() {
        let read = |value: Value| Config::read(&value, true, &policies()).expect("good");
        let places =
            |config: &Config| config.policy.targets().map(|(_, target)| target.place.clone()).collect::<Vec<_>>();
        for (config, want) in [
            (json!({}), vec![Place::Market]),
            (json!({"provider": "openai"}), vec![own("openai")]),
            (json!({"virtual_key": "@gpu", "name": "x"}), vec![own("gpu")]),
            (json!({"provider": "network"}), vec![Place::Network]),
            (json!({"custom_host": "http://127.0.0.1:8000/v1/"}), vec![own("gpu")]),
            (json!({"override_params": {"model": "@gpu/m"}}), vec![own("gpu")]),
            (
                json!({"strategy": {"mode": "single"}, "targets": [{"provider": "gpu"}, {"provider": "openai"}]}),
                vec![own("gpu")],
            ),
            (
                json!({"strategy": {"mode": "fallback"}, "targets": [
                    {"provider": "gpu"},
                    {"strategy": {"mode": "loadbalance"}, "targets": [{"provider": "openai", "weight": 0.7}, {"weight": 0.3}]},
                ]}),
                vec![own("gpu"), own("openai"), Place::Market],
            ),
        ] {
            assert_eq!(places(&read(config.clone())), want, "{config}");
        }
        // What targets have from above.
        let config = read(json!({
            "retry": {"attempts": 2, "use_retry_after_headers": true}, "request_timeout": 1500,
            "override_params": {"top_k": 1, "temperature": 0.5},
            "cache": {"mode": "semantic", "max_age": 60},
            "strategy": {"mode": "fallback", "on_status_codes": [429],
                "cb_config": {"failure_threshold": 3, "cooldown_interval": 5, "failure_status_codes": [500]}},
            "targets": [
                {"override_params": {"temperature": 0, "model": "m"}},
                {"retry": {"attempts": 1, "on_status_codes": [418]}, "request_timeout": 10},
            ],
        }));
        assert_eq!(config.cache, Some(CacheConfig { semantic: true, max_age_s: Some(60) }));
        let targets: Vec<_> = config.policy.targets().map(|(_, target)| target).collect();
        let (a, b) = (targets[0], targets[1]);
        assert_eq!((a.retry.attempts, a.retry.heed_server, b.retry.attempts, b.retry.heed_server), (2, true, 1, false));
        assert!(b.retry.on.has(418) && !b.retry.on.has(500) && a.retry.on.has(500) && !a.retry.on.has(401));
        assert_eq!(
            (a.timeouts.first, b.timeouts.first),
            (Some(Duration::from_millis(1500)), Some(Duration::from_millis(10)))
        );
        assert_eq!((a.model.as_deref(), b.model.as_deref()), (Some("m"), None));
        assert_eq!(Value::Object(a.overrides.clone()), json!({"top_k": 1, "temperature": 0}));
        let rule = a.breaker.as_ref().expect("the strategy's");
        assert_eq!((rule.failures, rule.cooldown), (Some(3), COOLDOWN_MIN));
        assert!(rule.on.has(500) && !rule.on.has(503));
        // Without a stream the limit is for the whole.
        let whole = Config::read(&json!({"request_timeout": 5}), false, &policies()).expect("good");
        let timeouts = whole.policy.targets().next().expect("one").1.timeouts;
        assert_eq!((timeouts.first, timeouts.total), (None, Some(Duration::from_millis(5))));
    }

    #[test]
    fn what_is_not_had_is_named() {
        let two = |first: Value| json!({"strategy": {"mode": "loadbalance"}, "targets": [first, {}]});
        let conditional = |strategy: Value| json!({"strategy": strategy, "targets": [{"name": "a"}, {"name": "b"}]});
        for (config, field) in [
            (json!([]), ""),
            (json!({"provider": "azure-openai"}), "provider"),
            (json!({"api_key": "sk-1"}), "api_key"),
            (json!({"custom_host": "http://169.254.169.254/latest"}), "custom_host"),
            (json!({"custom_host": "http://user:secret@127.0.0.1:8000/v1"}), "custom_host"),
            (json!({"guardrails": []}), "guardrails"),
            (json!({"input_guardrails": ["x"]}), "input_guardrails"),
            (json!({"aws_region": "x"}), "aws_region"),
            (json!({"strategy": {"mode": "best"}}), "strategy.mode"),
            (json!({"strategy": {"mode": "fallback"}}), "targets"),
            (
                json!({"strategy": {"mode": "fallback", "sticky_session": {}}, "targets": [{}]}),
                "strategy.sticky_session",
            ),
            (
                json!({"strategy": {"mode": "fallback", "on_status_codes": ["x"]}, "targets": [{}]}),
                "strategy.on_status_codes",
            ),
            (json!({"targets": []}), "targets"),
            (two(json!({"weight": -1})), "targets[0].weight"),
            (two(json!({"provider": 7})), "targets[0].provider"),
            (two(json!({"retry": {"attempts": 6}})), "targets[0].retry.attempts"),
            (two(json!({"retry": {"every": 6}})), "targets[0].retry.every"),
            (two(json!({"request_timeout": 0})), "targets[0].request_timeout"),
            (two(json!({"override_params": {"stream": true}})), "targets[0].override_params.stream"),
            (two(json!({"override_params": {"model": "@far/m"}})), "targets[0].override_params.model"),
            (two(json!({"cb_config": {}})), "targets[0].cb_config.failure_threshold"),
            (two(json!({"cb_config": {"failure_threshold": 0}})), "targets[0].cb_config.failure_threshold"),
            (two(json!({"cache": {"mode": "best"}})), "targets[0].cache.mode"),
            (conditional(json!({"mode": "conditional"})), "strategy.conditions"),
            (
                conditional(json!({"mode": "conditional", "conditions": [{"query": {"plan": 1}, "then": "a"}]})),
                "strategy.conditions[0].query.plan",
            ),
            (
                conditional(
                    json!({"mode": "conditional", "conditions": [{"query": {"metadata.plan": 1}, "then": "c"}]}),
                ),
                "strategy.conditions[0].then",
            ),
            (
                conditional(
                    json!({"mode": "conditional", "conditions": [{"query": {"metadata.plan": 1}, "then": "a"}], "default": "c"}),
                ),
                "strategy.default",
            ),
        ] {
            let error = Config::read(&config, false, &policies()).expect_err("bad");
            assert_eq!(error.field.as_deref().unwrap_or_default(), field, "{config}");
        }
    }

    #[test]
    fn headers_are_read() {
        let with = |pairs: &[(&'static str, &str)]| {
            let pair = |(name, value): &(&'static str, &str)| {
                (axum::http::HeaderName::from_static(name), value.parse().expect("a value"))
            };
            hints(&pairs.iter().map(pair).collect(), || false, &policies())
        };
        for (pairs, place) in [
            (&[][..], None),
            (&[("x-portkey-trace-id", "x")], None),
            (&[("x-portkey-config", r#"{"provider":"gpu"}"#)], Some(own("gpu"))),
            (&[("x-portkey-provider", "gpu"), ("x-portkey-request-timeout", "100")], Some(own("gpu"))),
            (&[("x-portkey-custom-host", "https://api.openai.com/v1")], Some(own("openai"))),
        ] {
            let hints = with(pairs).expect("good");
            let got = hints.policy.map(|(policy, _)| policy.targets().next().expect("one").1.place.clone());
            assert_eq!(got, place, "{pairs:?}");
        }
        for (pairs, status, param) in [
            (&[("x-portkey-config", "pc-unknown")][..], 400, "x-portkey-config"),
            (&[("x-spillway-policy", "unknown")], 400, "x-spillway-policy"),
            (&[("x-portkey-config", "{")], 400, "x-portkey-config"),
            (&[("x-portkey-config", r#"{"custom_host":"http://10.0.0.1/"}"#)], 403, "x-portkey-config: custom_host"),
            (&[("x-portkey-custom-host", "http://169.254.169.254/")], 403, "x-portkey-custom-host"),
            (&[("x-portkey-provider", "bedrock")], 400, "x-portkey-config: provider"),
            (&[("x-portkey-metadata", "[]")], 400, "x-portkey-metadata"),
        ] {
            let error = with(pairs).expect_err("bad");
            assert_eq!((error.status, error.param.as_deref()), (status, Some(param)), "{pairs:?}");
        }
    }
}
