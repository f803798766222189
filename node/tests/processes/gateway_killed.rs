//! kill -9 of the gateway in the middle of a paid stream, and its restart: the books verify, nothing acknowledged is
//! lost, no one is paid twice, the provider is paid for what it delivered, and keys are charged what their jobs cost, no more
//! and no less.

use crate::common::{MINTED, WAIT, binary, command, ready_client};
use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde_json::{Value, json};
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

/// How often a gateway dies right behind the last byte of answers; `SPILLWAY_KILLS` asks for more.
const KILLS: u32 = 4;
/// Answers that end at about the same moment before each kill.
const AT_ONCE: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_charged_exactly_however_soon_its_gateway_dies() -> Result<()> {
    let _alone = crate::common::alone().await;
    let kills = std::env::var("SPILLWAY_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    let folder = tempfile::tempdir()?;
    let topology =
        Topology { plans: vec![Plan::books(), Plan::new(GATEWAY), Plan::new("near").with_guide(4).provides(1.0, 4.0)] };
    let mut network = Testnet::start(binary(), &folder.path().canonicalize()?, &topology).await?;
    let (_, key) = ready_client(&network, GATEWAY, GUIDE).await?;
    let mut charged = 0;
    for kill in 0..kills {
        let base_url = network.node(GATEWAY)?.ready().base_url.clone().context("no base URL")?;
        let api = OpenAi::new(&base_url, &key)?;
        let body = |number: usize| json!({"model": GUIDE, "messages": [{"role": "user", "content": format!("{QUESTION} {kill} {number}")}], "max_tokens": 8});
        // The first one waits until the market is known and a session is open; it is charged like the others.
        let first = until("an answer after a start", WAIT, async || Ok(Some(paid(&api, &body(0)).await?))).await?;
        charged += first;
        // Each kill comes behind another number of answers; those under way may be charged for what they may have cost.
        let wanted = kill as usize % (AT_ONCE + 1);
        let bodies: Vec<Value> = (1..=AT_ONCE).filter(|_| wanted > 0).map(body).collect();
        let mut asked: FuturesUnordered<_> = bodies.iter().map(|body| paid(&api, body)).collect();
        for _ in 0..wanted {
            charged += asked.next().await.context("an answer")??;
        }
        network.kill(GATEWAY).await?;
        let mut lost = 0;
        while let Some(answer) = asked.next().await {
            match answer {
                // Its last byte had left before the kill.
                Ok(cost) => charged += cost,
                Err(_) => lost += 1,
            }
        }
        network.restart(GATEWAY).await?;
        let (spent, reserved) = until("the keys", WAIT, async || Ok(Some(spent(&network).await?))).await?;
        assert_eq!(reserved, 0, "kill {kill}");
        if lost == 0 {
            assert_eq!(spent, charged, "kill {kill}: nothing was under way");
        } else {
            assert!(spent >= charged, "kill {kill}: {spent} of {charged}");
        }
        charged = spent;
    }
    // And each of those that were under way is paid to its provider at most once.
    let statement = quiet(&network, 1).await?;
    statement.check()?;
    assert!(statement.gross <= charged, "{} was settled and {charged} charged", statement.gross);
    network.stop().await
}

/// What a whole answer cost, in micro-credits, by its own word.
async fn paid(api: &OpenAi, body: &Value) -> Result<u64> {
    let response = api.post(body).await?;
    ensure!(response.status() == 200, "{}", response.status());
    let cost = response.headers().get("x-spillway-cost").context("no cost")?.to_str()?.replacen('.', "", 1);
    let whole: Value = serde_json::from_str(&response.text().await?)?;
    ensure!(whole.pointer("/usage/cost").is_some(), "{whole}");
    Ok(cost.parse()?)
}
