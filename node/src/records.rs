//! Where the market's records lie in the node's store.
//! Invariant: one batch holds all that one drain of the market asked to keep; it is durable or absent as a whole.

use spillway_ledger::store::{Batch, Store, Table};
use spillway_ledger::{Credits, Digest, JobId, SessionId, StoreError};
use spillway_protocol::record::{Record, RecordKind};
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Rows read at a time.
const PAGE: usize = 1024;
/// What the rows of [`Table::Meta`] that keep receipts' order begin with.
const LEAF: &[u8] = b"leaf/";
/// The most receipts of one session whose order is read.
const LEAVES_MAX: usize = 1 << 17;

/// The table and key of a record. Both kinds of session share a table, told apart by the key's first byte.
fn place(record: &Record) -> (Table, Vec<u8>) {
    let (kind, key) = record.key();
    match kind {
        RecordKind::Paying => (Table::Sessions, [b"p".as_slice(), &key].concat()),
        RecordKind::Earning => (Table::Sessions, [b"e".as_slice(), &key].concat()),
        RecordKind::Spending => (Table::Jobs, key),
        RecordKind::Receipt => (Table::Receipts, key),
    }
}

/// Where the receipt is named that was the session's `index`th, from 0.
fn leaf_key(session: &SessionId, index: u32) -> Vec<u8> {
    [LEAF, session.0.as_bytes(), &index.to_be_bytes()].concat()
}

/// Adds a record to what is to be kept. An earning session's receipts are kept beside it and not in it, a row for each: the record is
/// written several times for each job, and without their order no receipt could be shown to lie under a settlement's root once the
/// session is over.
pub fn keep(batch: &mut Batch, record: &Record) {
    let (table, key) = place(record);
    if let Record::Earning(earning) = record {
        // Each receipt is the newest of some record, so one row for each record keeps them all.
        let count = u32::try_from(earning.receipts.len()).expect("a record is at most 4 MiB");
        if let Some(newest) = earning.receipts.last() {
            batch.put(Table::Meta, leaf_key(&earning.session, count - 1), newest.as_bytes());
        }
    }
    match record {
        Record::PayingOver(_) | Record::EarningOver(_) => {
            batch.delete(table, key);
        }
        Record::Earning(earning) => {
            batch.put(table, key, Record::Earning(earning.without_receipts()).to_bytes());
        }
        Record::Paying(_) | Record::Spending(_) | Record::Receipt { .. } => {
            batch.put(table, key, record.to_bytes());
        }
    }
}

/// The sessions that a node was in when it last stopped.
///
/// # Errors
/// If the store cannot be read. A record that cannot be understood is an error, too: money hangs on it.
pub fn restore(store: &Store) -> anyhow::Result<Vec<Record>> {
    let mut records = read_all(store, Table::Sessions)?;
    for record in &mut records {
        if let Record::Earning(earning) = record {
            let kept = leaves(store, &earning.session)?;
            // Earlier versions kept them in the record, and before that there only.
            if kept.len() >= earning.receipts.len() {
                earning.receipts = kept;
            }
        }
    }
    Ok(records)
}

/// The digests of a session's receipts, in the order they were signed: the leaves under its settlements' roots. Empty
/// for a session that this node did not earn in.
///
/// # Errors
/// If the store cannot be read, or a row is missing or none of ours.
pub fn leaves(store: &Store, session: &SessionId) -> anyhow::Result<Vec<Digest>> {
    let prefix = [LEAF, session.0.as_bytes()].concat();
    let mut leaves = Vec::new();
    let mut from = leaf_key(session, 0);
    loop {
        let rows = store.range(Table::Meta, &from, PAGE)?;
        for (key, value) in &rows {
            if !key.starts_with(&prefix) || leaves.len() == LEAVES_MAX {
                return Ok(leaves);
            }
            let index = u32::try_from(leaves.len()).expect("bounded above");
            let digest = <[u8; 32]>::try_from(value.as_slice());
            let (true, Ok(digest)) = (*key == leaf_key(session, index), digest) else {
                anyhow::bail!("the receipts of session {} are incomplete from number {index} on", session.0);
            };
            leaves.push(Digest::from_bytes(digest));
        }
        if rows.len() < PAGE {
            return Ok(leaves);
        }
        from = leaf_key(session, u32::try_from(leaves.len()).expect("bounded above"));
    }
}

/// A row of whoever sets money aside for a job. It is written with the first record of what the job may cost, so that after a
/// kill neither is there without the other; a job that costs nothing never writes it.
#[derive(Debug)]
pub struct Aside {
    table: Table,
    key: Vec<u8>,
    value: Vec<u8>,
    /// The jobs with whose promises it was kept: several where a request is tried in several places.
    kept_with: Mutex<Vec<JobId>>,
}

impl Aside {
    /// A row that is not written yet.
    #[must_use]
    pub const fn new(table: Table, key: Vec<u8>, value: Vec<u8>) -> Self {
        Self { table, key, value, kept_with: Mutex::new(Vec::new()) }
    }

    /// Adds the row to what is to be kept with the first promise to pay for `job`.
    pub fn put(&self, batch: &mut Batch, job: JobId) {
        batch.put(self.table, self.key.clone(), self.value.clone());
        self.kept_with.lock().expect("no holder panics").push(job);
    }

    /// The jobs with whose promises it is, or is about to be, on the disk.
    #[must_use]
    pub fn kept_with(&self) -> Vec<JobId> {
        self.kept_with.lock().expect("no holder panics").clone()
    }
}

/// Removes what [`spendings`] reads, once all of it is accounted for.
///
/// # Errors
/// If the store cannot be read or written.
pub fn forget_spendings(store: &Store) -> Result<(), StoreError> {
    loop {
        let rows = store.range(Table::Jobs, &[], PAGE)?;
        if rows.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        for (key, _) in rows {
            batch.delete(Table::Jobs, key);
        }
        store.commit(batch)?;
    }
}

/// What each job may have cost by the vouchers signed for it, or did cost if it had ended, as the last run left it.
/// Whoever has accounted for a job deletes its row of [`Table::Jobs`] in the same batch.
///
/// # Errors
/// If the store cannot be read or a record cannot be understood.
pub fn spendings(store: &Store) -> anyhow::Result<BTreeMap<JobId, Credits>> {
    let mut promised = BTreeMap::new();
    for record in read_all(store, Table::Jobs)? {
        if let Record::Spending(spending) = record {
            promised.insert(spending.job, spending.promised);
        }
    }
    Ok(promised)
}

fn read_all(store: &Store, table: Table) -> anyhow::Result<Vec<Record>> {
    let mut records = Vec::new();
    let mut from = Vec::new();
    loop {
        let rows = store.range(table, &from, PAGE)?;
        let Some(last) = rows.last() else { return Ok(records) };
        from.clone_from(&last.0);
        from.push(0); // The least key above the last one.
        for (key, value) in &rows {
            let record = Record::from_bytes(value)
                .map_err(|error| anyhow::anyhow!("record {} of {table:?}: {error}", hex::encode(key)))?;
            records.push(record);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spillway_ledger::{Price, SecretKey, Usage};
    use spillway_protocol::record::{Earning, Spending};

    fn earning(session: SessionId, receipts: &[Digest]) -> Record {
        let key = SecretKey::from_bytes(&[1; 32]);
        Record::Earning(Earning {
            session,
            consumer: key.account(),
            voucher_key: key.public(),
            deposit: Credits::ZERO,
            price_cap: Price::default(),
            expires_ms: 0,
            voucher: None,
            vouched: Credits::ZERO,
            spent: Credits::ZERO,
            usage: Usage::default(),
            settled: Credits::ZERO,
            receipts: receipts.to_vec(),
        })
    }

    #[test]
    fn spendings_that_are_accounted_for_are_forgotten() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path().join("node.redb")).expect("a store");
        let mut batch = Batch::new();
        let provider = spillway_ledger::NodeId(SecretKey::from_bytes(&[1; 32]).public());
        // More than one page.
        for number in 0..1500u128 {
            let job = JobId(number.to_be_bytes());
            let promised = Credits::new(u64::try_from(number).expect("small"));
            keep(&mut batch, &Record::Spending(Spending { job, provider, promised }));
            keep(&mut batch, &Record::Spending(Spending { job, provider, promised: Credits::new(7) }));
        }
        keep(&mut batch, &earning(SessionId(Digest::ZERO), &[]));
        store.commit(batch).expect("kept");
        let read = spendings(&store).expect("readable");
        assert!(read.len() == 1500 && read.values().all(|cost| *cost == Credits::new(7)), "the last word counts");
        forget_spendings(&store).expect("forgotten");
        assert!(spendings(&store).expect("readable").is_empty());
        assert_eq!(restore(&store).expect("readable").len(), 1, "what else is kept stays");
    }

    #[test]
    fn the_order_of_receipts_outlives_their_session() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path().join("node.redb")).expect("a store");
        let digest = |number: u32| Digest::of("test", &[&number.to_le_bytes()]);
        let (session, other) = (SessionId(digest(1)), SessionId(digest(2)));
        // More than one page, so that reading goes on.
        let all: Vec<Digest> = (0..1500).map(digest).collect();
        let mut batch = Batch::new();
        keep(&mut batch, &earning(session, &[]));
        for count in 1..=all.len() {
            keep(&mut batch, &earning(session, &all[..count]));
            keep(&mut batch, &earning(session, &all[..count])); // A voucher between two receipts.
        }
        keep(&mut batch, &earning(other, &all[..1]));
        keep(&mut batch, &Record::EarningOver(session));
        store.commit(batch).expect("kept");
        assert!(
            restore(&store)
                .expect("readable")
                .iter()
                .all(|record| matches!(record, Record::Earning(it) if it.session == other && it.receipts == all[..1]))
        );
        assert_eq!(leaves(&store, &session).expect("readable"), all);
        assert_eq!(leaves(&store, &other).expect("readable"), all[..1]);
        assert_eq!(leaves(&store, &SessionId(digest(3))).expect("readable"), []);

        let mut batch = Batch::new();
        batch.delete(Table::Meta, leaf_key(&session, 7));
        store.commit(batch).expect("kept");
        assert!(leaves(&store, &session).expect_err("a gap").to_string().contains("number 7"));
    }
}
