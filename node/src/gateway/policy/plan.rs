//! A request's plan: its policy, and the job that each of its targets would be.
//! Invariant: every target's job was made once before money was set aside, so that no attempt fails for what could be known.

use super::facts::facts;
use super::{Attempts, Hints, Policies};
use crate::gateway::error::ApiError;
use crate::gateway::keys::Caller;
use crate::gateway::tokens_of;
use crate::jobs::{Beside, Jobs, JobsFull, MarketModel};
use crate::openai::endpoint::Encoding;
use crate::openai::fields::{Fields, raw};
use crate::openai::form::Form;
use crate::openai::request::UNITS_PER_TOKEN_MAX;
use crate::openai::{Request, endpoint};
use serde_json::value::to_raw_value;
use spillway_ledger::{Credits, Price, Usage};
use spillway_protocol::policy::{Course, Place, Policy, Target};
use spillway_protocol::{Job, Kind, Prefer};
use std::sync::Arc;

/// A policy that a request goes by.
#[derive(Debug)]
pub(in crate::gateway) struct Plan {
    policies: Policies,
    policy: Arc<Policy>,
    scope: String,
}

/// Where a name stands that a target sets.
fn bad(target: &Target, field: &str, error: ApiError) -> ApiError {
    ApiError { message: format!("target `{}`: {}", target.name, error.message), param: Some(field.into()), ..error }
}

impl Plan {
    /// The policy that a request goes by, if it goes by any: what it asks for itself comes before what its key says.
    ///
    /// # Errors
    /// 400 if it names both a backend and a policy, 503 if its key names a policy that is no more.
    pub(in crate::gateway) fn of(
        policies: &Policies,
        caller: &Caller,
        request: &Request,
        hints: &Hints,
    ) -> Result<Option<Self>, ApiError> {
        let found = match (&request.routing.backend, &hints.policy) {
            (Some(_), Some(_)) => {
                let error = ApiError::new(400, "invalid_request", "model: names a backend beside a policy");
                return Err(ApiError { param: Some("model".into()), ..error });
            }
            (Some(backend), None) => Some(policies.only(backend)),
            // What one key sends says nothing of the targets of another's.
            (None, Some((policy, scope))) if scope.starts_with("inline/") => {
                Some((Arc::clone(policy), format!("{}/{scope}", caller.id)))
            }
            (None, Some((policy, scope))) => Some((Arc::clone(policy), scope.clone())),
            (None, None) => match caller.policy() {
                None => None,
                Some(name) => {
                    let named = policies.0.named.get(name).ok_or_else(|| {
                        ApiError::new(
                            503,
                            "policy_not_found",
                            format!("the key's policy `{name}` is not there any more"),
                        )
                    })?;
                    Some((Arc::clone(&named.policy), name.to_owned()))
                }
            },
        };
        Ok(found.map(|(policy, scope)| Self { policies: policies.clone(), policy, scope }))
    }

    /// The models that it may ask for, where that is not left to the request.
    pub(in crate::gateway) fn models(&self) -> Option<Vec<&str>> {
        self.policy.targets().map(|(_, target)| target.model.as_deref()).collect()
    }

    /// Every model that it may ask for beside the request's.
    pub(in crate::gateway) fn set_models(&self) -> impl Iterator<Item = &str> {
        let shadow = self.policy.shadow.iter().filter_map(|shadow| shadow.target.model.as_deref());
        self.policy.targets().filter_map(|(_, target)| target.model.as_deref()).chain(shadow)
    }

    /// The most that the request may cost, and the most tokens that it may use. Attempts that fail mostly cost nothing, but one
    /// that was begun may: where there may be several, twice the dearest is set aside, and none is begun that it does not cover.
    ///
    /// # Errors
    /// 400 if a target's fields make no request of this one, or its cost exceeds what can be counted.
    pub(in crate::gateway) fn most(&self, base: &Job, on_offer: &[MarketModel]) -> Result<(Credits, u64), ApiError> {
        let (mut money, mut tokens) = (Credits::ZERO, 0);
        for (_, target) in self.policy.targets() {
            let job = job_for(base, target)?;
            money = money.max(cost_max(&self.policies, &job, on_offer)?);
            tokens = tokens.max(tokens_max(&job));
        }
        if let Some(shadow) = &self.policy.shadow {
            job_for(base, &shadow.target)?;
        }
        if self.policy.tries_again() {
            money = Credits::new(money.micro().saturating_mul(2));
        }
        Ok((money, tokens))
    }

    /// Begins.
    ///
    /// # Errors
    /// If the market is too far behind to take the first job.
    #[expect(clippy::too_many_arguments, reason = "what a request is, and what it may use")]
    pub(in crate::gateway) fn begin(
        self,
        jobs: Jobs,
        base: Job,
        caller: &Caller,
        session: Option<&str>,
        hints: &Hints,
        most: Credits,
        beside: Beside,
        seed: [u8; 32],
    ) -> Result<Attempts, JobsFull> {
        let facts = facts(caller, base.kind, &base.body, &base.model, session, &hints.metadata);
        let course = Course::new(self.policy, &self.scope, facts, seed);
        Attempts::begin(self.policies, course, jobs, base, most, beside)
    }
}

/// The tokens that a job may use.
pub(in crate::gateway) fn tokens_max(job: &Job) -> u64 {
    tokens_of(job.prompt_units()).saturating_add(job.output_max.div_ceil(UNITS_PER_TOKEN_MAX))
}

/// The most that a job may cost: at own backends that have a price, and then in the market.
///
/// # Errors
/// 400 if that exceeds what can be counted.
pub(in crate::gateway) fn cost_max(
    policies: &Policies,
    job: &Job,
    on_offer: &[MarketModel],
) -> Result<Credits, ApiError> {
    let token_price = if !job.preferences.allows_own() || job.own.owned_only {
        Price::ZERO
    } else if job.own.backends.is_empty() {
        let models = std::iter::once(&job.model).chain(&job.alternatives);
        let prices = models.filter_map(|name| on_offer.iter().find(|model| model.id == *name));
        prices.fold(Price::ZERO, |most, model| Price {
            input: most.input.max(model.token_price.input),
            cached: most.cached.max(model.token_price.cached),
            output: most.output.max(model.token_price.output),
        })
    } else {
        policies.price_of(&job.own.backends)
    };
    // A token is a byte at the least.
    let tokens = Usage { input: job.prompt_units(), cached: 0, output: job.output_max.div_ceil(UNITS_PER_TOKEN_MAX) };
    let own = token_price.cost(tokens);
    let only = &job.preferences.only;
    let stays = job.prefer == Prefer::Own || (!only.is_empty() && only.iter().all(|name| name == "own"));
    let market = if stays { Some(Credits::ZERO) } else { job.cost_max() };
    let sum = own.zip(market).and_then(|(own, market)| own.checked_add(market));
    sum.ok_or_else(|| ApiError::new(400, "price_limit", "the price limit exceeds what can be counted"))
}

/// The job that a request is at a target.
///
/// # Errors
/// 400 if the target's fields make no request of it.
pub(super) fn job_for(base: &Job, target: &Target) -> Result<Job, ApiError> {
    let mut job = base.clone();
    match &target.place {
        Place::Market => {}
        Place::Own(names) => {
            job.prefer = Prefer::Own;
            job.own.backends.clone_from(names);
        }
        Place::Network => job.preferences.ignore.push("own".into()),
    }
    // Its limits are for pieces as they come.
    job.whole &= target.timeouts.first.is_none() && target.timeouts.between.is_none();
    if target.model.is_none() && target.overrides.is_empty() {
        return Ok(job);
    }
    let model = target.model.as_deref().unwrap_or(&base.model);
    let body = with_fields(base.kind, &base.body, model, target)?;
    let read = Request::parse(base.kind, &body).map_err(|error| {
        let field = error.field.clone().unwrap_or_else(|| "body".into());
        bad(target, &field, error.into())
    })?;
    if target.model.is_some() {
        job.alternatives.clear();
    }
    model.clone_into(&mut job.model);
    job.prefix = spillway_protocol::prefix::names(model, &read.body);
    (job.body, job.output_max, job.continuable) = (read.body, read.output_max, read.continuable);
    Ok(job)
}

fn with_fields(kind: Kind, body: &[u8], model: &str, target: &Target) -> Result<Vec<u8>, ApiError> {
    if endpoint(kind).encoding == Encoding::Multipart {
        if let Some(field) = target.overrides.keys().next() {
            let error = ApiError::new(400, "invalid_request", "fields of a form are not set by a policy");
            return Err(bad(target, field, error));
        }
        let mut form = Form::parse(body).map_err(ApiError::from)?;
        form.set("model", model);
        return Ok(form.to_bytes());
    }
    let mut fields = Fields::parse(body).expect("it was made of fields");
    for (name, value) in &target.overrides {
        fields.set(name, to_raw_value(value).expect("JSON"));
    }
    fields.set("model", raw(model));
    Ok(fields.to_bytes())
}
