//! Signatures that were verified already, for all machines of a world.
//! Invariant: what is remembered was verified once, byte for byte; nothing else opens.

use spillway_ledger::{Digest, Signed, SignedBytes, SignedError};
use spillway_protocol::Offer;
use spillway_protocol::discovery::{Notice, Opener, Verify};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

#[derive(Default)]
struct Verified {
    notices: BTreeMap<Digest, Arc<Signed<Notice>>>,
    offers: BTreeMap<Digest, Arc<Signed<Offer>>>,
}

/// A handle to what is remembered.
#[derive(Clone, Default)]
pub(super) struct Memo(Rc<RefCell<Verified>>);

impl Memo {
    /// Forgets what no machine holds any more.
    pub(super) fn tidy(&self) {
        let mut verified = self.0.borrow_mut();
        verified.notices.retain(|_, notice| Arc::strong_count(notice) > 1);
        verified.offers.retain(|_, offer| Arc::strong_count(offer) > 1);
    }
}

impl Opener for Memo {
    fn notice(&mut self, wire: SignedBytes) -> Result<Arc<Signed<Notice>>, SignedError> {
        let digest = wire.digest();
        if let Some(notice) = self.0.borrow().notices.get(&digest) {
            return Ok(Arc::clone(notice));
        }
        let notice = Verify.notice(wire)?;
        self.0.borrow_mut().notices.insert(digest, Arc::clone(&notice));
        Ok(notice)
    }

    fn offer(&mut self, wire: SignedBytes) -> Result<Arc<Signed<Offer>>, SignedError> {
        let digest = wire.digest();
        if let Some(offer) = self.0.borrow().offers.get(&digest) {
            return Ok(Arc::clone(offer));
        }
        let offer = Verify.offer(wire)?;
        self.0.borrow_mut().offers.insert(digest, Arc::clone(&offer));
        Ok(offer)
    }
}
