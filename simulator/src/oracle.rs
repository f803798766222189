//! What every honest model answers: a text that follows from the request alone.
//! Invariant: the same body gives the same answer everywhere, so that text delivered by any mix of providers can be
//! checked byte for byte.

/// The last bytes of a request body, which tell the oracle what to do. All before is padding up to the prompt's size, the same
/// in every body: long prompts share their beginning.
pub const HEADER_BYTES: usize = 32;

/// The byte that a model which is not the one asked for says all the time. No answer has it.
pub const OTHER: u8 = b'#';

/// Whether `text` is `expected`, but for bytes of another model.
#[must_use]
pub fn agrees(text: &[u8], expected: &[u8]) -> bool {
    text.len() == expected.len() && text.iter().zip(expected).all(|(said, should)| said == should || *said == OTHER)
}

/// What a backend makes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// This text, whole.
    Text(Vec<u8>),
    /// HTTP status 400, at every backend.
    Rejected,
}

/// Makes a request body of `prompt_bytes` (at least [`HEADER_BYTES`]) whose answer has `answer_bytes`.
#[must_use]
pub fn body(prompt_bytes: usize, answer_bytes: u32, name: [u8; 16], rejected: bool) -> Vec<u8> {
    let mut body = vec![b'x'; prompt_bytes.saturating_sub(HEADER_BYTES)];
    body.extend_from_slice(b"ask:");
    body.push(if rejected { b'!' } else { b'.' });
    body.extend_from_slice(&[b' '; 7]);
    body.extend_from_slice(&answer_bytes.to_le_bytes());
    body.extend_from_slice(&name);
    body
}

/// What an honest backend answers to `body`.
#[must_use]
pub fn answer(body: &[u8]) -> Answer {
    let Some(header) = body.last_chunk::<HEADER_BYTES>().filter(|header| header.starts_with(b"ask:")) else {
        return Answer::Rejected;
    };
    if header[4] == b'!' {
        return Answer::Rejected;
    }
    let length = u32::from_le_bytes([header[12], header[13], header[14], header[15]]) as usize;
    // Letters of one to four bytes each, so that a unit is a byte and not a character.
    const LETTERS: [&str; 16] = ["a", "e", "i", "o", "n", "r", "s", "t", " ", " ", ".", "ä", "é", "—", "水", "🜂"];
    let mut stream = blake3::Hasher::new().update(body).finalize_xof();
    let mut text = Vec::with_capacity(length + 4);
    let mut block = [0_u8; 64];
    while text.len() < length {
        stream.fill(&mut block);
        for byte in block {
            let letter = LETTERS[usize::from(byte) % LETTERS.len()];
            if text.len() + letter.len() <= length {
                text.extend_from_slice(letter.as_bytes());
            }
        }
    }
    Answer::Text(text)
}

/// A backend's event that carries `text`. An event without text stands for a role or usage event.
#[must_use]
pub fn event(text: &[u8]) -> Vec<u8> {
    let mut bytes = b"data: ".to_vec();
    bytes.extend_from_slice(text);
    bytes
}

/// The text within an event: the one rule by which consumer and provider count.
#[must_use]
pub fn text_of(event: &[u8]) -> &[u8] {
    event.strip_prefix(b"data: ").unwrap_or_default()
}

/// How much of `text`, from `from`, makes a chunk of about `bytes`: up to the next border between characters.
#[must_use]
pub fn chunk_end(text: &[u8], from: usize, bytes: usize) -> usize {
    let mut end = (from + bytes.max(1)).min(text.len());
    while end < text.len() && text[end] & 0b1100_0000 == 0b1000_0000 {
        end += 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_has_the_length_asked_for_and_is_text() {
        for length in [0, 1, 2, 63, 64, 1000] {
            let Answer::Text(text) = answer(&body(100, length, [7; 16], false)) else { panic!("rejected") };
            assert_eq!(text.len(), length as usize);
            assert!(std::str::from_utf8(&text).is_ok());
        }
        assert_ne!(answer(&body(100, 64, [7; 16], false)), answer(&body(100, 64, [8; 16], false)));
        assert_eq!(answer(&body(100, 64, [7; 16], true)), Answer::Rejected);
        assert_eq!(answer(b"short"), Answer::Rejected);
    }

    #[test]
    fn chunks_put_together_are_the_text() {
        let Answer::Text(text) = answer(&body(40, 500, [1; 16], false)) else { panic!("rejected") };
        for bytes in [0, 1, 3, 17, 600] {
            let (mut from, mut whole) = (0, Vec::new());
            while from < text.len() {
                let end = chunk_end(&text, from, bytes);
                assert!(std::str::from_utf8(&text[from..end]).is_ok());
                whole.extend_from_slice(text_of(&event(&text[from..end])));
                from = end;
            }
            assert_eq!(whole, text);
        }
    }
}
