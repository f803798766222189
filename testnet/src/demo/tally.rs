//! Counts what became of the demo's jobs, from what the gateway tells of each.
//! Invariant: every job that was begun is counted once, and one without a proper end counts as failed.

use super::Jobs;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::BTreeMap;

/// One attempt of a job, as the gateway tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegTold {
    /// `own` or `network`.
    pub route: String,
    /// The provider's key in hex, if not own.
    pub provider: Option<String>,
    /// Why there, as a code.
    pub reason: String,
    /// What was delivered, in bytes of text.
    pub output: u64,
    /// What it cost, in micro-credits.
    pub cost: u64,
}

/// One job, as the gateway tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Its places, in order.
    pub legs: Vec<LegTold>,
    /// What it cost, in micro-credits.
    pub cost: u64,
    /// To the first text, in milliseconds.
    pub first_ms: Option<u64>,
}

impl Told {
    /// Reads what `/api/v1/generation` says.
    ///
    /// # Errors
    /// A field that is missing.
    pub fn read(body: &Value) -> Result<Self> {
        let missing = |field: &str| format!("the gateway's account of a job has no `{field}`: {body}");
        let legs = body.get("legs").and_then(Value::as_array).with_context(|| missing("legs"))?;
        let text = |leg: &Value, field: &str| leg.get(field).and_then(Value::as_str).map(str::to_owned);
        let legs = legs
            .iter()
            .map(|leg| {
                Ok(LegTold {
                    route: text(leg, "route").with_context(|| missing("legs.route"))?,
                    provider: text(leg, "provider"),
                    reason: text(leg, "reason").with_context(|| missing("legs.reason"))?,
                    output: leg.get("output").and_then(Value::as_u64).unwrap_or(0),
                    cost: leg.get("cost_micro").and_then(Value::as_u64).with_context(|| missing("legs.cost_micro"))?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        if legs.is_empty() {
            bail!("the gateway's account of a job has no legs: {body}");
        }
        Ok(Self {
            legs,
            cost: body.get("cost_micro").and_then(Value::as_u64).with_context(|| missing("cost_micro"))?,
            first_ms: body.get("first_ms").and_then(Value::as_u64),
        })
    }

    /// Whether any of it ran at a stranger's.
    #[must_use]
    pub fn left_home(&self) -> bool {
        self.legs.iter().any(|leg| leg.route == "network" && leg.output > 0)
    }
}

/// The sums.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Jobs by where they ran.
    pub jobs: Jobs,
    /// Legs by reason.
    pub reasons: BTreeMap<String, u64>,
    /// What each provider earned for legs that it was not killed in, by its key in hex, in micro-credits.
    pub earned: BTreeMap<String, u64>,
}

impl Tally {
    /// Counts a job that ended well. `victim` was killed during it: what it earned last is uncertain.
    pub fn add(&mut self, told: &Told, victim: Option<&str>) {
        self.jobs.total += 1;
        if told.left_home() {
            self.jobs.network += 1;
        } else {
            self.jobs.own += 1;
        }
        for leg in &told.legs {
            *self.reasons.entry(leg.reason.clone()).or_default() += 1;
            let Some(provider) = leg.provider.as_deref().filter(|_| leg.output > 0) else { continue };
            let earned = self.earned.entry(provider.into()).or_default();
            if Some(provider) != victim {
                *earned += leg.cost;
            }
        }
    }

    /// Counts a job without a proper end.
    pub fn add_failed(&mut self) {
        self.jobs.total += 1;
        self.jobs.failed += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::{Tally, Told};
    use serde_json::{Value, json};

    fn leg(route: &str, provider: Option<&str>, reason: &str, output: u64, cost: u64) -> Value {
        json!({"route": route, "provider": provider, "reason": reason, "output": output, "cost_micro": cost})
    }

    #[test]
    fn jobs_are_counted_by_where_text_came_from() {
        // What it is, its legs, how it counts as own and network, what is relied on as earned.
        let cases = [
            ("own", vec![leg("own", None, "own_free", 9, 0)], (1, 0), 0),
            ("spilled", vec![leg("network", Some("aa"), "own_saturated", 9, 5)], (0, 1), 5),
            (
                "refused abroad, served at home",
                vec![leg("network", Some("aa"), "own_saturated", 0, 0), leg("own", None, "provider_refused", 9, 0)],
                (1, 0),
                0,
            ),
            (
                "died abroad, finished at home",
                vec![leg("network", Some("bb"), "own_saturated", 4, 3), leg("own", None, "provider_stalled", 5, 0)],
                (0, 1),
                0,
            ),
        ];
        for (what, legs, (own, network), earned) in cases {
            let told = Told::read(&json!({"legs": legs, "cost_micro": 8})).unwrap();
            let mut tally = Tally::default();
            // `bb` was killed: what it earned last is not relied on.
            tally.add(&told, Some("bb"));
            assert_eq!((tally.jobs.own, tally.jobs.network, tally.jobs.total), (own, network, 1), "{what}");
            assert_eq!(tally.earned.values().sum::<u64>(), earned, "{what}");
            assert_eq!(tally.reasons.values().sum::<u64>(), legs.len() as u64, "{what}");
        }
    }

    #[test]
    fn an_account_with_a_field_missing_is_an_error_that_names_it() {
        let whole = leg("own", None, "own_free", 9, 0);
        let without = |field: &str| {
            let mut leg = whole.clone();
            leg.as_object_mut().unwrap().remove(field);
            json!({"legs": [leg], "cost_micro": 0})
        };
        let cases = [
            (json!({"cost_micro": 0}), "`legs`"),
            (json!({"legs": [], "cost_micro": 0}), "no legs"),
            (json!({"legs": [whole]}), "`cost_micro`"),
            (without("route"), "`legs.route`"),
            (without("reason"), "`legs.reason`"),
            (without("cost_micro"), "`legs.cost_micro`"),
        ];
        for (body, named) in cases {
            let error = Told::read(&body).unwrap_err().to_string();
            assert!(error.contains(named), "{body}: {error}");
        }
    }
}
