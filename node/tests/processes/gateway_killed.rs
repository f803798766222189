//! kill -9 of the gateway in the middle of a paid stream, and its restart: the books verify, nothing acknowledged is
//! lost, no one is paid twice, and the provider is paid for what it delivered.

use crate::common::{MINTED, WAIT, binary, command, ready_client};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use spillway_testnet::topology::{BOOKS, GATEWAY, GUIDE};
use spillway_testnet::{OpenAi, Plan, Statement, Testnet, Topology, until};
use std::path::Path;
use std::time::{Duration, Instant};

const QUESTION: &str = "what does this software do?";
/// How much of the answer arrives before the kill, in bytes.
const KILL_AFTER_BYTES: usize = 40;
/// How long the books must stay the same before the last settlement is taken to be in; providers rest 0.5 s.
const QUIET: Duration = Duration::from_secs(2);
/// The provider's price per million output units, in micro-credits.
const PRICE_OUTPUT: u64 = 4_000_000;

async fn cost(api: &OpenAi, job: &str) -> Result<u64> {
    until("the account of a job", WAIT, async || {
        let told = api.generation(job).await?;
        let done = told.get("status").and_then(Value::as_str) != Some("running");
        Ok(told.get("cost_micro").and_then(Value::as_u64).filter(|_| done))
    })
    .await
}

async fn verifies(folder: &Path) -> Result<Value> {
    let folder = folder.to_str().context("the folder's name is not UTF-8")?;
    let (code, said) = command(&["ledger", "verify", "--json", "--folder", folder]).await?;
    let said: Value = serde_json::from_str(&said)?;
    ensure!(code == Some(0) && said["verified"] == true, "{folder}: {said}");
    Ok(said)
}

async fn spent(network: &Testnet) -> Result<(u64, u64)> {
    let keys = network.admin(GATEWAY)?.get("/admin/keys").await?;
    let number =
        |field: &str| keys.pointer(&format!("/keys/0/{field}")).and_then(Value::as_u64).context("no such field");
    Ok((number("spent_micro")?, number("reserved_micro")?))
}

/// The statement of the books once nothing more comes.
async fn quiet(network: &Testnet, at_least: u64) -> Result<Statement> {
    let books = network.books()?;
    let (mut last, mut since) = (Statement::default(), Instant::now());
    until("the last settlement", WAIT, async || {
        let now = Statement::replay(network.genesis(), &books.blocks().await?)?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
        ensure!(last.gross >= at_least, "settled {} of at least {at_least}", last.gross);
        Ok((since.elapsed() >= QUIET).then(|| last.clone()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_killed_in_a_paid_stream_loses_and_repeats_nothing() -> Result<()> {
    let _alone = crate::common::alone().await;
    let folder = tempfile::tempdir()?;
    let topology =
        Topology { plans: vec![Plan::books(), Plan::new(GATEWAY), Plan::new("near").with_guide(4).provides(1.0, 4.0)] };
    let mut network = Testnet::start(binary(), &folder.path().canonicalize()?, &topology).await?;
    let (api, key) = ready_client(&network, GATEWAY, GUIDE).await?;

    // One whole job: acknowledged, so never to be lost.
    let whole = api.ask(GUIDE, QUESTION).await?.finish(String::new()).await?;
    assert_eq!(whole.placement.route, "network");
    let first = cost(&api, &whole.placement.job).await?;
    assert!(first > 0);
    until("the budget's settlement", WAIT, async || Ok((spent(&network).await? == (first, 0)).then_some(()))).await?;

    // A second one, cut off.
    let mut cut = api.ask(GUIDE, QUESTION).await?;
    let mut text = String::new();
    while text.len() < KILL_AFTER_BYTES {
        text.push_str(&cut.text().await?.context("the answer ended before the kill")?);
    }
    network.kill(GATEWAY).await?;
    assert!(cut.finish(text.clone()).await.is_err(), "a stream of a dead gateway must not look complete");
    network.restart(GATEWAY).await?;

    // The provider redeems what it delivered; the first job is paid once.
    let delivered_at_least = first + text.len() as u64 * PRICE_OUTPUT / 1_000_000;
    let statement = quiet(&network, delivered_at_least).await?;
    statement.check()?;
    assert!(statement.gross <= 2 * first, "{} for two answers of {first}, one of them cut off", statement.gross);

    // The same key, budget, receipts and place: nothing acknowledged is lost, and no reservation stays.
    let kept = until("the killed job's budget", WAIT, async || {
        let (spent, reserved) = spent(&network).await?;
        Ok((reserved == 0).then_some(spent))
    })
    .await?;
    assert!(kept >= first, "the key had spent {first} before the kill, and {kept} after it");
    let receipts = network.admin(GATEWAY)?.get(&format!("/admin/ledger/receipts?job={}", whole.placement.job)).await?;
    assert_eq!(receipts.pointer("/receipts/0/both"), Some(&Value::Bool(true)), "{receipts}");
    let base_url = network.node(GATEWAY)?.ready().base_url.clone().context("no base URL")?;
    let api = OpenAi::new(&base_url, &key)?;
    let again = until("an answer after the restart", WAIT, async || {
        Ok(Some(api.ask(GUIDE, QUESTION).await?.finish(String::new()).await?))
    })
    .await?;
    assert_eq!(again.text, whole.text);
    let third = cost(&api, &again.placement.job).await?;

    let after = quiet(&network, statement.gross + third).await?;
    after.check()?;
    assert_eq!(after.gross, statement.gross + third, "the third job is paid once, and nothing else again");

    // Conservation, seen from outside: what is missing at the gateway was paid or is locked.
    let account = network.admin(GATEWAY)?.get("/admin/ledger/account").await?;
    let number =
        |field: &str| account.get(field).and_then(Value::as_u64).with_context(|| format!("no {field}: {account}"));
    let has = number("balance_micro")? + number("locked_micro")?;
    // The gateway's own share of each payment comes back to it.
    assert_eq!(has, MINTED.micro() - after.gross + after.gateway, "{account}");

    verifies(network.node(BOOKS)?.folder()).await?;
    let places = [network.node(BOOKS)?.folder().to_owned(), network.node(GATEWAY)?.folder().to_owned()];
    network.stop().await?;
    for place in places {
        let said = verifies(&place).await?;
        assert_eq!(said["settled_gross"].as_u64(), Some(after.gross), "{said}");
    }
    Ok(())
}
