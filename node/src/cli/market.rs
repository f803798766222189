//! `spillway models`, `market` and `explain`: what is on offer, and what became of a job.
//! Invariant: they print what the running node knows, and ask nobody else.

use super::table::{self, Show};
use super::{Listing, Place, Verdict};
use anyhow::Result;
use clap::Args;
use serde_json::Value;
use spillway_ledger::Credits;
use spillway_protocol::Reason;

#[derive(Debug, Args)]
pub(crate) struct MarketArguments {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    listing: Listing,
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArguments {
    /// The job's id, from the header `x-spillway-job`
    job: String,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    listing: Listing,
}

/// Prints the models that can be called.
pub(crate) async fn models(arguments: &MarketArguments) -> Result<Verdict> {
    let market = arguments.place.admin()?.get("/admin/market").await?;
    let columns = [
        ("MODEL", "/id", Show::Plain),
        ("OWN", "/own", Show::Flag),
        ("PROVIDERS", "/providers", Show::Plain),
        ("INPUT/M FROM", "/price_min/input", Show::Money),
        ("OUTPUT/M FROM", "/price_min/output", Show::Money),
    ];
    let body = serde_json::json!({"models": market.get("models").cloned().unwrap_or_default()});
    let none = "no model can be called: no backend of its own, and nobody offers any; try `spillway doctor`";
    table::list(&body, "models", arguments.listing.json, &columns, none)?;
    Ok(Verdict::Done)
}

/// Prints the offers.
pub(crate) async fn market(arguments: &MarketArguments) -> Result<Verdict> {
    let market = arguments.place.admin()?.get("/admin/market").await?;
    let columns = [
        ("PROVIDER", "/node", Show::Short),
        ("MODEL", "/model", Show::Plain),
        ("INPUT/M", "/price/input", Show::Money),
        ("OUTPUT/M", "/price/output", Show::Money),
        ("SLOTS", "/slots", Show::Plain),
        ("RTT", "/rtt_ms", Show::Millis),
        ("REPUTATION", "/reputation", Show::Share),
        ("REGION", "/region", Show::Plain),
        ("AGE", "/age_ms", Show::Millis),
    ];
    let body = serde_json::json!({"offers": market.get("offers").cloned().unwrap_or_default()});
    table::list(&body, "offers", arguments.listing.json, &columns, "nobody offers anything")?;
    Ok(Verdict::Done)
}

/// What a reason means, for people.
const fn meaning(reason: Reason) -> &'static str {
    match reason {
        Reason::OwnFree => "an own slot was free",
        Reason::OwnQueued => "it waited for an own slot: nothing better was to be had",
        Reason::OwnHedged => "the own backend that had it first was late, and another one answered",
        Reason::OwnSaturated => "every own slot was taken",
        Reason::OwnUnhealthy => "the own backend does not answer",
        Reason::ModelNotLocal => "no own backend has the model",
        Reason::LabelForbidsNetwork => "its key keeps it on own hardware",
        Reason::PriceCap => "offers exist, none within the price limit and preferences",
        Reason::NoOffer => "nobody offers the model",
        Reason::NoDeposit => "the balance covers no deposit",
        Reason::ProviderRefused => "every provider that was asked before refused",
        Reason::ProviderStalled => "the provider before fell silent or vanished",
        Reason::ProviderPreempted => "the owner of the provider before needed the slot",
        Reason::Upstream429 => "the backend is rate-limited",
        Reason::UpstreamError => "the backend failed",
        Reason::ClientLeft => "the client left",
        Reason::QueueFull => "too many jobs wait on this node",
        Reason::NoPlace => "whoever would serve it failed a short while ago, and rests",
        Reason::Timeout => "it took longer than its policy allows",
    }
}

/// A code with its meaning; a newer node may know codes that this program does not.
fn told(code: &str) -> String {
    match Reason::ALL.into_iter().find(|reason| reason.as_str() == code) {
        Some(reason) => format!("{code}: {}", meaning(reason)),
        None => code.to_owned(),
    }
}

/// Prints who else was weighed for a job, and what it would have cost there.
fn candidates(job: &Value) -> Result<()> {
    let rows = |field: &str| job.get(field).and_then(Value::as_array).cloned().unwrap_or_default();
    let cost = |row: &Value| match row.get("would_cost_micro").and_then(Value::as_u64) {
        Some(micro) => Credits::new(micro).to_string(),
        None => "more than can be counted".into(),
    };
    let name = |row: &Value| row.get("provider").and_then(Value::as_str).unwrap_or("-").to_owned();
    for row in rows("considered") {
        let is_taken = row.get("taken").and_then(Value::as_bool) == Some(true);
        let state = match row.get("readiness").and_then(Value::as_str) {
            Some("free") => "had a free slot",
            Some("busy") => "had no free slot",
            Some("unasked") => "was not asked, or had not answered",
            Some(_) | None => "-",
        };
        let first = row.get("first_ms").and_then(Value::as_u64).map_or("-".into(), |ms| format!("{ms} ms"));
        let what = if is_taken { "taken " } else { "not   " };
        table::line(&format!("{what} provider {}", name(&row)))?;
        table::line(&format!("       {state}; first text expected after {first}; all of it costs {}", cost(&row)))?;
    }
    for row in rows("offers_now") {
        table::line(&format!("offer  provider {}, as of now", name(&row)))?;
        table::line(&format!("       was not weighed; all of it would cost {}", cost(&row)))?;
    }
    Ok(())
}

/// Prints what became of a job.
pub(crate) async fn explain(arguments: &ExplainArguments) -> Result<Verdict> {
    if !arguments.job.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        anyhow::bail!("JOB: {:?} is no job id: those are hexadecimal digits", arguments.job);
    }
    let job = arguments.place.admin()?.get(&format!("/admin/jobs/{}", arguments.job)).await?;
    if arguments.listing.json {
        table::line(&serde_json::to_string_pretty(&job)?)?;
        return Ok(Verdict::Done);
    }
    let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).unwrap_or("-").to_owned();
    let micro = |value: &Value| Credits::new(value.get("cost_micro").and_then(Value::as_u64).unwrap_or(0));
    table::line(&format!("job    {}", text(&job, "job")))?;
    table::line(&format!("model  {}", text(&job, "model")))?;
    if let Some(wishes) = job.get("wishes").and_then(Value::as_str) {
        table::line(&format!("wishes {wishes}"))?;
    }
    for (index, leg) in job.get("legs").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let place = match leg.get("provider").and_then(Value::as_str) {
            Some(provider) => format!("provider {provider}"),
            None => "own hardware".into(),
        };
        let output = leg.get("output").and_then(Value::as_u64).unwrap_or(0);
        table::line(&format!("leg {}  {place}", index + 1))?;
        table::line(&format!("       {}", told(&text(leg, "reason"))))?;
        table::line(&format!("       {output} bytes delivered, {}", micro(leg)))?;
    }
    candidates(&job)?;
    let millis = |field: &str| job.get(field).and_then(Value::as_u64).map_or("-".into(), |ms| format!("{ms} ms"));
    let end = match job.get("error").and_then(Value::as_str) {
        Some(error) => format!("failed: {error}"),
        None => match job.get("finish").and_then(Value::as_str) {
            Some(finish) => format!("finished: {finish}"),
            None => "still runs".into(),
        },
    };
    table::line(&format!("end    {end}"))?;
    table::line(&format!("time   first text after {}, all after {}", millis("first_ms"), millis("total_ms")))?;
    table::line(&format!("cost   {}", micro(&job)))?;
    Ok(Verdict::Done)
}
