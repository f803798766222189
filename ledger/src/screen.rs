//! The dear part of an entry's checks, done before the cheap part and on every core: signatures.
//! Invariant: what comes out says for each signature in an entry whether it holds, so that nobody asks again.

use std::num::NonZero;
use std::thread;

use crate::closing::Closing;
use crate::entry::{Action, Entry};
use crate::evidence::Offence;
use crate::signed::{Signed, SignedBytes, SignedError};
use crate::voucher::Voucher;

/// Fewer entries than this are not worth a second thread.
const THREAD_ENTRIES_MIN: usize = 16;
/// More threads than this are never started.
const THREADS_MAX: usize = 64;

/// A signed entry whose inner signatures were looked at too.
#[derive(Clone, Debug)]
pub struct Screened {
    entry: Signed<Entry>,
    inner: Inner,
}

/// What the signatures inside an entry show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inner {
    /// There are none.
    Plain,
    /// The voucher's or closing's signature holds, or does not.
    Holds(bool),
    /// What the evidence shows; nothing, if it does not hold together.
    Offence(Option<Offence>),
}

impl Screened {
    /// Verifies the entry's own signature and those inside of it.
    pub fn open(wire: SignedBytes) -> Result<Screened, SignedError> {
        Signed::open(wire).map(Screened::new)
    }

    /// Verifies the signatures inside of an entry whose own is known to hold.
    pub fn new(entry: Signed<Entry>) -> Screened {
        let inner = match &entry.value().action {
            Action::Settle { voucher, .. } => Inner::Holds(Signed::<Voucher>::open(voucher.clone()).is_ok()),
            Action::Close { closing } => Inner::Holds(Signed::<Closing>::open(closing.clone()).is_ok()),
            Action::Evidence { evidence } => Inner::Offence(evidence.offence(&entry.value().network)),
            Action::Mint { .. }
            | Action::Transfer { .. }
            | Action::Open { .. }
            | Action::Refund { .. }
            | Action::TopUp { .. }
            | Action::Bond { .. }
            | Action::Unbond { .. }
            | Action::PayoutRequest { .. }
            | Action::Burn { .. }
            | Action::PayoutReject { .. }
            | Action::Elect { .. } => Inner::Plain,
        };
        Screened { entry, inner }
    }

    /// An entry of a block that we have verified before: only what a decision needs is computed anew.
    pub(crate) fn trusted(entry: Signed<Entry>) -> Screened {
        if matches!(entry.value().action, Action::Settle { .. } | Action::Close { .. }) {
            return Screened { entry, inner: Inner::Holds(true) };
        }
        Screened::new(entry)
    }

    /// The entry.
    pub fn entry(&self) -> &Signed<Entry> {
        &self.entry
    }

    /// What the signatures inside show.
    pub(crate) fn inner(&self) -> Inner {
        self.inner
    }

    /// As [`Screened::open`] for many, on all cores; the answers are in the order of what was asked.
    pub fn open_all(wires: &[SignedBytes]) -> Vec<Result<Screened, SignedError>> {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let threads = cores.min(THREADS_MAX).min(wires.len() / THREAD_ENTRIES_MIN).max(1);
        if threads == 1 {
            return wires.iter().cloned().map(Screened::open).collect();
        }
        let parts = wires.chunks(wires.len().div_ceil(threads));
        thread::scope(|scope| {
            let open = |part: &[SignedBytes]| part.iter().cloned().map(Screened::open).collect::<Vec<_>>();
            let running: Vec<_> = parts.map(|part| scope.spawn(move || open(part))).collect();
            running.into_iter().flat_map(|part| part.join().expect("verifying does not panic")).collect()
        })
    }
}
