//! How a value lies on the disk: its version, its age and a checksum before it.
//! Invariant: what opens is what was sealed, for that very key.

/// The version, the stamp, the checksum.
const HEAD_BYTES: usize = 1 + 8 + SUM_BYTES;
const SUM_BYTES: usize = 16;
/// Changes with the form of a record: one of another version is a miss.
const VERSION: u8 = 1;

/// A value and when it was put: a later one has a higher stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) stamp: u64,
    pub(crate) value: &'a [u8],
}

impl<'a> Record<'a> {
    pub(crate) fn seal(&self, key: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + self.value.len());
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.stamp.to_le_bytes());
        bytes.extend_from_slice(&self.sum(key));
        bytes.extend_from_slice(self.value);
        bytes
    }

    /// `None` for anything that [`Record::seal`] did not give for this key.
    pub(crate) fn open(key: &[u8], bytes: &'a [u8]) -> Option<Record<'a>> {
        let (version, rest) = bytes.split_first()?;
        let (stamp, rest) = rest.split_first_chunk()?;
        let (sum, value) = rest.split_first_chunk::<SUM_BYTES>()?;
        let record = Record { stamp: u64::from_le_bytes(*stamp), value };
        (*version == VERSION && record.sum(key) == *sum).then_some(record)
    }

    fn sum(&self, key: &[u8]) -> [u8; SUM_BYTES] {
        let mut hasher = blake3::Hasher::new_derive_key("spillway/cache/record/1");
        hasher.update(&(key.len() as u64).to_le_bytes());
        hasher.update(key);
        hasher.update(&self.stamp.to_le_bytes());
        hasher.update(self.value);
        let mut sum = [0; SUM_BYTES];
        sum.copy_from_slice(&hasher.finalize().as_bytes()[..SUM_BYTES]);
        sum
    }
}
