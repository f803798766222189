//! A ledger that is written until it is killed, and a check of what the killed one left behind; `scripts/crash.py` drives
//! both.
//!
//! `crash_writer write FOLDER SEED` does what a provider with its own books does, for ever: streams jobs, keeps vouchers
//! and receipts, settles, commits blocks. A line on its output is an acknowledgement: what it names is durable.
//! `crash_writer check FOLDER ro|rw` reads all those lines from its input, and fails if anything of them is missing, or is
//! there in another form, or if more is there than was under way. `ro` writes nothing, so that the next writer finds what
//! the kill left; `rw` opens the folder as a node does.
//! Invariant: what it does depends on the seed and on what is on the disk, never on a clock.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufRead, Write};
use std::path::Path;

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use spillway_ledger::chain::{GENESIS_FILE, LEDGER_FILE};
use spillway_ledger::*;

type Anyhow<T> = Result<T, Box<dyn Error>>;

const START_MS: u64 = 1_700_000_000_000;
const NODE_FILE: &str = "node.redb";
const DEPOSIT: Credits = Credits::new(1_000_000);
/// A writer that nobody kills stops here, in blocks of one life.
const BLOCKS_MAX: u32 = 5_000;

/// Everyone who acts; the keys are the same in every run.
struct Cast {
    genesis: Genesis,
    issuer: SecretKey,
    authority: SecretKey,
    consumer: SecretKey,
    provider: SecretKey,
    voucher_key: SecretKey,
}

fn cast() -> Cast {
    let key = |number: u8| SecretKey::generate([number; 32]);
    let (issuer, authority) = (key(1), key(2));
    let genesis = Genesis {
        name: "crash".to_owned(),
        time_ms: START_MS,
        issuer: issuer.account(),
        committee: vec![authority.public()],
        treasury: key(3).account(),
        validators: key(4).account(),
        split: Split::default(),
        grace_ms: 1_000,
        validator_bond: Credits::new(1_000),
        unbond_ms: 1_000,
        payout_min: Credits::new(1),
        mint_max_per_epoch: Credits::new(1 << 60),
        epoch_blocks: 1_000,
        bootstrap: Vec::new(),
    };
    Cast { genesis, issuer, authority, consumer: key(5), provider: key(6), voucher_key: key(8) }
}

fn main() -> Anyhow<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["write", folder, seed] => Writer::open(Path::new(folder), seed.parse()?)?.run(),
        ["check", folder, "ro"] => check(Path::new(folder), false),
        ["check", folder, "rw"] => check(Path::new(folder), true),
        _ => Err("usage: crash_writer write FOLDER SEED | crash_writer check FOLDER ro|rw".into()),
    }
}

/// Says a line. It is one system call, so that a kill never leaves half of one.
fn say(line: String) -> Anyhow<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes())?;
    Ok(out.flush()?)
}

/// A receipt's key: the session, then the job.
fn receipt_key(session: &SessionId, job: &JobId) -> Vec<u8> {
    [session.0.as_bytes().as_slice(), &job.0].concat()
}

/// The line that acknowledges a voucher.
fn voucher_line(voucher: &Signed<Voucher>) -> String {
    let Voucher { session, sequence, total, .. } = voucher.value();
    format!("voucher {session} {sequence} {} {}", total.micro(), digest(&voucher.to_bytes()))
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::of("crash", &[bytes])
}

/// A provider with its own books.
struct Writer {
    cast: Cast,
    solo: Solo,
    node: Store,
    random: ChaCha8Rng,
    blocks: u32,
}

impl Writer {
    fn open(folder: &Path, seed: u64) -> Anyhow<Writer> {
        let cast = cast();
        say("phase open".to_owned())?;
        let solo = Solo::open(folder, &cast.genesis, cast.authority.clone())?;
        let node = Store::open_noted(folder.join(NODE_FILE))?;
        say(format!("opened {} {}", solo.height(), solo.tip()))?;
        let writer = Writer { cast, solo, node, random: ChaCha8Rng::seed_from_u64(seed), blocks: 0 };
        // What the life before wrote and had no time to say is acknowledged by now: this life builds on it.
        for (session, _) in writer.solo.book().sessions().filter(|(_, state)| state.open) {
            if let Some(voucher) = writer.highest(session)? {
                say(voucher_line(&voucher))?;
            }
        }
        Ok(writer)
    }

    fn run(mut self) -> Anyhow<()> {
        while self.blocks < BLOCKS_MAX {
            let session = self.session()?;
            let receipts =
                (0..self.random.random_range(1..=3)).map(|_| self.job(&session)).collect::<Anyhow<Vec<Digest>>>()?;
            self.settle(&session, &receipts)?;
        }
        Err("nobody killed this process".into())
    }

    fn entry(&self, key: &SecretKey, action: Action) -> Signed<Entry> {
        let nonce = self.solo.next_nonce(&key.account());
        let mut business = [0; 16];
        business[..8].copy_from_slice(&nonce.to_le_bytes());
        let network = self.cast.genesis.network_id();
        let expires_height = self.solo.height() + 100;
        Signed::sign(Entry { network, account: key.account(), nonce, expires_height, business, action }, key)
    }

    /// Commits what waits in one block, and acknowledges it.
    fn block(&mut self) -> Anyhow<()> {
        say("phase commit".to_owned())?;
        let committed = self.solo.produce(START_MS + self.solo.height())?.ok_or("nothing to commit")?;
        let header = committed.block.block.header;
        self.blocks += 1;
        say(format!("block {} {}", header.height, digest(&committed.block.to_bytes())))
    }

    /// The session that is open, or a new one.
    fn session(&mut self) -> Anyhow<SessionId> {
        if let Some((id, _)) = self.solo.book().sessions().find(|(_, state)| state.open) {
            return Ok(*id);
        }
        let consumer = self.cast.consumer.clone();
        if self.solo.book().balance(&consumer.account()) < DEPOSIT {
            let reference = format!("deposit {}", self.solo.next_nonce(&self.cast.issuer.account()));
            let action = Action::Mint { to: consumer.account(), amount: Credits::new(100_000_000), reference };
            let entry = self.entry(&self.cast.issuer, action);
            self.solo.submit(entry)?;
        }
        let nonce = self.solo.next_nonce(&consumer.account());
        let action = Action::Open {
            provider: self.cast.provider.account(),
            gateway: SecretKey::generate([7; 32]).account(),
            voucher_key: self.cast.voucher_key.public(),
            deposit: DEPOSIT,
            price_cap: Price::default(),
            expires_ms: START_MS + 10_000_000,
        };
        let entry = self.entry(&consumer, action);
        self.solo.submit(entry)?;
        self.block()?;
        Ok(SessionId::derive(&self.cast.genesis.network_id(), &consumer.account(), nonce))
    }

    /// The session's highest voucher, as the disk has it.
    fn highest(&self, session: &SessionId) -> Anyhow<Option<Signed<Voucher>>> {
        let bytes = self.node.get(Table::Vouchers, session.0.as_bytes())?;
        Ok(bytes.map(|bytes| Signed::from_bytes(&bytes)).transpose()?)
    }

    /// Streams a job with a few vouchers, and keeps its receipt.
    fn job(&mut self, session: &SessionId) -> Anyhow<Digest> {
        let mut job = JobId([0; 16]);
        self.random.fill_bytes(&mut job.0);
        let network = self.cast.genesis.network_id();
        for chunk in 0..self.random.random_range(2..=5_u32) {
            say("phase stream".to_owned())?;
            let mut batch = Batch::new();
            batch.put(Table::Jobs, job.0, chunk.to_le_bytes());
            self.node.commit(batch)?;

            say("phase voucher".to_owned())?;
            let (sequence, total) = match self.highest(session)? {
                Some(voucher) => (voucher.value().sequence + 1, voucher.value().total),
                None => (0, Credits::ZERO),
            };
            let total = Credits::new((total.micro() + self.random.random_range(1..500)).min(DEPOSIT.micro()));
            let voucher = Voucher { network, session: *session, sequence, total, input: 1, output: sequence };
            let voucher = Signed::sign(voucher, &self.cast.voucher_key);
            let mut batch = Batch::new();
            batch.put(Table::Vouchers, session.0.as_bytes(), voucher.to_bytes());
            batch.put(Table::Sessions, session.0.as_bytes(), job.0);
            self.node.commit(batch)?;
            say(voucher_line(&voucher))?;
        }

        say("phase receipt".to_owned())?;
        let receipt = Receipt {
            network,
            session: *session,
            job,
            leg: 0,
            model: "crash".to_owned(),
            weights: Digest::ZERO,
            kind: "chat".to_owned(),
            prompt: Digest::ZERO,
            transcript: Digest::ZERO,
            usage: Usage { input: 1, cached: 0, output: 2 },
            price: Price::default(),
            cost: Credits::ZERO,
            first_token_ms: 1,
            total_ms: 2,
            finish: "stop".to_owned(),
            time_ms: START_MS,
        };
        let receipt = CoSigned::co_sign(Signed::sign(receipt, &self.cast.provider), &self.cast.consumer);
        let (key, bytes) = (receipt_key(session, &job), receipt.to_bytes());
        let said = format!("receipt {session} {} {}", hex::encode(job.0), digest(&bytes));
        let mut batch = Batch::new();
        batch.put(Table::Receipts, key, bytes).delete(Table::Jobs, job.0);
        self.node.commit(batch)?;
        say(said)?;
        Ok(receipt.digest())
    }

    /// Settles the highest voucher on the disk, in one block with a few other entries.
    fn settle(&mut self, session: &SessionId, receipts: &[Digest]) -> Anyhow<()> {
        say("phase settle".to_owned())?;
        let voucher = self.highest(session)?.ok_or("a job leaves a voucher")?;
        let claim = voucher.value().total;
        let last = claim == DEPOSIT || self.random.random_range(0..4) == 0;
        let usage = Usage { input: 1, cached: 0, output: 2 };
        let receipts = merkle_root(receipts);
        let action = Action::Settle { voucher: voucher.to_wire(), claim, usage, receipts, last };
        let entry = self.entry(&self.cast.provider, action);
        self.solo.submit(entry)?;
        for _ in 0..self.random.random_range(0..4) {
            let to = SecretKey::generate([9; 32]).account();
            let entry = self.entry(&self.cast.consumer, Action::Transfer { to, amount: Credits::new(1) });
            self.solo.submit(entry)?;
        }
        self.block()?;
        say(format!("settled {session} {}", claim.micro()))
    }
}

/// What was acknowledged, of all lives of a folder.
#[derive(Default)]
struct Acknowledged {
    blocks: BTreeMap<u64, String>,
    /// By session: the sequence of the highest, its total and its digest.
    vouchers: BTreeMap<SessionId, (u64, u64, String)>,
    receipts: BTreeMap<(SessionId, [u8; 16]), String>,
    settled: BTreeMap<SessionId, u64>,
    /// Where each life began: height and tip.
    opened: BTreeMap<u64, String>,
}

impl Acknowledged {
    fn read(lines: impl BufRead) -> Anyhow<Acknowledged> {
        let mut all = Acknowledged::default();
        for line in lines.lines() {
            let line = line?;
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["block", height, digest] => drop(all.blocks.insert(height.parse()?, digest.to_owned())),
                ["voucher", session, sequence, total, digest] => {
                    let highest = (sequence.parse()?, total.parse()?, digest.to_owned());
                    all.vouchers.insert(session.parse()?, highest);
                }
                ["receipt", session, job, digest] => {
                    let job: JobId = job.parse()?;
                    all.receipts.insert((session.parse()?, job.0), digest.to_owned());
                }
                ["settled", session, total] => drop(all.settled.insert(session.parse()?, total.parse()?)),
                ["opened", height, tip] => drop(all.opened.insert(height.parse()?, tip.to_owned())),
                ["phase", _] => {}
                _ => return Err(format!("no acknowledgement: {line}").into()),
            }
        }
        Ok(all)
    }
}

/// Counts what is missing or wrong; each is said as it is found.
#[derive(Default)]
struct Faults(u64);

impl Faults {
    fn expect(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            eprintln!("{}", what());
            self.0 += 1;
        }
    }
}

fn check(folder: &Path, write: bool) -> Anyhow<()> {
    let all = Acknowledged::read(std::io::stdin().lock())?;
    let cast = cast();
    let ledger = folder.join(LEDGER_FILE);
    let node = folder.join(NODE_FILE);
    if !ledger.exists() || !node.exists() {
        // Killed before it had made the files: then nothing can have been acknowledged.
        let nothing = all.blocks.is_empty() && all.vouchers.is_empty() && all.receipts.is_empty();
        println!("{}", serde_json::json!({ "height": 0, "acknowledged": 0, "faults": u32::from(!nothing) }));
        return if nothing { Ok(()) } else { Err("a file is missing".into()) };
    }

    let mut faults = Faults::default();
    let verified = if folder.join(GENESIS_FILE).exists() { Some(verify_folder(folder)?) } else { None };
    let height = verified.map_or(0, |verified| verified.height);
    let (blocks, follower) = if write {
        let follower = Follower::open(folder, &cast.genesis)?;
        (follower.blocks(1, usize::MAX)?, follower)
    } else {
        // The books are opened from a copy, as an auditor has it.
        let copy = tempfile::tempdir()?;
        for file in std::fs::read_dir(folder)? {
            let file = file?;
            std::fs::copy(file.path(), copy.path().join(file.file_name()))?;
        }
        let follower = Follower::open(copy.path(), &cast.genesis)?;
        let store = Store::open_read_only(&ledger)?;
        let rows = store.range(Table::Blocks, &[], usize::MAX)?;
        let blocks = rows.iter().map(|(_, bytes)| CertifiedBlock::from_bytes(bytes)).collect::<Result<Vec<_>, _>>()?;
        (blocks, follower)
    };
    faults.expect(verified.is_none_or(|verified| verified.tip == follower.tip()), || "another tip".to_owned());
    let node = if write { Store::open_noted(&node)? } else { Store::open_read_only(&node)? };

    let acknowledged_height = all.blocks.keys().chain(all.opened.keys()).max().copied().unwrap_or(0);
    faults.expect(height == blocks.len() as u64, || format!("{height} verified, {} stored", blocks.len()));
    faults.expect((acknowledged_height..=acknowledged_height + 1).contains(&height), || {
        format!("block {acknowledged_height} was acknowledged, and the ledger ends at {height}")
    });
    for (height, want) in &all.blocks {
        let got = usize::try_from(height - 1).ok().and_then(|index| blocks.get(index));
        faults.expect(got.is_some_and(|block| digest(&block.to_bytes()).to_string() == *want), || {
            format!("block {height} was acknowledged and is missing or another")
        });
    }
    for (height, want) in all.opened.iter().filter(|(height, _)| **height > 0) {
        let got = usize::try_from(height - 1).ok().and_then(|index| blocks.get(index));
        faults.expect(got.is_some_and(|block| block.block.header.digest().to_string() == *want), || {
            format!("a life began on block {height}, which is missing or another")
        });
    }
    for ((session, job), want) in &all.receipts {
        let bytes = node.get(Table::Receipts, &receipt_key(session, &JobId(*job)))?;
        let whole = bytes.is_some_and(|b| CoSigned::from_bytes(&b).is_ok() && digest(&b).to_string() == *want);
        faults.expect(whole, || format!("receipt {session} {} is missing or another", hex::encode(job)));
    }
    let mut vouchers = BTreeMap::new();
    for (key, bytes) in node.range(Table::Vouchers, &[], usize::MAX)? {
        let voucher = Signed::<Voucher>::from_bytes(&bytes)?;
        let id = voucher.value().session;
        faults.expect(id.0.as_bytes() == key.as_slice(), || format!("voucher {id} lies under another session"));
        faults.expect(voucher.signer() == cast.voucher_key.public(), || format!("voucher {id} is signed by another"));
        vouchers.insert(id, (voucher.value().clone(), digest(&bytes).to_string()));
    }
    for (session, (sequence, total, want)) in &all.vouchers {
        let Some((voucher, got)) = vouchers.get(session) else {
            faults.expect(false, || format!("voucher {session} was acknowledged and is missing"));
            continue;
        };
        // At most the one that was under way is there besides.
        let same = voucher.sequence == *sequence && voucher.total.micro() == *total && got == want;
        let next = voucher.sequence == sequence + 1 && voucher.total.micro() >= *total;
        faults.expect(same || next, || format!("voucher {session}: {sequence} was acknowledged, found {voucher:?}"));
    }
    let book = follower.book();
    for (session, total) in &all.settled {
        let settled = book.session(session).map(|state| state.settled.micro());
        faults.expect(settled.is_some_and(|settled| settled >= *total), || format!("{session} settled {settled:?}"));
    }
    // The voucher is on the disk before it is settled: the books never know more than the node.
    for (id, state) in book.sessions() {
        let kept = vouchers.get(id).map_or(0, |(voucher, _)| voucher.total.micro());
        faults.expect(state.settled.micro() <= kept, || format!("{id} settled {:?} of {kept}", state.settled));
    }
    if let Err(violation) = book.check() {
        faults.expect(false, || violation.to_string());
    }
    let acknowledged = all.blocks.len() + all.vouchers.len() + all.receipts.len() + all.settled.len();
    println!("{}", serde_json::json!({ "height": height, "acknowledged": acknowledged, "faults": faults.0 }));
    if faults.0 > 0 { Err("something acknowledged is missing or another".into()) } else { Ok(()) }
}
