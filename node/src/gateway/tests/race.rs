//! A budget under a thousand clients at once, over HTTP, on every store.

use super::market::{CHEAP_COST, LEFT_COST};
use super::{Place, Terms, World, error_of};
use crate::gateway::store::tests::on_every_store;
use futures::StreamExt;
use spillway_ledger::Credits;
use std::sync::Arc;
use std::time::Duration;

on_every_store!(
    a_thousand_clients_spend_a_budget_for_a_hundred_and_no_more,
    who_tries_again_while_money_is_set_aside_gets_all_of_it,
    clients_that_leave_leave_nothing_reserved,
);

/// What one token reserves, in micro-credits.
const ONE: u64 = 8;

fn terms(budget: u64) -> Terms {
    Terms { name: "race".into(), budget_micro: Some(Credits::new(budget)), ..Terms::default() }
}

/// What is spent and reserved once that is `want`.
async fn comes_to(world: &World, want: (u64, u64)) {
    let mut last = (0, 0);
    let reached = async {
        loop {
            last = world.tally().await;
            if last == want {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(60), reached).await;
    assert!(in_time.is_ok(), "{last:?} where {want:?} was expected");
}

async fn a_thousand_clients_spend_a_budget_for_a_hundred_and_no_more(place: Place) {
    let world = Arc::new(World::on(place, terms(100 * ONE)).await);
    let tasks: Vec<_> = (0..1000)
        .map(|_| {
            let world = Arc::clone(&world);
            tokio::spawn(async move {
                let response = world.chat("exact", "").await;
                let status = response.status();
                if status == 200 {
                    assert_eq!(response.headers()["x-spillway-cost"], "0.000008");
                    return true;
                }
                let (_, code, _) = error_of(response).await;
                assert!(matches!(
                    (status.as_u16(), code.as_str()),
                    (402, "budget_exceeded") | (429, "budget_reserved")
                ));
                false
            })
        })
        .collect();
    let mut served = 0;
    for task in tasks {
        served += u32::from(task.await.expect("no panic"));
    }
    assert_eq!(served, 100);
    comes_to(&world, (100 * ONE, 0)).await;
    assert_eq!(error_of(world.chat("exact", "").await).await.0, 402);
}

async fn who_tries_again_while_money_is_set_aside_gets_all_of_it(place: Place) {
    let world = Arc::new(World::on(place, terms(100 * ONE)).await);
    let tasks: Vec<_> = (0..64)
        .map(|_| {
            let world = Arc::clone(&world);
            tokio::spawn(async move {
                let mut served = 0;
                loop {
                    let response = world.chat("cheap", "").await;
                    if response.status() == 200 {
                        served += 1;
                        continue;
                    }
                    match error_of(response).await {
                        (402, ..) => return served,
                        (429, code, _) => assert_eq!(code, "budget_reserved"),
                        other => panic!("{other:?}"),
                    }
                }
            })
        })
        .collect();
    let mut served = 0;
    for task in tasks {
        served += task.await.expect("no panic");
    }
    // Served as long as what is not spent covers one more, as if they had come one after another.
    let expected = (100 * ONE - ONE) / CHEAP_COST + 1;
    assert_eq!(served, expected);
    comes_to(&world, (expected * CHEAP_COST, 0)).await;
}

async fn clients_that_leave_leave_nothing_reserved(place: Place) {
    let world = Arc::new(World::on(place, terms(1_000_000)).await);
    let tasks: Vec<_> = (0..200)
        .map(|_| {
            let world = Arc::clone(&world);
            tokio::spawn(async move {
                let response = world.chat("endless", r#","stream":true"#).await;
                assert_eq!(response.status(), 200);
                let first = response.bytes_stream().next().await.expect("a chunk").expect("bytes");
                assert!(!first.is_empty());
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    // Each of them pays what it got.
    comes_to(&world, (200 * LEFT_COST, 0)).await;
}
