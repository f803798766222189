//! The laws that every decoder keeps, whatever the bytes.

use std::fmt::Debug;

use spillway_ledger::{Document, SecretKey, Signed, decode, encode};

use crate::watched;

/// What the codec may set aside for a list before its elements are seen to be there: `wincode`'s limit. Bytes and text
/// are seen to be there first.
pub const LIST_BYTES_MAX: usize = 4 << 20;

/// The most memory that decoding `bytes` may take at once: some times their number (the value, its encoding once more to
/// compare, what is signed), a little for errors, and room for each list that can be open inside another.
pub const fn memory_max(bytes: usize, lists: usize) -> usize {
    8 * bytes + 4096 + lists * LIST_BYTES_MAX
}

/// Decodes hostile bytes, in which up to `lists` lists can be open at once. What decodes is what its encoding decodes to,
/// and keeps its own rules.
pub fn document<T: Document + PartialEq + Debug>(bytes: &[u8], lists: usize) -> Option<T> {
    let document = watched(T::DOMAIN, memory_max(bytes.len(), lists), || decode::<T>(bytes)).ok()?;
    assert!(bytes.len() <= T::BYTES_MAX, "a document is within its limit");
    assert_eq!(encode(&document), bytes, "a document has one encoding");
    assert_eq!(document.check(), Ok(()), "a decoded document keeps its rules");
    Some(document)
}

/// Opens a hostile envelope, and decodes the same bytes as what would lie inside of one. What decodes so is signed by
/// `key`, and must come out of its envelope as it went in: the fuzzer cannot sign, and would never get that far.
pub fn signed<T: Document + PartialEq + Debug + Clone>(
    bytes: &[u8],
    lists: usize,
    key: &SecretKey,
) -> Option<Signed<T>> {
    let opened = watched(T::DOMAIN, memory_max(bytes.len(), lists), || Signed::<T>::from_bytes(bytes));
    if let Ok(opened) = opened {
        assert_eq!(opened.to_bytes(), bytes, "an envelope has one encoding");
        assert_eq!(encode(opened.value()), opened.bytes(), "what was signed is the document's encoding");
        let _ids = (opened.digest(), opened.wire().digest());
        return Some(opened);
    }
    let document = document::<T>(bytes, lists)?;
    let ours = Signed::sign(document.clone(), key);
    let wire = ours.to_bytes();
    let back = Signed::<T>::from_bytes(&wire).expect("what we sign, we open");
    assert_eq!((&back, back.value(), back.bytes()), (&ours, &document, bytes));
    assert_eq!(back.digest(), ours.digest());
    Some(ours)
}
