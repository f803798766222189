//! What the books say was paid: a replay of their blocks that adds up every settlement.
//! Invariant: a [`Statement`] comes only from blocks whose every entry was applied to a book anew.

use anyhow::{Context, Result, bail};
use spillway_ledger::{Account, Action, Applied, Book, CertifiedBlock, Entry, Genesis, SessionId, Signed, Voucher};
use std::collections::BTreeMap;

/// One session, as far as it was settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionLine {
    /// Who paid.
    pub consumer: Account,
    /// Who was paid.
    pub provider: Account,
    /// What was settled, in micro-credits.
    pub gross: u64,
    /// How often.
    pub settlements: u64,
    /// The number of the last voucher that was redeemed; the consumer counts what it signs from 1.
    pub voucher: u64,
}

/// Every settlement of a ledger, in micro-credits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statement {
    /// Entries in all.
    pub entries: u64,
    /// What consumers paid.
    pub gross: u64,
    /// What went to who did the work.
    pub provider: u64,
    /// What went to the gateways that brought it.
    pub gateway: u64,
    /// What went to the validators' pool.
    pub validators: u64,
    /// What went to the treasury.
    pub treasury: u64,
    /// Sessions by id.
    pub sessions: BTreeMap<SessionId, SessionLine>,
}

impl Statement {
    /// Replays `blocks` on the book that `genesis` founds.
    ///
    /// # Errors
    /// The first entry that does not hold.
    pub fn replay(genesis: &Genesis, blocks: &[CertifiedBlock]) -> Result<Self> {
        let mut book = Book::new(genesis);
        let mut statement = Self::default();
        for certified in blocks {
            let header = &certified.block.header;
            for bytes in &certified.block.entries {
                let entry: Signed<Entry> = Signed::open(bytes.clone())
                    .with_context(|| format!("block {}: an entry's signature", header.height))?;
                let applied = book
                    .apply(&entry, header.height, header.time_ms)
                    .with_context(|| format!("block {}: an entry by {}", header.height, entry.value().account))?;
                statement.entries += 1;
                statement.add(&applied)?;
                if let Action::Settle { voucher, .. } = &entry.value().action {
                    let voucher: Signed<Voucher> = Signed::open(voucher.clone())
                        .with_context(|| format!("block {}: a voucher's signature", header.height))?;
                    let voucher = voucher.value();
                    if let Some(line) = statement.sessions.get_mut(&voucher.session) {
                        line.voucher = line.voucher.max(voucher.sequence);
                    }
                }
            }
        }
        Ok(statement)
    }

    fn add(&mut self, applied: &Applied) -> Result<()> {
        match applied {
            Applied::Opened { session, state, .. } => {
                let line = SessionLine {
                    consumer: state.consumer,
                    provider: state.provider,
                    gross: 0,
                    settlements: 0,
                    voucher: 0,
                };
                self.sessions.insert(*session, line);
            }
            Applied::Settled { session, gross, parts, .. } | Applied::Closed { session, gross, parts, .. } => {
                let Some(line) = self.sessions.get_mut(session) else { bail!("a settlement of an unknown session") };
                line.gross += gross.micro();
                line.settlements += 1;
                self.gross += gross.micro();
                self.provider += parts.provider.micro();
                self.gateway += parts.gateway.micro();
                self.validators += parts.validators.micro();
                self.treasury += parts.treasury.micro();
            }
            Applied::Minted { .. }
            | Applied::Transferred { .. }
            | Applied::Refunded { .. }
            | Applied::ToppedUp { .. }
            | Applied::Bonded { .. }
            | Applied::Unbonding { .. }
            | Applied::PayoutRequested { .. }
            | Applied::Burned { .. }
            | Applied::PayoutRejected { .. }
            | Applied::Punished { .. }
            | Applied::Elected { .. } => {}
        }
        Ok(())
    }

    /// Whether the parts sum to what was paid, and the provider's is at least 70 % of it.
    ///
    /// # Errors
    /// Which rule is broken, in numbers.
    pub fn check(&self) -> Result<()> {
        let parts = self.provider + self.gateway + self.validators + self.treasury;
        if parts != self.gross {
            bail!("the parts sum to {parts} micro-credits, not to the {} that were paid", self.gross);
        }
        if u128::from(self.provider) * 10 < u128::from(self.gross) * 7 {
            bail!("providers got {} of {} micro-credits, less than 70 %", self.provider, self.gross);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Statement;

    #[test]
    fn a_statement_holds_if_its_parts_do() {
        // gross, provider, gateway, validators, treasury; what is wrong.
        let cases: &[([u64; 5], Option<&str>)] = &[
            ([0, 0, 0, 0, 0], None),
            ([10, 7, 1, 1, 1], None),
            ([1, 1, 0, 0, 0], None),
            ([10, 7, 1, 1, 0], Some("sum to 9")),
            ([10, 8, 1, 1, 1], Some("sum to 11")),
            ([10, 6, 2, 1, 1], Some("less than 70 %")),
        ];
        for ([gross, provider, gateway, validators, treasury], wrong) in cases.iter().copied() {
            let statement = Statement { gross, provider, gateway, validators, treasury, ..Statement::default() };
            let said = statement.check().err().map(|error| error.to_string());
            match (wrong, &said) {
                (None, None) => {}
                (Some(wrong), Some(said)) => assert!(said.contains(wrong), "{said}"),
                (None, Some(_)) | (Some(_), None) => panic!("{statement:?}: {said:?}"),
            }
        }
    }
}
