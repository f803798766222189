//! The steps that use the network: discover, pay in, ask, saturate, submit from outside.
//! Invariant: a step that returns has seen what it says; one that cannot fails with what was seen instead.

use super::run::{LEDGER_WAIT, Run, money, quoted};
use crate::client::{Answer, OpenAi};
use crate::topology::{BOOKS, GATEWAY, GUIDE};
use crate::wait::until;
use anyhow::{Context, Result, bail};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde_json::{Value, json};
use spillway_ledger::Credits;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long the market may take to show both strangers.
const DISCOVERY_WAIT: Duration = Duration::from_secs(30);
/// The play money.
const MINTED: Credits = Credits::new(20_000_000);
/// The key's budget, in micro-credits.
const BUDGET: Credits = Credits::new(10_000_000);
/// Asked first, and again when its provider is killed: the answers must be the same.
pub(super) const QUESTION: &str = "what does this software do?";
/// Asked at once: one for the own slot, one for each of the strangers' slots.
const BURST: [&str; 9] = [
    "what happens when my server is full?",
    "how is the money split?",
    "how do i earn?",
    "how do i run a node?",
    "which api does it speak?",
    "how does it choose a provider?",
    "how are payments made?",
    "how do i prove a job?",
    "is my prompt private?",
];
/// Asked through the edge.
const EDGE_QUESTION: &str = "how do i check the ledger?";

impl Run {
    pub(super) async fn discover(&mut self) -> Result<()> {
        self.voice.step("Discover: the gateway finds both strangers, knowing one address");
        self.voice.wait("waiting for signed offers");
        let begun = Instant::now();
        let admin = self.network()?.admin(GATEWAY)?;
        let strangers = self.strangers()?;
        let offers = until("offers of both strangers", DISCOVERY_WAIT, async || {
            let market = admin.get("/admin/market").await?;
            let offers = market.get("offers").and_then(Value::as_array).cloned().unwrap_or_default();
            let from = |key: &String| offers.iter().any(|offer| offer.get("node").and_then(Value::as_str) == Some(key));
            Ok(strangers.keys().all(from).then_some(offers))
        })
        .await?;
        for offer in &offers {
            let text = |field: &str| offer.get(field).and_then(Value::as_str).unwrap_or("");
            let price = |field: &str| {
                offer.pointer(&format!("/price/{field}")).and_then(Value::as_u64).map_or_else(String::new, money)
            };
            self.voice.say(&format!(
                "{:8} offers {}: {} in, {} out per million bytes, {} slots",
                self.name(text("node")),
                text("model"),
                price("input"),
                price("output"),
                offer.get("slots").and_then(Value::as_u64).unwrap_or(0)
            ));
        }
        self.voice.say(&format!("found after {:.1} s", begun.elapsed().as_secs_f64()));
        Ok(())
    }

    /// The nodes that serve strangers: their keys and names.
    fn strangers(&self) -> Result<BTreeMap<String, String>> {
        Ok(self
            .names
            .iter()
            .filter(|(_, name)| name.as_str() != BOOKS && name.as_str() != GATEWAY)
            .map(|(key, name)| (key.clone(), name.clone()))
            .collect())
    }

    pub(super) async fn money_and_key(&mut self) -> Result<()> {
        self.voice.step("Money: the issuer mints play credits, the gateway makes an API key with a budget");
        self.voice.wait("minting");
        let books = self.network()?.books()?;
        let admin = self.network()?.admin(GATEWAY)?;
        let to = admin.ready().account.to_string();
        books
            .post("/admin/ledger/mint", &json!({"to": to, "amount_micro": MINTED.micro(), "reference": "demo-1"}))
            .await
            .context("minting")?;
        let account = until("the minted credits in the gateway's copy of the books", LEDGER_WAIT, async || {
            let account = admin.get("/admin/ledger/account").await?;
            let balance = account.get("balance_micro").and_then(Value::as_u64);
            Ok((balance >= Some(MINTED.micro())).then_some(account))
        })
        .await?;
        let made = admin
            .post("/admin/keys", &json!({"name": "demo", "budget_micro": BUDGET.micro()}))
            .await
            .context("a key")?;
        let key = made.get("secret").and_then(Value::as_str).context("the new key has no secret")?.to_owned();
        self.voice.say(&format!(
            "the gateway has {}, its key may spend {}",
            money(account.get("balance_micro").and_then(Value::as_u64).unwrap_or(0)),
            BUDGET
        ));
        self.api = Some((OpenAi::new(&self.base_url()?, &key)?, key));
        Ok(())
    }

    pub(super) async fn first_answer(&mut self) -> Result<String> {
        self.voice.step("Ask: nothing else runs, so own hardware answers");
        self.voice.wait("answering");
        self.voice.say(&format!("> {QUESTION}"));
        let api = self.api()?.clone();
        let answer = self.whole(api.ask(GUIDE, QUESTION).await, None).await?;
        if answer.text.trim().is_empty() {
            bail!("the answer is empty");
        }
        self.voice.say(answer.text.trim());
        let Answer { placement, .. } = &answer;
        self.voice.say(&format!("route {}, reason {}", placement.route, placement.reason));
        if placement.route != "own" {
            bail!("it went to the network although nothing else ran");
        }
        Ok(answer.text)
    }

    pub(super) async fn burst(&mut self) -> Result<()> {
        self.voice.step(&format!("Burst: {} jobs at once saturate the one own slot; the rest spills", BURST.len()));
        let api = self.api()?.clone();
        let mut running: FuturesUnordered<_> = BURST
            .iter()
            .map(|question| {
                let api = api.clone();
                async move {
                    let begun = Instant::now();
                    let answer = match api.ask(GUIDE, question).await {
                        Ok(stream) => stream.finish(String::new()).await,
                        Err(error) => Err(error),
                    };
                    (*question, answer, begun.elapsed())
                }
            })
            .collect();
        let mut failures = Vec::new();
        while let Some((question, answer, took)) = running.next().await {
            self.voice.wait(&format!("{} of {} still run", running.len(), BURST.len()));
            match self.count(answer, None).await {
                Ok((answer, told)) => {
                    let provider = match &answer.placement.provider {
                        Some(provider) if answer.placement.route != "own" => self.name(provider),
                        Some(_) | None => "itself",
                    };
                    self.voice.say(&format!(
                        "{:8} {:7} {:15} {:>12} {:4.1} s  {}",
                        provider,
                        answer.placement.route,
                        answer.placement.reason,
                        money(told.cost),
                        took.as_secs_f64(),
                        quoted(&answer.text)
                    ));
                }
                Err(error) => failures.push(format!("\"{question}\": {error:#}")),
            }
        }
        if failures.is_empty() { Ok(()) } else { bail!(failures.join("; ")) }
    }

    pub(super) async fn edge_job(&mut self) -> Result<()> {
        self.voice.step("Edge: a program that is no node submits a job over QUIC");
        self.voice.wait("answering");
        let edge = self.edge()?;
        let key = self.api_key().context("there is no API key yet")?.to_owned();
        self.voice.say(&format!("$ spillway submit --via {edge} --model {GUIDE} '{EDGE_QUESTION}'"));
        let said =
            self.command(&["submit", "--json", "--via", &edge, "--model", GUIDE, EDGE_QUESTION], Some(&key)).await;
        let said: Value = match said {
            Ok(text) => serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?,
            Err(error) => {
                self.tally.add_failed();
                return Err(error);
            }
        };
        let text = said.get("text").and_then(Value::as_str).unwrap_or("").trim().to_owned();
        let job = said.get("job").and_then(Value::as_str).context("no job id came back")?;
        if text.is_empty() {
            self.tally.add_failed();
            bail!("the answer is empty");
        }
        let told = self.told(job).await?;
        self.tally.add(&told, None);
        self.voice.say(&text);
        let reason = told.legs.first().map_or("", |leg| leg.reason.as_str());
        self.voice.say(&format!("reason {reason}, cost {}", money(told.cost)));
        Ok(())
    }
}
