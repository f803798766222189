//! One authority and its followers on loopback, with real networks and real disks.
//! Every wait is for a condition; [`PATIENCE`] is how long one may take before the test fails.

use super::{BookEvent, Books, BooksError, BooksRole, EntryRefused, LedgerCall, LedgerReply};
use crate::network::{CallKind, Network, NetworkEvent, NetworkSettings, Topic};
use spillway_ledger::{
    Account, Action, Applied, Credits, Entry, Genesis, NodeId, SecretKey, Signed, Solo, Split, decode, encode,
};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

fn key(seed: u8) -> SecretKey {
    SecretKey::generate([seed; 32])
}

const AUTHORITY: u8 = 1;
const ISSUER: u8 = 2;

fn genesis() -> Genesis {
    Genesis {
        name: "test".into(),
        time_ms: 1,
        issuer: key(ISSUER).account(),
        committee: vec![key(AUTHORITY).public()],
        treasury: key(3).account(),
        validators: key(4).account(),
        split: Split::default(),
        grace_ms: 1000,
        mint_max_per_epoch: Credits::new(1_000_000_000),
        epoch_blocks: 1000,
        validator_bond: Credits::ZERO,
        unbond_ms: 0,
        payout_min: Credits::ZERO,
        bootstrap: Vec::new(),
    }
}

/// A node without a market: its network's events go to its books.
struct Node {
    network: Network,
    books: Books,
    events: Arc<Mutex<Vec<BookEvent>>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Node {
    /// `seed` is the node's key; `account` its account's.
    async fn start(folder: &Path, seed: u8, account: u8, listen: &str, knock: Option<&Node>, role: BooksRole) -> Self {
        let settings = NetworkSettings {
            network: genesis().network_id(),
            listen: vec![listen.into()],
            bootstrap: knock.map(|node| node.network.addresses()).unwrap_or_default(),
            known: Vec::new(),
            mdns: false,
            emulated_rtt: Duration::ZERO,
        };
        // After a stop, the system may hold the port a moment longer.
        let started = async {
            loop {
                match Network::start(settings.clone(), &key(seed)).await {
                    Ok(started) => return started,
                    Err(error) => {
                        assert!(error.to_string().contains("in use"), "{error}");
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            }
        };
        let (network, mut network_events) = timeout(PATIENCE, started).await.expect("loopback");
        let (books, mut book_events) =
            Books::open(folder, &genesis(), role, key(account), network.clone()).await.expect("a sound folder");
        let feed = books.clone();
        let feeding = tokio::spawn(async move {
            while let Some(event) = network_events.recv().await {
                match event {
                    NetworkEvent::Call { kind: CallKind::Ledger, peer, request, reply } => {
                        feed.call(peer, request, reply)
                    }
                    NetworkEvent::Gossip { topic: Topic::Blocks, bytes, verdict, .. } => feed.gossip(bytes, verdict),
                    _ => {}
                }
            }
        });
        let events = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&events);
        let listening = tokio::spawn(async move {
            while let Some(event) = book_events.recv().await {
                seen.lock().expect("no panic").push(event);
            }
        });
        Self { network, books, events, tasks: vec![feeding, listening] }
    }

    async fn authority(folder: &Path, listen: &str) -> Self {
        Self::start(folder, 10, ISSUER, listen, None, BooksRole::Solo { authority: key(AUTHORITY) }).await
    }

    async fn follower(folder: &Path, seed: u8, authority: &Node) -> Self {
        let role = BooksRole::Follow { authorities: vec![authority.network.node()] };
        Self::start(folder, seed, seed, QUIC, Some(authority), role).await
    }

    /// Stops the node and lets go of its folder.
    async fn stop(self) {
        self.books.stop().await;
        self.network.shutdown().await;
        for task in self.tasks {
            task.abort();
            let _ = task.await;
        }
    }

    async fn mint(&self, to: Account, amount: u64, business: u8) -> u64 {
        let action = Action::Mint { to, amount: Credits::new(amount), reference: format!("deposit {business}") };
        timeout(PATIENCE, self.books.submit([business; 16], action)).await.expect("in time").expect("the issuer may")
    }

    async fn transfer(&self, to: Account, amount: u64, business: u8) -> Result<u64, EntryRefused> {
        let action = Action::Transfer { to, amount: Credits::new(amount) };
        timeout(PATIENCE, self.books.submit([business; 16], action)).await.expect("in time")
    }

    fn balance(&self, account: Account) -> u64 {
        self.books.read(|book| book.balance(&account)).micro()
    }

    fn account(&self) -> Account {
        self.books.account()
    }

    async fn reach(&self, height: u64) {
        let mut reached = self.books.0.height.clone();
        let reached = timeout(PATIENCE, reached.wait_for(|at| *at >= height)).await;
        reached.expect("in time").expect("the books run");
    }
}

const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

/// Each node's last block is the same, and so is the state it leads to.
fn assert_same(nodes: &[&Node]) {
    let tips: Vec<_> = nodes
        .iter()
        .map(|node| {
            let height = node.books.height();
            node.books.blocks(height, 1).expect("readable").first().map(|block| block.block.header)
        })
        .collect();
    assert!(tips.windows(2).all(|pair| pair[0] == pair[1]), "{tips:?}");
    for node in nodes {
        node.books.read(|book| book.check().expect("no rule is broken"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_submit_and_all_copies_are_the_same() {
    let (at_authority, at_first, at_second) = (folder(), folder(), folder());
    let authority = Node::authority(at_authority.path(), QUIC).await;
    let first = Node::follower(at_first.path(), 11, &authority).await;
    let second = Node::follower(at_second.path(), 12, &authority).await;
    authority.mint(first.account(), 1000, 1).await;
    let height = authority.mint(second.account(), 1000, 2).await;
    first.reach(height).await;
    second.reach(height).await;

    // Both ways at once, several at a time: nonces are given out one after the other.
    let transfers = (0..10).flat_map(|round: u8| {
        let there = first.transfer(second.account(), 7, 20 + round);
        let back = second.transfer(first.account(), 3, 40 + round);
        [futures::future::Either::Left(there), futures::future::Either::Right(back)]
    });
    for done in futures::future::join_all(transfers).await {
        let height = done.expect("both have enough");
        assert!(height > 2, "{height}");
    }
    let height = authority.books.height();
    first.reach(height).await;
    second.reach(height).await;
    assert_eq!((first.balance(first.account()), second.balance(first.account())), (960, 960));
    assert_eq!((first.balance(second.account()), authority.balance(second.account())), (1040, 1040));
    assert_same(&[&authority, &first, &second]);

    // Every node was told every entry once, in the same order.
    let told = |node: &Node| {
        let events = node.events.lock().expect("no panic");
        events
            .iter()
            .map(|event| {
                let BookEvent::Applied { height, applied, business, account } = event;
                assert!(matches!(applied, Applied::Minted { .. } | Applied::Transferred { .. }), "{applied:?}");
                (*height, *business, *account)
            })
            .collect::<Vec<_>>()
    };
    let all = |node: &Node| told(node).len() == 22;
    let same = async {
        while ![&authority, &first, &second].iter().all(|node| all(node)) {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, same).await.expect("all are told");
    assert_eq!(told(&authority), told(&first));
    assert_eq!(told(&authority), told(&second));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_of_the_authority_they_go_on() {
    let (at_authority, at_follower) = (folder(), folder());
    let authority = Node::authority(at_authority.path(), QUIC).await;
    let follower = Node::follower(at_follower.path(), 11, &authority).await;
    let height = authority.mint(follower.account(), 100, 1).await;
    follower.reach(height).await;
    let listen = authority.network.addresses()[0].split("/p2p/").next().expect("an address").to_owned();
    authority.stop().await;

    // Submitted while nobody is there.
    let books = follower.books.clone();
    let action = Action::Transfer { to: key(5).account(), amount: Credits::new(30) };
    let waiting = tokio::spawn(async move { books.submit([7; 16], action).await });
    let authority = Node::authority(at_authority.path(), &listen).await;
    assert_eq!(authority.balance(follower.account()), 100, "what was acknowledged is still there");
    let height = timeout(PATIENCE, waiting).await.expect("in time").expect("no panic").expect("enough is there");
    assert_eq!((follower.balance(key(5).account()), authority.balance(key(5).account())), (30, 30));
    follower.reach(height).await;
    assert_same(&[&authority, &follower]);

    // A follower that lost its copy fetches all of it again.
    follower.stop().await;
    let at_follower = folder();
    let follower = Node::follower(at_follower.path(), 11, &authority).await;
    let height = follower.transfer(key(5).account(), 1, 8).await.expect("enough is there");
    assert_eq!(height, follower.books.height());
    assert_same(&[&authority, &follower]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_is_in_once_and_a_refusal_is_final() {
    let (at_authority, at_follower) = (folder(), folder());
    let authority = Node::authority(at_authority.path(), QUIC).await;
    let follower = Node::follower(at_follower.path(), 11, &authority).await;
    let height = authority.mint(follower.account(), 100, 1).await;
    follower.reach(height).await;
    let to = key(5).account();

    let first = follower.transfer(to, 10, 9).await;
    let again = follower.transfer(to, 10, 9).await;
    assert_eq!(first, again);
    assert_eq!(authority.balance(to), 10);

    // The very same bytes, from anyone, even several times at once.
    let entry = Entry {
        network: genesis().network_id(),
        account: follower.account(),
        nonce: follower.books.read(|book| book.nonce(&follower.account())),
        expires_height: 100,
        business: [77; 16],
        action: Action::Transfer { to, amount: Credits::new(5) },
    };
    let call = encode(&LedgerCall::Submit(Signed::sign(entry, &key(11)).to_wire()));
    let ask = || follower.network.call(authority.network.node(), &[], CallKind::Ledger, call.clone(), PATIENCE);
    let replies = futures::future::join_all((0..8).map(|_| ask())).await;
    let replies: Vec<LedgerReply> =
        replies.into_iter().map(|reply| decode(&reply.expect("answered")).expect("a reply")).collect();
    assert!(matches!(replies[0], LedgerReply::In { .. }), "{replies:?}");
    assert!(replies.iter().all(|reply| *reply == replies[0]), "{replies:?}");
    assert_eq!(authority.balance(to), 15);

    let refused = follower.transfer(to, 1_000_000, 10).await;
    assert!(matches!(&refused, Err(EntryRefused::Ledger(why)) if why.contains("are needed")), "{refused:?}");
    // A refusal takes no nonce: the next one is in.
    follower.transfer(to, 1, 11).await.expect("enough is there");
    assert_eq!(authority.balance(to), 16);
    // Only the issuer makes money.
    let forged = Action::Mint { to, amount: Credits::new(5), reference: "mine".into() };
    let refused = follower.books.submit([12; 16], forged).await;
    assert!(matches!(&refused, Err(EntryRefused::Ledger(why)) if why.contains("issuer")), "{refused:?}");

    // A follower writes no blocks, and says so.
    let call = || authority.network.call(follower.network.node(), &[], CallKind::Ledger, call.clone(), PATIENCE);
    assert_eq!(decode(&call().await.expect("answered")), Ok(LedgerReply::NotAuthority));
    follower.books.stop().await;
    assert_eq!(follower.transfer(to, 1, 13).await, Err(EntryRefused::Stopped));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_false_authority_s_blocks_are_not_taken() {
    // Sound blocks, but of an authority that genesis does not name.
    let at_liar = folder();
    let other = Genesis { committee: vec![key(66).public()], issuer: key(66).account(), ..genesis() };
    let mut solo = Solo::open(at_liar.path(), &other, key(66)).expect("a sound folder");
    let mint = Entry {
        network: other.network_id(),
        account: key(66).account(),
        nonce: 0,
        expires_height: 9,
        business: [1; 16],
        action: Action::Mint { to: key(11).account(), amount: Credits::new(5), reference: "lie".into() },
    };
    solo.submit(Signed::sign(mint, &key(66))).expect("the issuer may");
    let forged = solo.produce(2).expect("the disk works").expect("one entry").block.to_bytes();

    let settings = NetworkSettings {
        network: genesis().network_id(),
        listen: vec![QUIC.into()],
        bootstrap: Vec::new(),
        known: Vec::new(),
        mdns: false,
        emulated_rtt: Duration::ZERO,
    };
    let (liar, mut events) = Network::start(settings.clone(), &key(10)).await.expect("loopback");
    let asked = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        let bad = [LedgerReply::Blocks(vec![forged]), LedgerReply::Blocks(vec![vec![1, 2, 3]]), LedgerReply::Busy];
        while let Some(event) = events.recv().await {
            if let NetworkEvent::Call { reply, .. } = event {
                let turn = count.fetch_add(1, Ordering::SeqCst) as usize;
                reply.send(encode(&bad[turn % bad.len()]));
            }
        }
    });
    let at_follower = folder();
    let settings = NetworkSettings { bootstrap: liar.addresses(), ..settings };
    let (network, _network_events) = Network::start(settings, &key(11)).await.expect("loopback");
    let role = BooksRole::Follow { authorities: vec![liar.node()] };
    let (books, mut told) =
        Books::open(at_follower.path(), &genesis(), role, key(11), network).await.expect("a sound folder");
    let tried = async {
        while asked.load(Ordering::SeqCst) < 4 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, tried).await.expect("the follower asks again and again");
    assert_eq!(books.height(), 0);
    assert!(told.try_recv().is_err(), "nothing was applied");
}

#[tokio::test]
async fn a_node_does_not_follow_itself() {
    let at = folder();
    let settings = NetworkSettings {
        network: genesis().network_id(),
        listen: Vec::new(),
        bootstrap: Vec::new(),
        known: Vec::new(),
        mdns: false,
        emulated_rtt: Duration::ZERO,
    };
    let (network, _events) = Network::start(settings, &key(10)).await.expect("loopback");
    let role = BooksRole::Follow { authorities: vec![NodeId(key(10).public())] };
    let opened = Books::open(at.path(), &genesis(), role, key(11), network).await;
    assert!(matches!(opened, Err(BooksError::FollowsItself)));
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}
