//! What the tests with real processes share: the built binary, a network of it, and an account with play money.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use spillway_ledger::Credits;
use spillway_testnet::{OpenAi, Testnet, until};
use std::path::Path;
use std::time::Duration;

/// The binary under test.
pub fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_spillway"))
}

/// How long any one condition may take; the machine may be busy.
pub const WAIT: Duration = Duration::from_secs(30);
/// What each test's consumer gets.
pub const MINTED: Credits = Credits::new(20_000_000);

static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Held by each test while it runs: several networks at once on a small machine would measure its scheduler.
pub async fn alone() -> tokio::sync::MutexGuard<'static, ()> {
    ONE.lock().await
}

/// Gives `gateway` credits, waits until it knows that `model` can be had, and makes a key for it.
pub async fn ready_client(network: &Testnet, gateway: &str, model: &str) -> Result<(OpenAi, String)> {
    let admin = network.admin(gateway)?;
    let to = admin.ready().account.to_string();
    let mint = json!({"to": to, "amount_micro": MINTED.micro(), "reference": "test-1"});
    network.books()?.post("/admin/ledger/mint", &mint).await.context("minting")?;
    until("the minted credits", WAIT, async || {
        let account = admin.get("/admin/ledger/account").await?;
        Ok((account.get("balance_micro").and_then(Value::as_u64) == Some(MINTED.micro())).then_some(()))
    })
    .await?;
    until("an offer of the model", WAIT, async || {
        let market = admin.get("/admin/market").await?;
        let offers = market.get("offers").and_then(Value::as_array).context("no offers")?;
        let offered = offers.iter().any(|offer| offer.get("model").and_then(Value::as_str) == Some(model));
        Ok(offered.then_some(()))
    })
    .await?;
    let made =
        admin.post("/admin/keys", &json!({"name": "test", "budget_micro": 10_000_000})).await.context("a key")?;
    let key = made.get("secret").and_then(Value::as_str).context("no secret")?.to_owned();
    let base_url = admin.ready().base_url.clone().context("no base URL")?;
    Ok((OpenAi::new(&base_url, &key)?, key))
}

/// Runs the binary and gives its exit code and standard output.
pub async fn command(arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let output = tokio::process::Command::new(binary())
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("cannot start the binary")?;
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    Ok((output.status.code(), String::from_utf8(output.stdout).context("output is not UTF-8")?))
}
