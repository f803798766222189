//! Puts this node's own entries on the ledger.
//! Invariant: the account's entries go one after the other, so that each has the right nonce; an entry is tried until it
//! is in this node's copy, or refused.

use super::group::{Answer, Submission};
use super::handle::{Books, Writer};
use super::wire::{LedgerCall, LedgerReply, Remedy};
use crate::network::CallKind;
use spillway_ledger::{Action, CodecError, Entry, NetworkId, SecretKey, Signed, decode, encode};
use std::time::Duration;
use tokio::sync::{Mutex, oneshot};

/// How many blocks an entry may wait; half of what the ledger allows, since this node's copy may be behind.
const LIFETIME_HEIGHTS: u64 = 5_000;
/// How long one try may take.
const TRY_WAIT: Duration = Duration::from_secs(10);
/// Between two tries, at first; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Between two tries, at most.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How often an entry is signed anew, for another nonce or expiry, before it counts as refused.
const SIGNED_MAX: u32 = 8;

/// Why an entry is not on the ledger.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryRefused {
    /// The ledger says no, for good; its words.
    #[error("the ledger refuses the entry: {0}")]
    Ledger(String),
    /// The entry breaks the rules of its own format; nothing was sent.
    #[error("the entry is not well-formed: {0}")]
    Malformed(CodecError),
    /// The books were stopped first. The entry may be in, or get in when it is submitted again.
    #[error("the books are stopped")]
    Stopped,
}

/// Who submits.
pub(super) struct Account {
    network: NetworkId,
    key: SecretKey,
    /// Held by whoever has an entry under way.
    turn: Mutex<()>,
}

impl Account {
    pub(super) fn new(network: NetworkId, key: SecretKey) -> Self {
        Self { network, key, turn: Mutex::new(()) }
    }

    #[must_use]
    pub(super) const fn network(&self) -> NetworkId {
        self.network
    }

    pub(super) fn account(&self) -> spillway_ledger::Account {
        self.key.account()
    }

    fn sign(
        &self,
        business: [u8; 16],
        action: &Action,
        nonce: u64,
        height: u64,
    ) -> Result<Signed<Entry>, EntryRefused> {
        let entry = Entry {
            network: self.network,
            account: self.key.account(),
            nonce,
            expires_height: height.saturating_add(LIFETIME_HEIGHTS),
            business,
            action: action.clone(),
        };
        Signed::try_sign(entry, &self.key).map_err(EntryRefused::Malformed)
    }
}

impl Books {
    /// Puts an entry on the ledger, for this node's account; returns the height of its block once it is in this node's own
    /// copy. `business` names what the entry is for: with the same one, however often and after whatever crash, it is done
    /// once. Waits as long as the authority cannot be reached.
    ///
    /// # Errors
    /// As [`EntryRefused`] says.
    pub async fn submit(&self, business: [u8; 16], action: Action) -> Result<u64, EntryRefused> {
        let mut stopping = self.0.stop.subscribe();
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => Err(EntryRefused::Stopped),
            done = self.try_until_in(business, action) => done,
        }
    }

    async fn try_until_in(&self, business: [u8; 16], action: Action) -> Result<u64, EntryRefused> {
        let account = &self.0.submitter;
        let _turn = account.turn.lock().await;
        let (nonce, height) = self.read(|book| (book.nonce(&account.account()), book.height()));
        let mut entry = account.sign(business, &action, nonce, height)?;
        let mut signed = 1;
        let mut pause = PAUSE_MIN;
        loop {
            match self.ask(&entry).await {
                Some(LedgerReply::In { height }) => {
                    self.0.news.notify_one();
                    let mut reached = self.0.height.clone();
                    return match reached.wait_for(|reached| *reached >= height).await {
                        Ok(_) => Ok(height),
                        Err(_) => Err(EntryRefused::Stopped),
                    };
                }
                Some(LedgerReply::Refused { why, remedy }) => {
                    let value = entry.value();
                    let again = match remedy {
                        Remedy::None => None,
                        Remedy::Nonce(nonce) => Some((nonce, value.expires_height.saturating_sub(LIFETIME_HEIGHTS))),
                        Remedy::Height(height) => Some((value.nonce, height)),
                    };
                    let Some((nonce, height)) = again.filter(|_| signed < SIGNED_MAX) else {
                        return Err(EntryRefused::Ledger(why));
                    };
                    signed += 1;
                    entry = account.sign(business, &action, nonce, height)?;
                }
                // It may be in or not: the same bytes again find out.
                Some(LedgerReply::Busy | LedgerReply::NotAuthority | LedgerReply::Blocks(_)) | None => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    /// Submits once; `None` if there was no answer.
    async fn ask(&self, entry: &Signed<Entry>) -> Option<LedgerReply> {
        match &self.0.writer {
            Writer::Here(writer) => {
                let (answer, answered) = oneshot::channel();
                writer.send(Submission { entry: entry.to_wire(), answer: Answer::Here(answer) }).await.ok()?;
                answered.await.ok()
            }
            Writer::There(authorities) => {
                let request = encode(&LedgerCall::Submit(entry.to_wire()));
                let asked = authorities.present();
                let answer = self.0.network.call(asked, &[], CallKind::Ledger, request, TRY_WAIT).await;
                let reply = answer.ok().and_then(|bytes| decode(&bytes).ok());
                if matches!(reply, None | Some(LedgerReply::NotAuthority)) {
                    authorities.turn_from(asked);
                }
                reply
            }
        }
    }
}
