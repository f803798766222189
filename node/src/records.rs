//! Where the market's records lie in the node's store.
//! Invariant: one batch holds all that one drain of the market asked to keep; it is durable or absent as a whole.

use spillway_ledger::store::{Batch, Store, Table};
use spillway_ledger::{Credits, JobId};
use spillway_protocol::record::{Record, RecordKind};
use std::collections::BTreeMap;

/// Rows read at a time.
const PAGE: usize = 1024;

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

/// Adds a record to what is to be kept.
pub fn keep(batch: &mut Batch, record: &Record) {
    let (table, key) = place(record);
    match record {
        Record::PayingOver(_) | Record::EarningOver(_) => {
            batch.delete(table, key);
        }
        Record::Paying(_) | Record::Earning(_) | Record::Spending(_) | Record::Receipt { .. } => {
            batch.put(table, key, record.to_bytes());
        }
    }
}

/// The sessions that a node was in when it last stopped.
///
/// # Errors
/// If the store cannot be read. A record that cannot be understood is an error, too: money hangs on it.
pub fn restore(store: &Store) -> anyhow::Result<Vec<Record>> {
    read_all(store, Table::Sessions)
}

/// What each job may have cost by the vouchers signed for it, as the last run left it.
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
