//! What a key or a project allows.
//! Invariant: terms that passed [`Terms::check`] are bounded, and none of their limits is one that nothing can meet.

use super::budget::{Limits, PER_MINUTE_MAX};
use super::error::ApiError;
use super::holder::ProjectId;
use super::similar::SIMILAR_MIN;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use spillway_ledger::{Credits, Price};
use spillway_protocol::{Prefer, Preferences};
use std::collections::BTreeMap;

/// Longest name of a key or project, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Most models that may be listed.
pub const MODELS_MAX: usize = 64;
/// Most labels.
pub const LABELS_MAX: usize = 16;
/// Longest time that answers are kept, in seconds.
pub const CACHE_S_MAX: u32 = 31 * 24 * 3600;
/// Longest label, name and value each, in bytes.
pub const LABEL_BYTES_MAX: usize = 256;

/// Where jobs may run, as it is written in JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PreferName {
    /// [`Prefer::OwnFirst`]
    #[default]
    OwnFirst,
    /// [`Prefer::Own`]
    Own,
    /// [`Prefer::Any`]
    Any,
}

impl From<PreferName> for Prefer {
    fn from(name: PreferName) -> Self {
        match name {
            PreferName::OwnFirst => Self::OwnFirst,
            PreferName::Own => Self::Own,
            PreferName::Any => Self::Any,
        }
    }
}

/// What a key or a project allows: the body of `POST /admin/keys` and `POST /admin/projects`. `None` and an empty list set
/// no limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// What people call it.
    pub name: String,
    /// The most it may spend in all, in micro-credits.
    #[serde(default)]
    pub budget_micro: Option<Credits>,
    /// The most it may spend in a day that begins at midnight UTC, in micro-credits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_day_micro: Option<Credits>,
    /// The most it may spend in a week that begins on Monday, in micro-credits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_week_micro: Option<Credits>,
    /// The most it may spend in a calendar month, in micro-credits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_month_micro: Option<Credits>,
    /// Requests in a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u64>,
    /// Tokens of prompts and answers in a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u64>,
    /// The most jobs under way at once.
    #[serde(default)]
    pub concurrency: Option<u32>,
    /// When it ends, in Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// Whether it is refused until that is taken back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub blocked: bool,
    /// The project a key belongs to, whose terms hold beside its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectId>,
    /// Where its jobs may run.
    #[serde(default)]
    pub prefer: PreferName,
    /// The models it may use.
    #[serde(default)]
    pub models: Option<Vec<String>>,
    /// The only providers its jobs may go to, as in a request's `provider.only`: beginnings of node or account ids,
    /// `region:…`, `own`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub providers_only: Vec<String>,
    /// The providers that are tried first, in this order, where a request says nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub providers_order: Vec<String>,
    /// The most it pays per million units, in micro-credits, if that is less than the node's own limit.
    #[serde(default)]
    pub price_max: Option<Price>,
    /// The time to first text that its jobs ask for, in milliseconds, where a request does not say: the cheapest place that
    /// meets it is taken. `None` weighs time against price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ms: Option<u32>,
    /// For how many seconds an answer is given again to the same request: by the same key, or where a project says it, by any of the
    /// project's keys. `None` keeps no answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_s: Option<u32>,
    /// How similar (the cosine of their vectors) a question must be to one that was answered to get its answer, where answers are kept.
    /// `None` gives them to the same request only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_similar: Option<f64>,
    /// The policy that its requests go by where they name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Names and values that mean something to the operator.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A field that does not hold.
pub(super) fn bad(field: &str, why: impl std::fmt::Display) -> ApiError {
    ApiError { param: Some(field.into()), ..ApiError::new(400, "invalid_request", format!("{field}: {why}")) }
}

impl Terms {
    /// Checks the bounds.
    ///
    /// # Errors
    /// 400 naming the first field that does not hold.
    pub fn check(&self) -> Result<(), ApiError> {
        if self.name.is_empty() || self.name.len() > NAME_BYTES_MAX || self.name.chars().any(char::is_control) {
            return Err(bad("name", format!("empty, over {NAME_BYTES_MAX} bytes, or with control characters")));
        }
        if let Some(models) = &self.models {
            let too_long = models.iter().any(|model| model.is_empty() || model.len() > 256);
            if models.is_empty() || models.len() > MODELS_MAX || too_long {
                return Err(bad("models", format!("not 1 to {MODELS_MAX} names of 1 to 256 bytes")));
            }
        }
        for (field, rate) in
            [("requests_per_minute", self.requests_per_minute), ("tokens_per_minute", self.tokens_per_minute)]
        {
            if rate.is_some_and(|rate| rate == 0 || rate > PER_MINUTE_MAX) {
                return Err(bad(field, format!("not between 1 and {PER_MINUTE_MAX}")));
            }
        }
        if self.concurrency == Some(0) {
            return Err(bad("concurrency", "0 would allow nothing; block or revoke it instead"));
        }
        if self.target_ms == Some(0) {
            return Err(bad("target_ms", "nobody answers in no time"));
        }
        if self.cache_s.is_some_and(|seconds| seconds == 0 || seconds > CACHE_S_MAX) {
            return Err(bad("cache_s", format!("not between 1 and {CACHE_S_MAX}")));
        }
        if self.cache_similar.is_some_and(|least| !(SIMILAR_MIN..=1.0).contains(&least)) {
            return Err(bad("cache_similar", format!("not between {SIMILAR_MIN} and 1")));
        }
        if self.cache_similar.is_some() && self.cache_s.is_none() {
            return Err(bad("cache_similar", "set without cache_s"));
        }
        for (field, list) in [("providers_only", &self.providers_only), ("providers_order", &self.providers_order)] {
            let preferences = Preferences { only: list.clone(), ..Preferences::default() };
            preferences.check().map_err(|(_, why)| bad(field, why))?;
        }
        if self.policy.as_ref().is_some_and(|name| !spillway_protocol::policy::file::is_name(name)) {
            return Err(bad("policy", "not 1 to 64 letters, digits, dots, underscores and dashes"));
        }
        let long = |text: &String| text.len() > LABEL_BYTES_MAX;
        if self.labels.len() > LABELS_MAX || self.labels.iter().any(|(name, value)| long(name) || long(value)) {
            return Err(bad("labels", format!("more than {LABELS_MAX}, or one over {LABEL_BYTES_MAX} bytes")));
        }
        Ok(())
    }

    /// Reads terms; the error names the field.
    ///
    /// # Errors
    /// 400.
    pub fn read(value: Value) -> Result<Self, ApiError> {
        let terms: Self = typed(value)?;
        terms.check()?;
        Ok(terms)
    }

    /// These terms with the fields of `patch` in place of their own; `null` takes a limit away.
    ///
    /// # Errors
    /// 400 naming the field.
    pub fn patched(&self, patch: Map<String, Value>) -> Result<Self, ApiError> {
        let mut value = serde_json::to_value(self).expect("terms have string keys only");
        let fields = value.as_object_mut().expect("terms are an object");
        for (field, value) in patch {
            // What a missing field means is what `null` means, for the flags and lists too.
            if value.is_null() {
                fields.remove(&field)
            } else {
                fields.insert(field, value)
            };
        }
        Self::read(value)
    }

    /// The limits that are counted.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        Limits {
            budgets: [self.budget_day_micro, self.budget_week_micro, self.budget_month_micro, self.budget_micro],
            requests_per_minute: self.requests_per_minute,
            tokens_per_minute: self.tokens_per_minute,
            concurrency: self.concurrency,
        }
    }

    /// Whether they are over.
    #[must_use]
    pub fn expired(&self, now_ms: u64) -> bool {
        self.expires_ms.is_some_and(|end| now_ms >= end)
    }

    /// Whether `model` may be used.
    #[must_use]
    pub fn allows(&self, model: &str) -> bool {
        self.models.as_ref().is_none_or(|models| models.iter().any(|allowed| allowed == model))
    }

    /// Lowers `price` to what these terms pay.
    #[must_use]
    pub fn lower(&self, price: Price) -> Price {
        let Some(own) = self.price_max else { return price };
        Price {
            input: price.input.min(own.input),
            cached: price.cached.min(own.cached),
            output: price.output.min(own.output),
        }
    }

    /// Adds to a request's wishes what these terms say of providers.
    ///
    /// # Errors
    /// 403 if the request wants only providers that are not allowed.
    pub fn direct(&self, wishes: &mut Preferences) -> Result<(), ApiError> {
        if wishes.order.is_empty() {
            wishes.order.clone_from(&self.providers_order);
        }
        if self.providers_only.is_empty() {
            return Ok(());
        }
        if wishes.only.is_empty() {
            wishes.only.clone_from(&self.providers_only);
            return Ok(());
        }
        wishes.only.retain(|wanted| self.providers_only.contains(wanted));
        if wishes.only.is_empty() {
            let message = "provider.only: the key is not for these providers";
            return Err(ApiError {
                param: Some("provider.only".into()),
                ..ApiError::new(403, "provider_not_allowed", message)
            });
        }
        Ok(())
    }
}

/// Reads a value of a type whose fields the error names.
pub(super) fn typed<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, ApiError> {
    let Value::Object(fields) = &value else {
        return Err(ApiError::new(400, "invalid_request", "the body is not a JSON object"));
    };
    let error = match serde_json::from_value::<T>(value.clone()) {
        Ok(read) => return Ok(read),
        Err(error) => error,
    };
    // Which field it was: the one without which there is another error, or none.
    let whole = error.to_string();
    let at_fault = fields.keys().find(|name| {
        let mut others = fields.clone();
        others.remove(*name);
        serde_json::from_value::<T>(Value::Object(others)).map_or_else(|other| other.to_string() != whole, |_| true)
    });
    Err(match at_fault {
        Some(field) => bad(field, whole),
        None => ApiError::new(400, "invalid_request", whole),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn good() -> Terms {
        Terms { name: "test".into(), ..Terms::default() }
    }

    #[test]
    fn bad_terms_are_named() {
        let many = |count: usize| (0..count).map(|n| n.to_string()).collect::<Vec<_>>();
        let labels = |count: usize| -> BTreeMap<_, _> { (0..count).map(|n| (n.to_string(), String::new())).collect() };
        for (terms, field) in [
            (good(), None),
            (Terms { name: String::new(), ..good() }, Some("name")),
            (Terms { name: "x".repeat(65), ..good() }, Some("name")),
            (Terms { name: "a\nb".into(), ..good() }, Some("name")),
            (Terms { models: Some(Vec::new()), ..good() }, Some("models")),
            (Terms { models: Some(many(65)), ..good() }, Some("models")),
            (Terms { concurrency: Some(0), ..good() }, Some("concurrency")),
            (Terms { requests_per_minute: Some(0), ..good() }, Some("requests_per_minute")),
            (Terms { tokens_per_minute: Some(PER_MINUTE_MAX + 1), ..good() }, Some("tokens_per_minute")),
            (Terms { target_ms: Some(0), ..good() }, Some("target_ms")),
            (Terms { cache_s: Some(0), ..good() }, Some("cache_s")),
            (Terms { cache_s: Some(9), cache_similar: Some(0.92), ..good() }, None),
            (Terms { cache_s: Some(9), cache_similar: Some(0.91), ..good() }, Some("cache_similar")),
            (Terms { cache_s: Some(9), cache_similar: Some(f64::NAN), ..good() }, Some("cache_similar")),
            (Terms { cache_similar: Some(0.95), ..good() }, Some("cache_similar")),
            (Terms { cache_s: Some(CACHE_S_MAX + 1), ..good() }, Some("cache_s")),
            (Terms { providers_only: many(33), ..good() }, Some("providers_only")),
            (Terms { providers_order: vec![String::new()], ..good() }, Some("providers_order")),
            (Terms { policy: Some("a b".into()), ..good() }, Some("policy")),
            (Terms { labels: labels(17), ..good() }, Some("labels")),
        ] {
            let param = terms.check().err().and_then(|error| error.param);
            assert_eq!(param.as_deref(), field, "{terms:?}");
        }
    }

    #[test]
    fn bad_json_is_named() {
        for (value, field) in [
            (json!({"name": "a"}), None),
            (json!({"name": "a", "budget_micro": -1}), Some("budget_micro")),
            (json!({"name": "a", "nom": 1}), Some("nom")),
            (json!({"name": 7}), Some("name")),
            (json!({"name": "a", "concurrency": 1.5, "models": ["m"]}), Some("concurrency")),
            (json!({"name": "a", "project": "xyz"}), Some("project")),
            (json!({"name": "a", "prefer": "never"}), Some("prefer")),
        ] {
            let got = Terms::read(value.clone());
            assert_eq!(got.as_ref().err().and_then(|error| error.param.as_deref()), field, "{value}: {got:?}");
            assert_eq!(got.is_err(), field.is_some(), "{value}");
        }
        assert_eq!(Terms::read(json!({"budget_micro": 1})).expect_err("no name").status, 400);
        assert_eq!(Terms::read(json!([])).expect_err("no object").status, 400);
    }

    #[test]
    fn a_patch_changes_what_it_names() {
        let before = Terms { budget_micro: Some(Credits::new(5)), blocked: true, concurrency: Some(2), ..good() };
        let patch = |value: Value| before.patched(value.as_object().expect("an object").clone());
        let after = patch(json!({"budget_micro": 7, "blocked": null, "concurrency": null})).expect("good");
        assert_eq!(after, Terms { budget_micro: Some(Credits::new(7)), ..good() });
        assert_eq!(patch(json!({})).expect("good"), before);
        for (bad, field) in
            [(json!({"concurrency": 0}), "concurrency"), (json!({"x": 1}), "x"), (json!({"name": ""}), "name")]
        {
            assert_eq!(patch(bad).expect_err(field).param.as_deref(), Some(field));
        }
    }

    #[test]
    fn providers_of_a_key_bind_its_requests() {
        let names = |names: &str| names.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        // The key's `only` and `order`, the request's, and what comes of it.
        for (only, order, wanted_only, wanted_order, want) in [
            ("", "", "a", "b", Some(("a", "b"))),
            ("a", "b", "", "", Some(("a", "b"))),
            ("a c", "b", "c d", "e", Some(("c", "e"))),
            ("a", "", "d", "", None),
        ] {
            let terms = Terms { providers_only: names(only), providers_order: names(order), ..good() };
            let mut wishes =
                Preferences { only: names(wanted_only), order: names(wanted_order), ..Preferences::default() };
            let got = terms.direct(&mut wishes);
            match want {
                Some((only, order)) => {
                    assert_eq!((got, wishes.only, wishes.order), (Ok(()), names(only), names(order)))
                }
                None => assert_eq!(got.expect_err("forbidden").status, 403),
            }
        }
    }
}
