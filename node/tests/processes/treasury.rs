//! From work to money: a node earns, redeems, the issuer exports and burns; and one that wants cash asks for it by itself.
//! Every step is a command as people run it, and the books verify after each history.

use crate::common::{WAIT, binary, command};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use spillway_ledger::{Batch, CertifiedBlock, Store, Table};
use spillway_protocol::Earn;
use spillway_testnet::topology::{BOOKS, GUIDE};
use spillway_testnet::{OpenAi, Plan, Testnet, Topology, until};
use std::path::Path;

const CONSUMER: &str = "consumer";
const PROVIDER: &str = "provider";
const QUESTION: &str = "what does this software do?";
/// As dear as the market takes: an answer of the guide model earns about a credit.
const PRICE_OUTPUT: f64 = 10_000.0;
/// What the consumer gets, in micro-credits.
const MINTED: u64 = 2_000_000_000;
/// The payee's account.
const IBAN: &str = "NL91ABNA0417164300";
/// The issuer's.
const OTHER_IBAN: &str = "DE89370400440532013000";

/// A network in which the provider earns much from little text.
fn topology(provider: Plan) -> Topology {
    let mut consumer = Plan::new(CONSUMER);
    consumer.config.spend.price_output_max = PRICE_OUTPUT;
    let mut provider = provider.with_guide(4).provides(1.0, PRICE_OUTPUT);
    // The session never rests while `earn` asks: it is claimed all the same, within a few times this.
    provider.config.provide.settle_after_s = 1.0;
    Topology { plans: vec![Plan::books(), consumer, provider] }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the folder's name is not UTF-8")
}

/// Runs `spillway ledger … --json` and gives its exit code and what it printed.
async fn ledger(arguments: &[&str]) -> Result<(Option<i32>, Value)> {
    let (code, said) = command(&[&["ledger"], arguments, &["--json"]].concat()).await?;
    Ok((code, serde_json::from_str(&said).unwrap_or(Value::Null)))
}

/// As [`ledger`], for a command that must succeed.
async fn done(arguments: &[&str]) -> Result<Value> {
    let (code, said) = ledger(arguments).await?;
    ensure!(code == Some(0), "{arguments:?} ended with {code:?}: {said}");
    Ok(said)
}

/// As [`ledger`], for a command that must fail.
async fn fails(arguments: &[&str]) -> Result<()> {
    let (code, said) = ledger(arguments).await?;
    ensure!(code == Some(1), "{arguments:?} ended with {code:?}: {said}");
    Ok(())
}

/// Has the consumer ask until the provider has at least `micro`; gives the ids of the jobs.
async fn earn(network: &Testnet, micro: u64) -> Result<Vec<String>> {
    let admin = network.admin(CONSUMER)?;
    let to = admin.ready().account.to_string();
    let mint = json!({"to": to, "amount_micro": MINTED, "reference": "bank transfer 1"});
    network.books()?.post("/admin/ledger/mint", &mint).await.context("minting")?;
    until("an offer, and the money for it", WAIT, async || {
        let offers = admin.get("/admin/market").await?;
        let offered = offers.pointer("/offers/0/model").and_then(Value::as_str) == Some(GUIDE);
        let account = admin.get("/admin/ledger/account").await?;
        Ok((offered && account["balance_micro"] == json!(MINTED)).then_some(()))
    })
    .await?;
    let key = admin.post("/admin/keys", &json!({"name": "test"})).await?;
    let base_url = admin.ready().base_url.clone().context("no base URL")?;
    let api = OpenAi::new(&base_url, key["secret"].as_str().context("no secret")?)?;
    let provider = network.admin(PROVIDER)?;
    let mut jobs = Vec::new();
    until("earnings", WAIT, async || {
        let account = provider.get("/admin/ledger/account").await?;
        let part = |field: &str| account[field].as_u64().with_context(|| format!("no {field}"));
        if part("balance_micro")? + part("payouts_micro")? >= micro {
            return Ok(Some(()));
        }
        let body = json!({
            "model": GUIDE, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 64,
            "stream": true,
        });
        let stream = api.stream(&body).await?;
        jobs.push(stream.finish(String::new()).await?.placement.job);
        Ok(None)
    })
    .await?;
    Ok(jobs)
}

async fn balance(folder: &str) -> Result<u64> {
    done(&["balance", "--folder", folder]).await?["balance_micro"].as_u64().context("no balance")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_earned_is_redeemed_exported_and_burned() -> Result<()> {
    let _alone = crate::common::alone().await;
    let folder = tempfile::tempdir()?;
    let at = folder.path().canonicalize()?;
    let network = Testnet::start(binary(), &at, &topology(Plan::new(PROVIDER))).await?;
    let jobs = earn(&network, 4_000_000).await?;
    let (issuer, provider) = (at.join(BOOKS), at.join(PROVIDER));
    let (issuer, provider, consumer) = (text(&issuer)?, text(&provider)?, at.join(CONSUMER));
    let consumer = text(&consumer)?;
    let file = |name: &str| at.join(name).to_str().expect("checked above").to_owned();

    // The payee's file stays with the payee and the issuer; the ledger has its digest.
    std::fs::create_dir(at.join("payees"))?;
    let payee = file("payees/ada.json");
    let new = ["payee", "new", "--name", "Ada Müller", "--iban", IBAN, "--country", "NL", "--currency", "EUR"];
    let made = done(&[&new[..], &["--out", &payee]].concat()).await?;
    assert_eq!(done(&["payee", "check", &payee]).await?["payee"], made["payee"]);

    // Half a cent is refused before anything is locked; so is less than the network pays out, and more than there is.
    for amount in ["1.235", "0.5", "1000000"] {
        fails(&["redeem", amount, "--payee", &payee, "--folder", provider]).await?;
    }
    until("the last settlement", WAIT, async || {
        let receipts = done(&["receipt", jobs.last().context("no job")?, "--folder", provider]).await?;
        Ok(receipts.pointer("/receipts/0/settled/height").map(|_| ()))
    })
    .await?;
    let before = balance(provider).await?;
    let redeem = ["redeem", "1.23", "--payee", &payee, "--once", "first", "--folder", provider];
    let first = done(&redeem).await?;
    assert_eq!((&first["amount"], &first["currency"]), (&json!("1.23"), &json!("EUR")));
    assert_eq!(done(&redeem).await?["payout"], first["payout"], "a retry is the same request");
    fails(&["redeem", "2", "--payee", &payee, "--once", "first", "--folder", provider]).await?;
    let second = done(&["redeem", "1", "--payee", &payee, "--folder", provider]).await?;
    assert_eq!(balance(provider).await?, before - 2_230_000);
    let first = first["payout"].as_str().context("no payout")?;
    let second = second["payout"].as_str().context("no payout")?;

    // The treasurer's part.
    let list = done(&["payouts", "list", "--folder", issuer]).await?;
    assert_eq!(list["payouts"].as_array().map(Vec::len), Some(2), "{list}");
    assert!(list["payouts"].as_array().context("no list")?.iter().all(|payout| payout["payee"] == made["payee"]));
    let debtor = json!({"name": "Spillway", "iban": OTHER_IBAN, "country": "DE", "currency": "EUR", "rate": "1"});
    std::fs::write(at.join("debtor.json"), debtor.to_string())?;
    let debtor = file("debtor.json");
    let export = |format: &'static str, out: &str, payees: &str| {
        [
            "payouts", "export", "--format", format, "--debtor", &debtor, "--payees", payees, "--out", out, "--folder",
            issuer,
        ]
        .map(str::to_owned)
    };
    let run = async |arguments: [String; 12]| ledger(&arguments.each_ref().map(String::as_str)).await;
    let out = file("pay.xml");
    // A document that says another account is not the one that was asked for: it pays nobody.
    let forged = std::fs::read_to_string(&payee)?.replace(IBAN, OTHER_IBAN);
    std::fs::write(at.join("forged.json"), forged)?;
    let (code, _) = run(export("pain001", &out, &file("forged.json"))).await?;
    assert_eq!((code, at.join("pay.xml").exists()), (Some(1), false));
    std::fs::copy(at.join("forged.json"), at.join("payees/forged.json"))?;
    let (code, said) = run(export("pain001", &out, &file("payees"))).await?;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(
        (&said["total"], &said["credits_micro"], &said["left"]),
        (&json!("2.23"), &json!(2_230_000), &json!([]))
    );
    assert_eq!(said["refused"].as_array().map(Vec::len), Some(1), "{said}");
    let xml = std::fs::read_to_string(&out)?;
    assert!(xml.contains("<InstdAmt Ccy=\"EUR\">1.23</InstdAmt>") && xml.contains(&first[..35]), "{xml}");
    let counted = |text: &str| xml.matches(text).count();
    assert_eq!((counted(IBAN), counted(OTHER_IBAN), counted("<CtrlSum>2.23</CtrlSum>")), (2, 1, 2), "{xml}");
    let (code, _) = run(export("pain001", &out, &payee)).await?;
    assert_eq!(code, Some(1), "a file of payments is never replaced");
    let (code, _) = run(export("csv", &file("pay.csv"), &payee)).await?;
    assert_eq!((code, std::fs::read_to_string(at.join("pay.csv"))?.lines().count()), (Some(0), 3));

    // Only the issuer says that it paid, once, under the bank's reference; what it does not pay goes back.
    fails(&["payouts", "burn", first, "--reference", "BANK-1", "--folder", provider]).await?;
    done(&["payouts", "burn", &first[..35], "--reference", "BANK-1", "--folder", issuer]).await?;
    fails(&["payouts", "burn", first, "--reference", "BANK-2", "--folder", issuer]).await?;
    fails(&["payouts", "burn", second, "--reference", "BANK-1", "--folder", issuer]).await?;
    done(&["payouts", "reject", second, "--reason", "returned", "--folder", issuer]).await?;
    fails(&["payouts", "reject", second, "--reason", "returned", "--folder", issuer]).await?;
    let list = done(&["payouts", "list", "--folder", issuer]).await?;
    assert_eq!(list["payouts"], json!([]));
    until("the change at the provider", WAIT, async || {
        Ok((balance(provider).await? == before - 1_230_000).then_some(()))
    })
    .await?;
    let log = done(&["log", "--kind", "burn", "--limit", "5", "--folder", provider]).await?;
    assert_eq!((log["entries"].as_array().map(Vec::len), &log["entries"][0]["reference"]), (Some(1), &json!("BANK-1")));

    // Stakes and gifts.
    done(&["bond", "0.5", "--folder", provider]).await?;
    fails(&["unbond", "0.6", "--folder", provider]).await?;
    done(&["unbond", "0.2", "--folder", provider]).await?;
    let account = done(&["balance", "--folder", provider]).await?;
    assert_eq!((&account["bond_micro"], &account["unbonding_micro"]), (&json!(300_000), &json!(200_000)));
    let to = network.node(CONSUMER)?.ready().account.to_string();
    done(&["transfer", "0.000001", "--to", &to, "--folder", provider]).await?;

    // Proofs, each a file that stands alone.
    let network_id = done(&["verify", "--folder", issuer]).await?["network"].as_str().context("no network")?.to_owned();
    let told = done(&["proof", "--out", &file("account.proof"), "--folder", provider]).await?;
    let proven = done(&["verify", &file("account.proof"), "--network", &network_id]).await?;
    assert_eq!((&proven["height"], &proven["account"]["bond_micro"]), (&told["height"], &json!(300_000)));
    for (name, holder) in [("at-provider.proof", provider), ("at-consumer.proof", consumer)] {
        for (index, job) in jobs.iter().enumerate() {
            let out = file(&format!("{index}-{name}"));
            until("the settlement in this copy", WAIT, async || {
                Ok((ledger(&["proof", "--receipt", job, "--out", &out, "--folder", holder]).await?.0 == Some(0))
                    .then_some(()))
            })
            .await?;
            let proven = done(&["verify", &out]).await?;
            assert_eq!((&proven["receipt"]["job"], &proven["network"]), (&json!(job), &json!(network_id)), "{proven}");
        }
    }
    let receipt = done(&["receipt", &jobs[0], "--folder", provider]).await?;
    assert!(receipt.pointer("/receipts/0/settled/path").is_some_and(Value::is_array), "{receipt}");
    let mut bytes = std::fs::read(at.join("account.proof"))?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(at.join("broken.proof"), bytes)?;
    let (code, said) = ledger(&["verify", &file("broken.proof")]).await?;
    assert!(code == Some(1) && said["verified"] == false && said["rule"].is_string(), "{said}");
    fails(&["verify", &file("account.proof"), "--network", &"07".repeat(32)]).await?;

    // The auditor's part: a copy of the folder, offline, read-only.
    let account = network.node(PROVIDER)?.ready().account.to_string();
    until("the same height everywhere", WAIT, async || {
        let height =
            async |folder: &str| Ok::<_, anyhow::Error>(done(&["verify", "--folder", folder]).await?["tip"].clone());
        Ok((height(issuer).await? == height(provider).await?).then_some(()))
    })
    .await?;
    let live = done(&["balance", &account, "--folder", issuer]).await?;
    let all = done(&["log", "--folder", issuer]).await?;
    network.stop().await?;
    let copy = at.join("copy");
    std::fs::create_dir(&copy)?;
    for name in ["genesis.json", "ledger.redb"] {
        std::fs::copy(at.join(PROVIDER).join(name), copy.join(name))?;
    }
    let copy = text(&copy)?;
    let verified = done(&["verify", copy]).await?;
    assert_eq!((&verified["minted"], &verified["burned"]), (&json!(MINTED), &json!(1_230_000)));
    assert_eq!(done(&["balance", &account, "--folder", copy]).await?, live);
    assert_eq!(done(&["log", "--folder", copy]).await?, all);
    let newest = done(&["log", "--account", &account, "--limit", "2", "--folder", copy]).await?;
    assert_eq!((newest["entries"][1]["action"].as_str(), newest["more"].as_bool()), (Some("transfer"), Some(true)));
    fails(&["balance", "--folder", copy]).await?;
    // The pools are parties to every settlement.
    let settled = done(&["log", "--kind", "settle", "--folder", copy]).await?["entries"].clone();
    let treasury = settled[0]["treasury"].as_str().context("no treasury")?;
    let paid = done(&["log", "--account", treasury, "--folder", copy]).await?["entries"].clone();
    assert!(settled.as_array().is_some_and(|settled| !settled.is_empty()) && paid == settled, "{paid}");

    // One bit of one entry in the copy, and the block, the entry and the rule are named.
    let (height, entry) = (newest["entries"][0]["height"].clone(), newest["entries"][0]["entry"].clone());
    alter(Path::new(copy), height.as_u64().context("no height")?, entry.as_u64().context("no entry")?)?;
    let (code, said) = ledger(&["verify", copy]).await?;
    assert_eq!((code, &said["block"], &said["entry"]), (Some(1), &height, &entry), "{said}");
    assert!(said["rule"].as_str().is_some_and(|rule| !rule.is_empty()), "{said}");
    fails(&["log", "--folder", copy]).await?;
    Ok(())
}

/// Changes the last bit of an entry in a folder that no node has open.
fn alter(folder: &Path, height: u64, entry: u64) -> Result<()> {
    let store = Store::open(folder.join("ledger.redb"))?;
    let bytes = store.get(Table::Blocks, &height.to_be_bytes())?.context("no such block")?;
    let mut block = CertifiedBlock::from_bytes(&bytes)?;
    let document = &mut block.block.entries[usize::try_from(entry)?].document;
    *document.last_mut().context("an empty entry")? ^= 1;
    let mut batch = Batch::new();
    batch.put(Table::Blocks, height.to_be_bytes(), block.to_bytes());
    Ok(store.commit(batch)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn earnings_above_the_threshold_become_one_payout_across_a_kill() -> Result<()> {
    let _alone = crate::common::alone().await;
    let folder = tempfile::tempdir()?;
    let at = folder.path().canonicalize()?;
    let payee = at.join("payee.json");
    let new = ["payee", "new", "--name", "Ada", "--iban", IBAN, "--country", "NL", "--currency", "EUR", "--out"];
    let payee = done(&[&new[..], &[text(&payee)?]].concat()).await?["payee"].clone();
    let mut provider = Plan::new(PROVIDER);
    provider.config.ledger.earn = Earn::Cash;
    provider.config.ledger.cash_threshold = "0.5".into();
    provider.config.ledger.payee = "../payee.json".into();
    let mut network = Testnet::start(binary(), &at, &topology(provider)).await?;
    earn(&network, 2_000_000).await?;

    let waiting = async |network: &Testnet| -> Result<Vec<Value>> {
        let body = network.books()?.get("/admin/ledger/payouts").await?;
        body["payouts"].as_array().cloned().context("no payouts")
    };
    let first = until("a payout", WAIT, async || Ok(waiting(&network).await?.first().cloned())).await?;
    let amount = first["amount_micro"].as_u64().context("no amount")?;
    assert!(amount >= 1_000_000 && amount % 10_000 == 0, "{first}");
    assert_eq!((&first["payee"], &first["account"]), (&payee, &json!(network.node(PROVIDER)?.ready().account)));

    // Killed and started again, it asks for nothing more while one waits; when that is paid, it asks again.
    network.kill(PROVIDER).await?;
    network.restart(PROVIDER).await?;
    let provider = network.admin(PROVIDER)?;
    let folder = at.join(PROVIDER);
    let stays = async |paid: u64| {
        let account = until("what stays", WAIT, async || {
            let account = provider.get("/admin/ledger/account").await?;
            Ok((account["payouts_micro"] == json!(paid)).then_some(account))
        });
        account.await?["balance_micro"].as_u64().context("no balance")
    };
    assert!(stays(amount).await? >= 500_000);
    let gift = json!({"action": "transfer", "to": provider.ready().account, "amount_micro": 3_000_000});
    network.admin(CONSUMER)?.post("/admin/ledger/entries", &gift).await?;
    assert_eq!(waiting(&network).await?, std::slice::from_ref(&first), "one at a time");
    let burn = json!({"action": "burn", "payout": first["payout"], "reference": "BANK-1"});
    network.books()?.post("/admin/ledger/entries", &burn).await?;
    let second = until("the next payout", WAIT, async || Ok(waiting(&network).await?.first().cloned())).await?;
    assert_ne!(second["payout"], first["payout"]);
    let paid = second["amount_micro"].as_u64().context("no amount")?;
    // What is left is the threshold and less than a cent, or more that was earned since.
    assert!(paid >= 1_000_000 && stays(paid).await? >= 500_000);
    let books = at.join(BOOKS);
    done(&["verify", "--folder", text(&books)?]).await?;
    network.stop().await?;
    done(&["verify", "--folder", text(&folder)?]).await?;
    Ok(())
}
