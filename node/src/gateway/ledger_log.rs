//! The books as lines for people: what each entry did, and how settlements were divided.
//! Invariant: every line comes from applying the entry again, so it says what the book did and not what the entry asked.

use serde_json::{Value, json};
use spillway_ledger::{Applied, Book, CertifiedBlock, Entry, Genesis, Parts, Signed};
use std::collections::VecDeque;

/// Lines kept; older ones are forgotten.
pub const LINES_MAX: usize = 100_000;

/// A book that is applied along and keeps what each entry did.
#[derive(Debug)]
pub struct LedgerLog {
    book: Book,
    next_height: u64,
    lines: VecDeque<(u64, Value)>,
}

impl LedgerLog {
    /// Before the first block, which has height 1.
    #[must_use]
    pub fn new(genesis: &Genesis) -> Self {
        Self { book: Book::new(genesis), next_height: 1, lines: VecDeque::new() }
    }

    /// The height of the block that comes next.
    #[must_use]
    pub const fn next_height(&self) -> u64 {
        self.next_height
    }

    /// Adds the next block; one of another height is left out. Blocks come from this node's own, verified copy.
    pub fn push(&mut self, block: CertifiedBlock) {
        let header = &block.block.header;
        if header.height != self.next_height {
            return;
        }
        self.next_height += 1;
        for wire in block.block.entries {
            let Ok(entry) = Signed::<Entry>::open(wire) else { continue };
            let account = entry.value().account;
            let Ok(applied) = self.book.apply(&entry, header.height, header.time_ms) else { continue };
            let mut line = line(&applied);
            line["height"] = json!(header.height);
            line["time_ms"] = json!(header.time_ms);
            line["account"] = json!(account);
            self.lines.push_back((header.height, line));
            if self.lines.len() > LINES_MAX {
                self.lines.pop_front();
            }
        }
    }

    /// The lines from height `from` on, at most `max`.
    #[must_use]
    pub fn lines(&self, from: u64, max: usize) -> Vec<Value> {
        let start = self.lines.partition_point(|(height, _)| *height < from);
        self.lines.range(start..).take(max).map(|(_, line)| line.clone()).collect()
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
