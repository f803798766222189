//! The steps that prove it: a provider dies in mid-stream, the ledger pays and splits, the verifier replays.
//! Invariant: what is shown of money comes from the books' own blocks, replayed here.

use super::run::{Run, money, quoted};
use super::steps::QUESTION;
use super::{Settled, Summary};
use crate::statement::Statement;
use crate::topology::{BOOKS, GATEWAY};
use crate::wait::until;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use spillway_ledger::CoSigned;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long settlements may take after the last job.
const SETTLE_WAIT: Duration = Duration::from_secs(30);
/// How long the books must stay the same before the last settlement is taken to be in.
const QUIET: Duration = Duration::from_millis(800);
/// How much of an answer arrives before its provider is killed, in bytes.
const KILL_AFTER_BYTES: usize = 24;
/// Keeps the own slot busy while a stranger is killed.
const BUSY_QUESTION: &str = "where is the money recorded?";

impl Run {
    pub(super) async fn kill_in_mid_stream(&mut self, expected: &str) -> Result<()> {
        self.voice.step("Fail: a stranger is killed (kill -9) in the middle of an answer");
        self.voice.wait("answering");
        // The own slot is kept busy, so that the next job leaves.
        let mut busy = self.begin(BUSY_QUESTION).await?;
        let begun = busy.text().await?.context("the job that keeps the own slot busy had no text")?;
        let busy = tokio::spawn(busy.finish(begun));

        let mut stream = self.begin(QUESTION).await?;
        let victim = match &stream.placement.provider {
            Some(provider) if stream.placement.route == "network" => provider.clone(),
            Some(_) | None => bail!("the job did not go to the network ({})", stream.placement.reason),
        };
        let name = self.name(&victim).to_owned();
        let mut text = String::new();
        while text.len() < KILL_AFTER_BYTES {
            text.push_str(&stream.text().await?.context("the answer ended before its provider could be killed")?);
        }
        self.network.as_mut().context("the network was stopped")?.kill(&name).await?;
        let killed = Instant::now();
        self.voice.say(&format!("> {QUESTION}"));
        self.voice.say(&format!("{name} had delivered {} when it was killed", quoted(&text)));
        let mut longest = Duration::ZERO;
        let mut last = killed;
        let rest = loop {
            match stream.text().await {
                Ok(Some(more)) => {
                    longest = longest.max(last.elapsed());
                    last = Instant::now();
                    text.push_str(&more);
                }
                Ok(None) => break stream.finish_now(text),
                Err(error) => break Err(error),
            }
        };
        let (answer, told) = self.count(rest, Some(&victim)).await?;
        let busy = busy.await.context("the job that keeps the own slot busy")?;
        self.count(busy, Some(&victim)).await.context("the job that keeps the own slot busy")?;

        let path: Vec<String> = told
            .legs
            .iter()
            .map(|leg| match &leg.provider {
                Some(provider) => format!("{} ({}, {} bytes)", self.name(provider), leg.reason, leg.output),
                None => format!("own hardware ({}, {} bytes)", leg.reason, leg.output),
            })
            .collect();
        self.voice.say(&format!("path: {}; longest pause {:.1} s", path.join(", then "), longest.as_secs_f64()));
        self.voice.say(answer.text.trim());
        if answer.text != expected {
            bail!("the text differs from the uninterrupted answer: {:?} is not {:?}", answer.text, expected);
        }
        if told.legs.len() < 2 {
            bail!("the job never moved: it has one leg");
        }
        self.voice.say("word for word the uninterrupted answer: nothing missing, nothing twice");
        self.voice.wait(&format!("starting {name} again"));
        self.network.as_mut().context("the network was stopped")?.restart(&name).await?;
        self.voice.say(&format!("{name} runs again"));
        Ok(())
    }

    pub(super) async fn settled(&mut self) -> Result<Settled> {
        self.voice.step("Settle: the strangers redeem their last vouchers, the ledger splits each payment");
        self.voice.wait("waiting for the settlements");
        let books = self.network()?.books()?;
        let mut accounts = BTreeMap::new();
        for name in self.network()?.names() {
            let ready = self.network()?.node(name)?.ready();
            accounts.insert(ready.node.to_string(), ready.account);
        }
        let mut last = Statement::default();
        let mut since = Instant::now();
        let statement = until("settlements of all that was served", SETTLE_WAIT, async || {
            let now = Statement::replay(&self.genesis, &books.blocks().await?)?;
            if now != last {
                last = now;
                since = Instant::now();
            }
            for (provider, earned) in &self.tally.earned {
                let paid: u64 = last
                    .sessions
                    .values()
                    .filter(|line| Some(&line.provider) == accounts.get(provider))
                    .map(|line| line.gross)
                    .sum();
                if paid < *earned || paid == 0 {
                    bail!("{} earned {} and was paid {}", self.name(provider), money(*earned), money(paid));
                }
            }
            Ok((since.elapsed() >= QUIET).then(|| last.clone()))
        })
        .await?;
        statement.check()?;
        // Sessions that were opened ahead and never used have nothing to show.
        for (session, line) in statement.sessions.iter().filter(|(_, line)| line.settlements > 0) {
            let provider = accounts.iter().find(|(_, account)| **account == line.provider);
            self.voice.say(&format!(
                "session {}…  {:8} voucher no. {} redeemed, {} settled in {}",
                session.to_string().get(..8).unwrap_or_default(),
                provider.map_or("?", |(key, _)| self.name(key)),
                line.voucher,
                money(line.gross),
                if line.settlements == 1 { "one entry".into() } else { format!("{} entries", line.settlements) }
            ));
        }
        self.receipts().await?;
        let share = |part: u64| if statement.gross == 0 { 0.0 } else { 100.0 * part as f64 / statement.gross as f64 };
        let line = |what: &str, part: u64| format!("  {what:22} {:>12}  {:5.2} %", money(part), share(part));
        self.voice.say(&format!("paid {} in all:", money(statement.gross)));
        self.voice.say(&line("who did the work", statement.provider));
        self.voice.say(&line("who brought the job", statement.gateway));
        self.voice.say(&line("validators, auditors", statement.validators));
        self.voice.say(&line("treasury", statement.treasury));
        Ok(Settled {
            gross: statement.gross,
            provider: statement.provider,
            network: statement.gateway + statement.validators + statement.treasury,
        })
    }

    /// Checks the signatures of every receipt that the gateway holds.
    async fn receipts(&self) -> Result<()> {
        let admin = self.network()?.admin(GATEWAY)?;
        let listed = admin.get("/admin/ledger/receipts").await?;
        let listed = listed.get("receipts").and_then(Value::as_array).context("no `receipts` in the answer")?;
        let mut held = 0_usize;
        for receipt in listed {
            let bytes = receipt.get("bytes").and_then(Value::as_str).context("a receipt without `bytes`")?;
            if receipt.get("both").and_then(Value::as_bool) == Some(true) {
                let bytes = hex::decode(bytes).context("a receipt's bytes")?;
                CoSigned::from_bytes(&bytes).context("a receipt's signatures")?;
                held += 1;
            }
        }
        if held == 0 {
            bail!("the gateway holds no receipt that both sides signed");
        }
        self.voice.say(&format!("{held} receipts signed by both sides"));
        Ok(())
    }

    /// Runs `spillway ledger verify` on the books: over the node while it runs, on its files when it does not.
    pub(super) async fn verify(&mut self, summary: &mut Summary) -> Result<()> {
        let state = if self.network.is_some() { "which still run" } else { "as they lie on the disk" };
        self.voice.step(&format!("Verify: replay the books, {state}, from the first block"));
        self.voice.wait("replaying");
        let folder = self.folder.join(BOOKS);
        let folder = folder.to_str().context("the folder's name is not UTF-8")?;
        let said = self.command(&["ledger", "verify", "--json", "--folder", folder], None).await?;
        let said: Value = serde_json::from_str(&said).with_context(|| format!("not JSON: {said}"))?;
        let number = |field: &str| said.get(field).and_then(Value::as_u64);
        self.voice.say(&format!("$ spillway ledger verify --folder {folder}"));
        self.voice.say(&format!(
            "{} blocks, {} entries, {} sessions: every signature, hash and sum holds",
            number("blocks").unwrap_or(0),
            number("entries").unwrap_or(0),
            number("sessions").unwrap_or(0)
        ));
        if said.get("verified").and_then(Value::as_bool) != Some(true) {
            bail!("the verifier did not confirm the books: {said}");
        }
        // A last settlement may have come in after the statement was read; it is never less.
        let gross = number("settled_gross").context("no `settled_gross` in the verifier's answer")?;
        if gross < summary.settled.gross {
            bail!("the verifier counts {gross} micro-credits settled, the statement {}", summary.settled.gross);
        }
        summary.ledger_verified = true;
        Ok(())
    }
}
