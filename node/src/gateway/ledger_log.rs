//! The books as lines for people: what each entry did, and how settlements were divided.
//! Invariant: every line comes from applying the entry again, so it says what the book did and not what the entry asked.

use serde_json::{Value, json};
use spillway_ledger::{Account, Applied, Book, CertifiedBlock, Digest, Entry, Genesis, Parts, SessionId, Signed};
use std::collections::VecDeque;

/// Lines kept; older ones are forgotten.
pub const LINES_MAX: usize = 100_000;
/// What an entry may be, as a line's `action` says it.
pub const KINDS: [&str; 14] = [
    "mint",
    "transfer",
    "open",
    "top_up",
    "settle",
    "close",
    "refund",
    "bond",
    "unbond",
    "payout_request",
    "burn",
    "payout_reject",
    "evidence",
    "elect",
];
/// The fields of a line that name an account.
const PARTIES: [&str; 10] =
    ["account", "from", "to", "consumer", "provider", "gateway", "validators", "treasury", "offender", "validator"];

/// Which lines are wanted; a field that is absent asks for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// The first height.
    pub from: u64,
    /// The last height.
    pub to: Option<u64>,
    /// An account that signed the entry, or gave, got or did something by it.
    pub account: Option<Account>,
    /// What the entry did; one of [`KINDS`].
    pub kind: Option<String>,
    /// The session it is about.
    pub session: Option<SessionId>,
    /// How many of the newest lines; without it, the oldest are given.
    pub limit: Option<usize>,
}

impl LogQuery {
    /// Whether a line is wanted.
    #[must_use]
    pub fn wants(&self, line: &Value) -> bool {
        let text = |field: &str| line.get(field).and_then(Value::as_str);
        let height = line.get("height").and_then(Value::as_u64).unwrap_or(0);
        if height < self.from || self.to.is_some_and(|to| height > to) {
            return false;
        }
        if self.kind.as_deref().is_some_and(|kind| text("action") != Some(kind)) {
            return false;
        }
        if self.session.is_some_and(|session| text("session") != Some(&session.0.to_string())) {
            return false;
        }
        let Some(account) = self.account.map(|account| account.to_string()) else { return true };
        PARTIES.iter().any(|field| text(field) == Some(&account))
    }

    /// Takes what is wanted of `lines`: at most `max`, in their order, and whether there were more.
    pub fn select<'a>(&self, lines: impl DoubleEndedIterator<Item = &'a Value>, max: usize) -> (Vec<Value>, bool) {
        let wanted = lines.filter(|line| self.wants(line));
        let take = self.limit.unwrap_or(max).min(max);
        let mut selected: Vec<&Value> = match self.limit {
            Some(_) => wanted.rev().take(take + 1).collect(),
            None => wanted.take(take + 1).collect(),
        };
        let more = selected.len() > take;
        selected.truncate(take);
        if self.limit.is_some() {
            selected.reverse();
        }
        (selected.into_iter().cloned().collect(), more)
    }
}

/// Reads blocks in their order and says what each entry did.
#[derive(Debug)]
pub struct Reader {
    book: Book,
    next_height: u64,
}

impl Reader {
    /// Before the first block, which has height 1.
    ///
    /// # Panics
    /// If the genesis is not valid.
    #[must_use]
    pub fn new(genesis: &Genesis) -> Self {
        Self { book: Book::new(genesis), next_height: 1 }
    }

    /// The height of the block that comes next.
    #[must_use]
    pub const fn next_height(&self) -> u64 {
        self.next_height
    }

    /// The book after the blocks read.
    pub fn book(&mut self) -> &mut Book {
        &mut self.book
    }

    /// Reads the next block; one of another height is left out. Blocks come from a verified copy.
    pub fn read(&mut self, block: CertifiedBlock) -> Vec<Value> {
        let header = block.block.header;
        if header.height != self.next_height {
            return Vec::new();
        }
        self.next_height += 1;
        self.book.begin_block(header.height, header.time_ms);
        let mut lines = Vec::with_capacity(block.block.entries.len());
        for (index, wire) in block.block.entries.into_iter().enumerate() {
            let Ok(entry) = Signed::<Entry>::open(wire) else { continue };
            let account = entry.value().account;
            let Ok(applied) = self.book.apply(&entry, header.height, header.time_ms) else { continue };
            let mut line = line(&applied);
            line["height"] = json!(header.height);
            line["entry"] = json!(index);
            line["time_ms"] = json!(header.time_ms);
            line["account"] = json!(account);
            if let Applied::Settled { session, .. } | Applied::Closed { session, .. } = &applied {
                // Whom the parts went to.
                line["gateway"] = json!(self.book.session(session).map(|state| state.gateway));
                line["validators"] = json!(self.book.genesis().validators);
                line["treasury"] = json!(self.book.genesis().treasury);
            }
            lines.push(line);
        }
        lines
    }
}

/// A settlement, as far as receipts are proven by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// Its block.
    pub height: u64,
    /// Its place in the block, from 0.
    pub entry: u64,
    /// The Merkle root of the receipts that it pays for.
    pub receipts: Digest,
}

/// A book that is applied along and keeps what each entry did.
#[derive(Debug)]
pub struct LedgerLog {
    reader: Reader,
    lines: VecDeque<Value>,
}

impl LedgerLog {
    /// Before the first block, which has height 1.
    ///
    /// # Panics
    /// If the genesis is not valid.
    #[must_use]
    pub fn new(genesis: &Genesis) -> Self {
        Self { reader: Reader::new(genesis), lines: VecDeque::new() }
    }

    /// The height of the block that comes next.
    #[must_use]
    pub const fn next_height(&self) -> u64 {
        self.reader.next_height()
    }

    /// Adds the next block; one of another height is left out. Blocks come from this node's own, verified copy.
    pub fn push(&mut self, block: CertifiedBlock) {
        for line in self.reader.read(block) {
            self.lines.push_back(line);
            if self.lines.len() > LINES_MAX {
                self.lines.pop_front();
            }
        }
    }

    /// The lines that are wanted, at most `max`, and whether there were more.
    #[must_use]
    pub fn lines(&self, query: &LogQuery, max: usize) -> (Vec<Value>, bool) {
        query.select(self.lines.iter(), max)
    }

    /// The settlements of a session among the lines kept, oldest first.
    #[must_use]
    pub fn settlements(&self, session: &SessionId) -> Vec<Settlement> {
        let session = session.0.to_string();
        let of = |line: &Value| {
            let number = |field: &str| line.get(field).and_then(Value::as_u64);
            let text = |field: &str| line.get(field).and_then(Value::as_str);
            let (Some("settle" | "close"), Some(of)) = (text("action"), text("session")) else { return None };
            let receipts = text("receipts")?.parse().ok()?;
            let settlement = Settlement { height: number("height")?, entry: number("entry")?, receipts };
            (of == session).then_some(settlement)
        };
        self.lines.iter().filter_map(of).collect()
    }
}

/// Amounts are micro-credits, ids hexadecimal.
fn line(applied: &Applied) -> Value {
    match applied {
        Applied::Minted { to, amount, reference } => {
            json!({"action": "mint", "to": to, "amount_micro": amount, "reference": reference})
        }
        Applied::Transferred { from, to, amount } => {
            json!({"action": "transfer", "from": from, "to": to, "amount_micro": amount})
        }
        Applied::Opened { session, consumer, state } => json!({
            "action": "open",
            "session": session.0,
            "consumer": consumer,
            "provider": state.provider,
            "to": state.provider,
            "amount_micro": state.deposit,
            "expires_ms": state.expires_ms,
        }),
        Applied::Settled { session, provider, consumer, claim, gross, parts, usage, receipts, last, change } => json!({
            "action": "settle",
            "session": session.0,
            "consumer": consumer,
            "provider": provider,
            "to": provider,
            "amount_micro": gross,
            "gross_micro": gross,
            "claim_micro": claim,
            "parts": shares(parts),
            "input": usage.input,
            "output": usage.output,
            "receipts": receipts,
            "last": last,
            "change_micro": change,
        }),
        Applied::Refunded { session, consumer, amount } => json!({
            "action": "refund",
            "session": session.0,
            "consumer": consumer,
            "to": consumer,
            "amount_micro": amount,
        }),
        Applied::ToppedUp { session, consumer, amount, deposit } => json!({
            "action": "top_up",
            "session": session.0,
            "consumer": consumer,
            "amount_micro": amount,
            "deposit_micro": deposit,
        }),
        Applied::Closed { session, provider, consumer, total, gross, parts, usage, receipts, change } => json!({
            "action": "close",
            "session": session.0,
            "consumer": consumer,
            "provider": provider,
            "to": provider,
            "amount_micro": gross,
            "gross_micro": gross,
            "claim_micro": total,
            "parts": shares(parts),
            "input": usage.input,
            "output": usage.output,
            "receipts": receipts,
            "last": true,
            "change_micro": change,
        }),
        Applied::Bonded { account, amount } => json!({"action": "bond", "from": account, "amount_micro": amount}),
        Applied::Unbonding { account, amount, due_ms } => {
            json!({"action": "unbond", "to": account, "amount_micro": amount, "due_ms": due_ms})
        }
        Applied::PayoutRequested { payout, state } => json!({
            "action": "payout_request",
            "payout": payout,
            "from": state.account,
            "amount_micro": state.amount,
            "payee": state.payee,
        }),
        Applied::Burned { payout, account, amount, reference } => json!({
            "action": "burn",
            "payout": payout,
            "from": account,
            "amount_micro": amount,
            "reference": reference,
        }),
        Applied::PayoutRejected { payout, account, amount, reason } => json!({
            "action": "payout_reject",
            "payout": payout,
            "to": account,
            "amount_micro": amount,
            "reason": reason,
        }),
        Applied::Punished { offender, reporter, offence, slashed, reward, removed } => json!({
            "action": "evidence",
            "offender": offender,
            "to": reporter,
            "offence": offence,
            "amount_micro": slashed,
            "reward_micro": reward,
            "removed": removed,
        }),
        Applied::Elected { voter, validator, member, at, decided } => json!({
            "action": "elect",
            "voter": voter,
            "validator": validator,
            "member": member,
            "at": at,
            "decided": decided,
        }),
    }
}

fn shares(parts: &Parts) -> Value {
    json!({
        "provider": parts.provider,
        "gateway": parts.gateway,
        "validators": parts.validators,
        "treasury": parts.treasury,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use spillway_ledger::SecretKey;

    fn account(seed: u8) -> Account {
        SecretKey::from_bytes(&[seed; 32]).account()
    }

    fn session(seed: u8) -> SessionId {
        SessionId(Digest::of("test", &[&[seed]]))
    }

    /// Five lines, told apart by their heights.
    fn lines() -> Vec<Value> {
        vec![
            json!({"height": 1, "action": "mint", "account": account(1), "to": account(2)}),
            json!({"height": 2, "action": "open", "account": account(2), "session": session(1), "provider": account(3)}),
            json!({"height": 3, "action": "settle", "account": account(3), "session": session(1), "consumer": account(2)}),
            json!({"height": 4, "action": "settle", "account": account(3), "session": session(2), "consumer": account(4)}),
            json!({"height": 4, "action": "transfer", "account": account(3), "from": account(3), "to": account(1)}),
        ]
    }

    #[test]
    fn lines_are_selected_by_every_field() {
        let all = LogQuery::default;
        // The query, the most lines; the heights told, and whether there were more.
        let cases: Vec<(LogQuery, usize, &[u64], bool)> = vec![
            (all(), 9, &[1, 2, 3, 4, 4], false),
            (all(), 2, &[1, 2], true),
            (LogQuery { limit: Some(2), ..all() }, 9, &[4, 4], true),
            (LogQuery { limit: Some(5), ..all() }, 9, &[1, 2, 3, 4, 4], false),
            (LogQuery { limit: Some(0), ..all() }, 9, &[], true),
            (LogQuery { limit: Some(usize::MAX), ..all() }, 3, &[3, 4, 4], true),
            (LogQuery { from: 2, to: Some(3), ..all() }, 9, &[2, 3], false),
            (LogQuery { from: 5, ..all() }, 9, &[], false),
            (LogQuery { kind: Some("settle".into()), ..all() }, 9, &[3, 4], false),
            (LogQuery { kind: Some("settle".into()), limit: Some(1), ..all() }, 9, &[4], true),
            (LogQuery { session: Some(session(1)), ..all() }, 9, &[2, 3], false),
            (LogQuery { account: Some(account(1)), ..all() }, 9, &[1, 4], false),
            (LogQuery { account: Some(account(2)), ..all() }, 9, &[1, 2, 3], false),
            (LogQuery { account: Some(account(3)), from: 3, ..all() }, 9, &[3, 4, 4], false),
            (LogQuery { account: Some(account(9)), ..all() }, 9, &[], false),
        ];
        for (query, max, heights, more) in cases {
            let (told, cut) = query.select(lines().iter(), max);
            let told: Vec<u64> = told.iter().filter_map(|line| line["height"].as_u64()).collect();
            assert_eq!((told.as_slice(), cut), (heights, more), "{query:?}");
        }
    }
}
