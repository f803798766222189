//! A server's answer byte for byte, as the parts it travels in: first its content type, then its bytes.
//! Invariant: each part says by its first byte what it is, so that it is measured without the parts before it.

use super::endpoint::{BYTES_PER_UNIT, Measure};
use spillway_protocol::wire::CHUNK_BYTES_MAX;

/// Most bytes of an answer in one part.
pub const BODY_BYTES_MAX: usize = CHUNK_BYTES_MAX - 1;
/// Longest content type.
const TYPE_BYTES_MAX: usize = 128;

const HEAD: u8 = b'h';
const BODY: u8 = b'b';

/// A part of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// What the bytes are; the first part, and only that.
    Head(&'a str),
    /// The next bytes.
    Body(&'a [u8]),
}

impl<'a> Part<'a> {
    /// Reads a part; `None` if it is none.
    #[must_use]
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        match bytes.split_first()? {
            (&HEAD, name) if name.len() <= TYPE_BYTES_MAX => {
                let name = std::str::from_utf8(name).ok()?;
                name.bytes().all(|byte| matches!(byte, b' '..=b'~')).then_some(Self::Head(name))
            }
            (&BODY, bytes) => Some(Self::Body(bytes)),
            _ => None,
        }
    }
}

/// The part that says what the bytes are; what cannot be a content type becomes `application/octet-stream`.
#[must_use]
pub fn head(content_type: &str) -> Vec<u8> {
    let bytes = [[HEAD].as_slice(), content_type.as_bytes()].concat();
    if Part::read(&bytes).is_some() { bytes } else { head("application/octet-stream") }
}

/// A part of at most [`BODY_BYTES_MAX`] bytes.
#[must_use]
pub fn body(bytes: &[u8]) -> Vec<u8> {
    [[BODY].as_slice(), bytes].concat()
}

/// What a part delivers: as many bytes as it has work units.
#[must_use]
pub fn text_of_part(measure: Measure, bytes: &[u8]) -> Vec<u8> {
    match (Part::read(bytes), measure) {
        (Some(Part::Head(_)), _) => vec![HEAD],
        (Some(Part::Body(bytes)), Measure::Bytes) => bytes[..bytes.len().div_ceil(BYTES_PER_UNIT)].to_vec(),
        (Some(Part::Body(_)), Measure::Request) | (None, _) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_apart_and_measured() {
        let cases: [(Vec<u8>, Option<Part<'_>>, usize, usize); 8] = [
            (head("audio/mpeg"), Some(Part::Head("audio/mpeg")), 1, 1),
            (head("a\r\nset-cookie: x"), Some(Part::Head("application/octet-stream")), 1, 1),
            (body(b""), Some(Part::Body(b"")), 0, 0),
            (body(b"{\n\xff"), Some(Part::Body(b"{\n\xff")), 0, 1),
            (body(&[7; 129]), Some(Part::Body(&[7; 129])), 0, 3),
            (Vec::new(), None, 0, 0),
            (b"{}".to_vec(), None, 0, 0),
            (b"h\n".to_vec(), None, 0, 0),
        ];
        for (bytes, part, request, answer) in &cases {
            assert_eq!(Part::read(bytes), *part);
            let units = |measure| text_of_part(measure, bytes).len();
            assert_eq!((units(Measure::Request), units(Measure::Bytes)), (*request, *answer), "{part:?}");
        }
        assert_eq!(body(&[0; BODY_BYTES_MAX]).len(), CHUNK_BYTES_MAX);
    }
}
