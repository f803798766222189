//! Conditions on a request's metadata and parameters, in the form that MongoDB made known and Portkey's configs use.
//! Invariant: a condition is bounded in size and depth, and looking at it takes time linear in the texts it reads.

use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Most tests in one condition.
const TESTS_MAX: usize = 64;
/// How deep `$and` and `$or` may nest.
const DEPTH_MAX: usize = 8;
/// Longest pattern, in bytes, and the most memory that it may take once read.
const PATTERN_BYTES_MAX: usize = 512;
const PATTERN_MEMORY_MAX: usize = 256 << 10;

/// What conditions may ask about a request: names such as `metadata.plan`, `params.max_tokens`, `key.team`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    values: BTreeMap<String, Value>,
    /// The same for requests that belong together, evenly spread.
    pub sticky: Option<u64>,
}

impl Facts {
    /// Notes a fact, in place of an older one of the same name.
    pub fn insert(&mut self, name: String, value: Value) {
        self.values.insert(name, value);
    }

    /// What is known under a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.values.get(name)
    }
}

/// Whether a request is meant.
#[derive(Clone, Debug, PartialEq)]
pub enum Condition {
    /// All of these.
    All(Vec<Condition>),
    /// One of these.
    Any(Vec<Condition>),
    /// One fact.
    Test {
        /// Its name.
        name: String,
        /// What must be true of it.
        test: Test,
    },
}

/// What must be true of a fact. A fact that is not there is unequal to everything and passes no other test.
#[derive(Clone, Debug)]
pub enum Test {
    /// It is this.
    Equal(Value),
    /// It is not.
    Unequal(Value),
    /// It is one of these.
    In(Vec<Value>),
    /// It is none of these.
    NotIn(Vec<Value>),
    /// It is above, and whether the bound itself passes.
    Above(Bound, bool),
    /// It is below, and whether the bound itself passes.
    Below(Bound, bool),
    /// Its text has a place that fits.
    Matches(Box<Regex>),
}

/// What facts are compared with: numbers by size, texts by their bytes.
#[derive(Clone, Debug, PartialEq)]
pub enum Bound {
    /// A number.
    Number(f64),
    /// A text.
    Text(String),
}

impl PartialEq for Test {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Equal(a), Self::Equal(b)) | (Self::Unequal(a), Self::Unequal(b)) => a == b,
            (Self::In(a), Self::In(b)) | (Self::NotIn(a), Self::NotIn(b)) => a == b,
            (Self::Above(a, at), Self::Above(b, bt)) | (Self::Below(a, at), Self::Below(b, bt)) => a == b && at == bt,
            (Self::Matches(a), Self::Matches(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

/// Why a value is no condition: the place in it, and what is wrong there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {why}")]
pub struct ConditionError {
    /// Such as `metadata.plan.$in`; empty for the whole.
    pub place: String,
    /// In words.
    pub why: String,
}

fn fail<T>(place: &str, why: impl Into<String>) -> Result<T, ConditionError> {
    Err(ConditionError { place: place.to_owned(), why: why.into() })
}

impl Condition {
    /// Reads `{"metadata.plan": {"$in": ["a", "b"]}, "params.max_tokens": {"$lte": 100}}`; a plain value means `$eq`.
    ///
    /// # Errors
    /// The first place that does not hold.
    pub fn parse(value: &Value) -> Result<Self, ConditionError> {
        let mut left = TESTS_MAX;
        all(value, "", DEPTH_MAX, &mut left)
    }

    /// Whether it holds.
    #[must_use]
    pub fn holds(&self, facts: &Facts) -> bool {
        match self {
            Self::All(all) => all.iter().all(|condition| condition.holds(facts)),
            Self::Any(any) => any.iter().any(|condition| condition.holds(facts)),
            Self::Test { name, test } => test.passes(facts.get(name)),
        }
    }
}

fn all(value: &Value, place: &str, depth: usize, left: &mut usize) -> Result<Condition, ConditionError> {
    let Value::Object(fields) = value else { return fail(place, "not an object of conditions") };
    if fields.is_empty() {
        return fail(place, "empty");
    }
    if depth == 0 {
        return fail(place, format!("nested deeper than {DEPTH_MAX}"));
    }
    let mut found = Vec::new();
    for (name, value) in fields {
        let at = if place.is_empty() { name.clone() } else { format!("{place}.{name}") };
        match name.as_str() {
            "$and" | "$or" => {
                let Value::Array(list) = value else { return fail(&at, "not an array") };
                if list.is_empty() {
                    return fail(&at, "empty");
                }
                let parts: Result<Vec<_>, _> = (list.iter().enumerate())
                    .map(|(index, value)| all(value, &format!("{at}[{index}]"), depth - 1, left))
                    .collect();
                found.push(if name == "$and" { Condition::All(parts?) } else { Condition::Any(parts?) });
            }
            _ if name.starts_with('$') => return fail(&at, "no such operator"),
            _ if !["metadata.", "params.", "key.", "url."].iter().any(|room| name.starts_with(room)) => {
                return fail(&at, "not `metadata.…`, `params.…`, `key.…` or `url.pathname`");
            }
            _ => tests(name, value, &at, left, &mut found)?,
        }
    }
    Ok(if found.len() == 1 { found.remove(0) } else { Condition::All(found) })
}

fn tests(
    name: &str,
    value: &Value,
    place: &str,
    left: &mut usize,
    into: &mut Vec<Condition>,
) -> Result<(), ConditionError> {
    let plain = Map::from_iter([("$eq".to_owned(), value.clone())]);
    let operators = match value {
        Value::Object(fields) => fields,
        Value::Array(_) => return fail(place, "an array; use `$in`"),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => &plain,
    };
    if operators.is_empty() {
        return fail(place, "empty");
    }
    for (operator, value) in operators {
        let at = format!("{place}.{operator}");
        let Some(fewer) = left.checked_sub(1) else { return fail(&at, format!("more than {TESTS_MAX} tests")) };
        *left = fewer;
        let test = match operator.as_str() {
            "$eq" => Test::Equal(scalar(value, &at)?),
            "$ne" => Test::Unequal(scalar(value, &at)?),
            "$in" => Test::In(list(value, &at, left)?),
            "$nin" => Test::NotIn(list(value, &at, left)?),
            "$gt" => Test::Above(bound(value, &at)?, false),
            "$gte" => Test::Above(bound(value, &at)?, true),
            "$lt" => Test::Below(bound(value, &at)?, false),
            "$lte" => Test::Below(bound(value, &at)?, true),
            "$regex" => Test::Matches(pattern(value, &at)?),
            _ => return fail(&at, "no such operator"),
        };
        into.push(Condition::Test { name: name.to_owned(), test });
    }
    Ok(())
}

fn scalar(value: &Value, place: &str) -> Result<Value, ConditionError> {
    match value {
        Value::Array(_) | Value::Object(_) => fail(place, "neither text, number, true, false nor null"),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(value.clone()),
    }
}

fn list(value: &Value, place: &str, left: &mut usize) -> Result<Vec<Value>, ConditionError> {
    let Value::Array(list) = value else { return fail(place, "not an array") };
    let Some(fewer) = left.checked_sub(list.len()) else { return fail(place, format!("more than {TESTS_MAX} tests")) };
    *left = fewer;
    list.iter().enumerate().map(|(index, value)| scalar(value, &format!("{place}[{index}]"))).collect()
}

fn bound(value: &Value, place: &str) -> Result<Bound, ConditionError> {
    match value {
        Value::Number(number) => Ok(Bound::Number(number.as_f64().unwrap_or(f64::NAN))),
        Value::String(text) => Ok(Bound::Text(text.clone())),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => fail(place, "neither a number nor a text"),
    }
}

fn pattern(value: &Value, place: &str) -> Result<Box<Regex>, ConditionError> {
    let Value::String(text) = value else { return fail(place, "not a text") };
    if text.len() > PATTERN_BYTES_MAX {
        return fail(place, format!("over {PATTERN_BYTES_MAX} bytes"));
    }
    match RegexBuilder::new(text).size_limit(PATTERN_MEMORY_MAX).dfa_size_limit(PATTERN_MEMORY_MAX).build() {
        Ok(regex) => Ok(Box::new(regex)),
        Err(_) => fail(place, "no pattern, or too large a one"),
    }
}

/// Numbers are equal by size, however they are written; all else as it is.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        (Some(_), None) | (None, Some(_)) => false,
        (None, None) => a == b,
    }
}

impl Test {
    fn passes(&self, fact: Option<&Value>) -> bool {
        let number = fact.and_then(Value::as_f64);
        let text = fact.and_then(Value::as_str);
        match self {
            Self::Equal(value) => fact.map_or(value.is_null(), |fact| same(fact, value)),
            Self::Unequal(value) => !fact.map_or(value.is_null(), |fact| same(fact, value)),
            Self::In(list) => fact.is_some_and(|fact| list.iter().any(|value| same(fact, value))),
            Self::NotIn(list) => !fact.is_some_and(|fact| list.iter().any(|value| same(fact, value))),
            Self::Above(Bound::Number(bound), at) => {
                number.is_some_and(|fact| fact > *bound || (*at && fact == *bound))
            }
            Self::Below(Bound::Number(bound), at) => {
                number.is_some_and(|fact| fact < *bound || (*at && fact == *bound))
            }
            Self::Above(Bound::Text(bound), at) => {
                text.is_some_and(|fact| fact > bound.as_str() || (*at && fact == bound.as_str()))
            }
            Self::Below(Bound::Text(bound), at) => {
                text.is_some_and(|fact| fact < bound.as_str() || (*at && fact == bound.as_str()))
            }
            Self::Matches(regex) => text.is_some_and(|fact| regex.is_match(fact)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn conditions_hold_or_not() {
        let mut facts = Facts::default();
        for (name, value) in [
            ("metadata.plan", json!("gold")),
            ("params.max_tokens", json!(100)),
            ("params.stream", json!(true)),
            ("params.temperature", json!(0.5)),
        ] {
            facts.insert(name.into(), value);
        }
        for (condition, holds) in [
            (json!({"metadata.plan": "gold"}), true),
            (json!({"metadata.plan": {"$eq": "silver"}}), false),
            (json!({"metadata.plan": {"$ne": "silver"}}), true),
            (json!({"metadata.none": {"$ne": "silver"}}), true),
            (json!({"metadata.none": "x"}), false),
            (json!({"metadata.none": null}), true),
            (json!({"metadata.plan": {"$in": ["silver", "gold"]}}), true),
            (json!({"metadata.plan": {"$nin": ["silver", "gold"]}}), false),
            (json!({"metadata.none": {"$nin": ["gold"]}}), true),
            (json!({"params.max_tokens": {"$gt": 99, "$lte": 100.0}}), true),
            (json!({"params.max_tokens": {"$gte": 101}}), false),
            (json!({"params.max_tokens": {"$lt": 100}}), false),
            (json!({"params.max_tokens": 100.0}), true),
            (json!({"params.max_tokens": {"$gt": "1"}}), false),
            (json!({"params.stream": true, "params.temperature": {"$lt": 1}}), true),
            (json!({"metadata.plan": {"$regex": "^g.*d$"}}), true),
            (json!({"params.max_tokens": {"$regex": "1"}}), false),
            (json!({"$or": [{"metadata.plan": "x"}, {"params.stream": true}]}), true),
            (json!({"$and": [{"metadata.plan": "x"}, {"params.stream": true}]}), false),
            (json!({"$or": [{"$and": [{"params.stream": true}, {"metadata.plan": {"$gte": "gold"}}]}]}), true),
        ] {
            let got = Condition::parse(&condition).expect("good").holds(&facts);
            assert_eq!(got, holds, "{condition}");
        }
    }

    #[test]
    fn what_is_none_is_named() {
        let many: Vec<_> = (0..TESTS_MAX).collect();
        let deep = (0..=DEPTH_MAX).fold(json!({"metadata.a": 1}), |inner, _| json!({"$and": [inner]}));
        for (condition, place) in [
            (json!([]), ""),
            (json!({}), ""),
            (json!({"plan": "x"}), "plan"),
            (json!({"$not": {}}), "$not"),
            (json!({"$and": []}), "$and"),
            (json!({"$or": [{"metadata.a": 1}, 7]}), "$or[1]"),
            (json!({"metadata.a": {"$near": 1}}), "metadata.a.$near"),
            (json!({"metadata.a": {"$eq": []}}), "metadata.a.$eq"),
            (json!({"metadata.a": [1]}), "metadata.a"),
            (json!({"metadata.a": {}}), "metadata.a"),
            (json!({"metadata.a": {"$in": 1}}), "metadata.a.$in"),
            (json!({"metadata.a": {"$gt": null}}), "metadata.a.$gt"),
            (json!({"metadata.a": {"$in": many}}), "metadata.a.$in"),
            (json!({"metadata.a": {"$regex": "("}}), "metadata.a.$regex"),
            (json!({"metadata.a": {"$regex": "x{1000}{1000}"}}), "metadata.a.$regex"),
            (json!({"metadata.a": {"$regex": "x".repeat(513)}}), "metadata.a.$regex"),
        ] {
            assert_eq!(Condition::parse(&condition).expect_err("bad").place, place, "{condition}");
        }
        assert!(Condition::parse(&deep).expect_err("deep").why.contains("nested"));
    }
}
