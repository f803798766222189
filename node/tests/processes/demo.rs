//! `spillway demo --json` as a user runs it: it passes, and its one object says so in every field.

use anyhow::{Context, Result};
use serde_json::Value;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_passes_and_says_so_in_json() -> Result<()> {
    let _alone = crate::common::alone().await;
    let (code, stdout) = tokio::time::timeout(Duration::from_secs(180), crate::common::command(&["demo", "--json"]))
        .await
        .context("the demo took longer than three minutes")??;
    let summary: Value = serde_json::from_str(&stdout).with_context(|| format!("not one JSON object: {stdout}"))?;
    let number =
        |pointer: &str| summary.pointer(pointer).and_then(Value::as_u64).with_context(|| format!("no {pointer}"));

    assert_eq!(summary["problems"], serde_json::json!([]), "{summary}");
    assert_eq!(code, Some(0), "{summary}");
    let (total, own, network, failed) =
        (number("/jobs/total")?, number("/jobs/own")?, number("/jobs/network")?, number("/jobs/failed")?);
    assert_eq!((failed, total), (0, own + network), "{summary}");
    assert!(own >= 1 && network >= 2 && number("/providers")? >= 2, "{summary}");
    let (gross, provider, rest) =
        (number("/settled/gross")?, number("/settled/provider")?, number("/settled/network")?);
    assert!(gross > 0 && provider * 10 >= gross * 7, "{summary}");
    assert_eq!(provider + rest, gross, "{summary}");
    assert_eq!(summary["ledger_verified"], true, "{summary}");
    let answer = summary["answer"].as_str().context("no answer")?;
    assert!(answer.contains("Spillway") && answer.trim_end().ends_with('.'), "{answer:?} is no sentence of the guide");
    let reasons = summary["reasons"].as_object().context("no reasons")?;
    for code in ["own_free", "own_saturated", "provider_stalled"] {
        assert!(reasons.contains_key(code), "no {code} in {reasons:?}");
    }
    let known = spillway_protocol::Reason::ALL.map(spillway_protocol::Reason::as_str);
    assert!(reasons.keys().all(|code| known.contains(&code.as_str())), "{reasons:?}");
    assert!(summary.get("seconds").and_then(Value::as_f64).is_some_and(|seconds| seconds > 0.0), "{summary}");
    Ok(())
}
