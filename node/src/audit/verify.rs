//! Reading an audit log, and finding out whether it is all there: by its chain, by the head that the node signed, and by a head
//! that somebody wrote down elsewhere.
//! Invariant: a log that passes with a head from elsewhere has, up to that head, exactly the lines that the node wrote.

use super::record::AuditRecord;
use serde::{Deserialize, Serialize};
use spillway_ledger::{Digest, NodeId, SecretKey, Signature};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::str::FromStr;

/// The log's file in the node's folder.
pub const LOG_FILE: &str = "audit.jsonl";
/// The signed head's file there.
pub const HEAD_FILE: &str = "audit.head";
/// Separates this signature from every other one of the node's.
const HEAD_DOMAIN: &str = "spillway/audit-head/1";
/// Longest line, in bytes.
const LINE_BYTES_MAX: u64 = 256 << 10;

/// The end of a chain: the last line's number and hash. Written `SEQ:HASH`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// How many lines there are.
    pub seq: u64,
    /// The last one's hash; 64 zeros if there is none.
    pub hash: Digest,
}

impl Head {
    /// Of a log without lines.
    pub const NONE: Self = Self { seq: 0, hash: Digest::ZERO };
}

impl std::fmt::Display for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.seq, self.hash)
    }
}

impl FromStr for Head {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once(':').and_then(|(seq, hash)| Some((seq.parse().ok()?, hash.parse().ok()?)));
        let (seq, hash) = parsed.ok_or("not SEQ:HASH, a number and 64 hexadecimal digits")?;
        Ok(Self { seq, hash })
    }
}

/// A head with the node's signature: the file [`HEAD_FILE`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedHead {
    /// The head.
    #[serde(flatten)]
    pub head: Head,
    /// When it was written, in Unix milliseconds.
    pub time_ms: u64,
    /// Who signed.
    pub node: NodeId,
    /// The signature.
    pub signature: Signature,
}

impl SignedHead {
    fn message(head: &Head, time_ms: u64) -> String {
        format!("{head} {time_ms}")
    }

    pub(super) fn new(head: Head, time_ms: u64, key: &SecretKey) -> Self {
        let signature = key.sign(HEAD_DOMAIN, Self::message(&head, time_ms).as_bytes());
        Self { head, time_ms, node: NodeId(key.public()), signature }
    }

    /// Whether `node` signed it.
    #[must_use]
    pub fn is_of(&self, node: &NodeId) -> bool {
        let message = Self::message(&self.head, self.time_ms);
        self.node == *node && node.0.verify(HEAD_DOMAIN, message.as_bytes(), &self.signature)
    }
}

/// Why a log is not all there, or not as it was.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// It cannot be read.
    #[error("{LOG_FILE}: {0}")]
    Io(#[from] io::Error),
    /// A line does not hold.
    #[error("{LOG_FILE}, line {line}: {why}")]
    Line {
        /// Which, from 1.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
    /// There are fewer lines than a head says.
    #[error("{LOG_FILE} ends after line {has}, where {by} says that there were {seq}: its end was cut off")]
    Truncated {
        /// Lines there are.
        has: u64,
        /// Lines there were.
        seq: u64,
        /// What says so.
        by: &'static str,
    },
    /// The line that a head names is another one.
    #[error(
        "{LOG_FILE}, line {line}: is another one than {by} says: the log was written anew from here or from before"
    )]
    Rewritten {
        /// Which.
        line: u64,
        /// What says so.
        by: &'static str,
    },
    /// There are lines that the signed head does not know.
    #[error("{LOG_FILE} has {has} lines, where {HEAD_FILE} says that there are {seq}: somebody else added some")]
    Added {
        /// Lines there are.
        has: u64,
        /// Lines the node wrote.
        seq: u64,
    },
    /// The signed head is missing or damaged.
    #[error("{HEAD_FILE}: {0}")]
    Head(String),
}

/// What a log was found to hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Scan {
    /// Its end.
    pub head: Head,
    /// The bytes of its whole lines.
    pub bytes: u64,
    /// The bytes behind them: a line that was not written to its end.
    pub torn_bytes: u64,
}

/// Reads a log from its first line on, checks its chain, and calls `each` with every line.
///
/// # Errors
/// [`Fault::Io`], or [`Fault::Line`] for the first line that does not hold.
pub fn scan(log: impl Read, mut each: impl FnMut(&AuditRecord, &str)) -> Result<Scan, Fault> {
    let mut log = BufReader::new(log);
    let mut scan = Scan { head: Head::NONE, bytes: 0, torn_bytes: 0 };
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        let read = (&mut log).take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes)? as u64;
        if read == 0 {
            return Ok(scan);
        }
        let line = scan.head.seq + 1;
        if bytes.last() != Some(&b'\n') {
            if read == LINE_BYTES_MAX {
                return Err(Fault::Line { line, why: "is longer than any line that a node writes".into() });
            }
            scan.torn_bytes = read;
            return Ok(scan);
        }
        let text = std::str::from_utf8(&bytes[..bytes.len() - 1]);
        let text = text.map_err(|_| Fault::Line { line, why: "is no text".into() })?;
        let record = AuditRecord::read(text, scan.head.seq, scan.head.hash);
        let record = record.map_err(|error| Fault::Line { line, why: error.to_string() })?;
        each(&record, text);
        scan.head = Head { seq: record.seq, hash: record.hash };
        scan.bytes += read;
    }
}

/// The head that the node signed.
///
/// # Errors
/// [`Fault::Head`] if there is none, or it is damaged or not `node`'s.
pub fn signed_head(folder: &Path, node: &NodeId) -> Result<SignedHead, Fault> {
    let bytes = std::fs::read(folder.join(HEAD_FILE)).map_err(|error| Fault::Head(error.to_string()))?;
    let head: SignedHead = serde_json::from_slice(&bytes).map_err(|error| Fault::Head(error.to_string()))?;
    if head.is_of(node) { Ok(head) } else { Err(Fault::Head("its signature is not this node's".into())) }
}

/// Checks the log in `folder`: its chain, the head that `node` signed, and `anchors`, heads that are known from elsewhere, each
/// with the words for where it is from.
///
/// # Errors
/// The first [`Fault`].
pub fn verify(folder: &Path, node: &NodeId, anchors: &[(Head, &'static str)]) -> Result<Scan, Fault> {
    let signed = signed_head(folder, node)?;
    let mut missed = Vec::new();
    let mut heads = vec![(signed.head, "the signed head")];
    heads.extend_from_slice(anchors);
    let found = scan(File::open(folder.join(LOG_FILE))?, |record, _| {
        for (head, by) in &heads {
            if head.seq == record.seq && head.hash != record.hash {
                missed.push(Fault::Rewritten { line: record.seq, by });
            }
        }
    })?;
    if let Some(fault) = missed.into_iter().next() {
        return Err(fault);
    }
    for (head, by) in heads {
        if head.seq > found.head.seq {
            return Err(Fault::Truncated { has: found.head.seq, seq: head.seq, by });
        }
    }
    if found.head.seq > signed.head.seq {
        return Err(Fault::Added { has: found.head.seq, seq: signed.head.seq });
    }
    Ok(found)
}
