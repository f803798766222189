//! A committee of real nodes keeps the books: it goes on without any one of them, a restarted one catches up, a follower
//! turns to another when the one it asked is gone, and all copies are the same.

use crate::common::{WAIT, alone, binary, command};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use spillway_testnet::{Plan, Testnet, Topology, until};

const FOLLOWER: &str = "follower";
const AMOUNT: u64 = 1_000;

/// Mints through `by`, and waits until the follower has it.
async fn mint(network: &Testnet, number: u64) -> Result<()> {
    let follower = network.admin(FOLLOWER)?;
    let to = follower.ready().account.to_string();
    let mint = json!({"to": to, "amount_micro": AMOUNT, "reference": format!("deposit {number}")});
    network.books()?.post("/admin/ledger/mint", &mint).await.context("minting")?;
    until("the minted credits", WAIT, async || {
        let account = follower.get("/admin/ledger/account").await?;
        Ok((account["balance_micro"] == json!(number * AMOUNT)).then_some(()))
    })
    .await
}

async fn height(network: &Testnet, name: &str) -> Result<u64> {
    let blocks = network.admin(name)?.blocks().await?;
    Ok(blocks.last().map_or(0, |block| block.block.header.height))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_committee_of_nodes_survives_the_loss_of_each() -> Result<()> {
    let _alone = alone().await;
    let folder = tempfile::tempdir()?;
    let topology = Topology { plans: vec![Plan::new(FOLLOWER)] }.with_validators(4);
    let mut network = Testnet::start(binary(), folder.path(), &topology).await?;
    mint(&network, 1).await?;

    // Each but the issuer's own, which mints, and which the follower asks first.
    let mut number = 1;
    for victim in ["validator-2", "validator-3", "validator-4"] {
        network.kill(victim).await?;
        number += 1;
        mint(&network, number).await.with_context(|| format!("without {victim}"))?;
        network.restart(victim).await?;
        let reached = height(&network, FOLLOWER).await?;
        until("the restarted validator catches up", WAIT, async || {
            Ok((height(&network, victim).await? >= reached).then_some(()))
        })
        .await
        .with_context(|| victim.to_owned())?;
    }
    // Without the one that it asked so far, the follower finds the blocks elsewhere.
    network.kill("validator-1").await?;
    let reached = height(&network, FOLLOWER).await?;
    until("blocks from another validator", WAIT, async || {
        Ok((height(&network, FOLLOWER).await? > reached + 1).then_some(()))
    })
    .await?;
    network.restart("validator-1").await?;
    mint(&network, number + 1).await?;

    let names = network.names().to_vec();
    network.stop().await?;
    let mut blocks = Vec::new();
    for name in &names {
        let path = folder.path().join(name);
        let path = path.to_str().context("the folder's name is not UTF-8")?;
        let (code, said) = command(&["ledger", "verify", "--json", "--folder", path]).await?;
        let said: Value = serde_json::from_str(&said)?;
        ensure!(code == Some(0) && said["verified"] == true, "{name}: {said}");
        let replica = spillway_ledger::Follower::open(
            folder.path().join(name),
            &spillway_testnet::genesis::read(&folder.path().join(name).join("genesis.json"))?,
        )?;
        blocks.push(replica.blocks(1, usize::MAX)?);
    }
    let shortest = blocks.iter().map(Vec::len).min().context("no copies")?;
    ensure!(shortest > 0, "a copy is empty");
    for (name, copy) in names.iter().zip(&blocks) {
        let same = copy.iter().zip(&blocks[0]).take(shortest).all(|(a, b)| a.block == b.block);
        ensure!(same, "{name} has other blocks than {}", names[0]);
    }
    Ok(())
}
