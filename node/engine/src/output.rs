//! Turns the bytes of tokens into text that may be sent: whole characters only, and nothing of a stop string.
//! Invariant: what was let out never has to be taken back, and at most a stop string's length plus a character is held.

use crate::generation::TokenInfo;

/// What may be sent now.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Release {
    /// The text.
    pub(crate) text: String,
    /// The tokens whose last byte is in the text or before it.
    pub(crate) tokens: Vec<TokenInfo>,
    /// Whether a stop string ended the answer.
    pub(crate) stopped: bool,
}

/// Holds back what may not be sent yet.
pub(crate) struct Output {
    stops: Vec<Vec<u8>>,
    /// The end of what was sent, as far as a stop string could reach into it, and after that what is held.
    buffer: Vec<u8>,
    /// How much of `buffer` was sent.
    sent: usize,
    /// Held tokens with the place in `buffer` where each begins and ends.
    tokens: Vec<(TokenInfo, usize, usize)>,
}

impl Output {
    /// For an answer that ends at any of `stops`; `already` was sent before.
    pub(crate) fn new(stops: &[String], already: &str) -> Self {
        let mut output = Self {
            stops: stops.iter().map(|s| s.as_bytes().to_vec()).collect(),
            buffer: already.as_bytes().to_vec(),
            sent: already.len(),
            tokens: Vec::new(),
        };
        output.forget();
        output
    }

    /// Adds one token, of which the first `skip` bytes were sent before this answer was continued here.
    pub(crate) fn push(&mut self, token: TokenInfo, skip: usize) -> Release {
        let skip = skip.min(token.bytes.len());
        let begin = self.buffer.len().saturating_sub(skip);
        self.buffer.extend_from_slice(&token.bytes[skip..]);
        self.tokens.push((token, begin, self.buffer.len()));
        let found = self.stops.iter().filter_map(|stop| find(&self.buffer, self.sent, stop)).min();
        if let Some(at) = found {
            return self.release(at.max(self.sent), true, true);
        }
        let held = self.stops.iter().map(|stop| overlap(&self.buffer, stop)).max().unwrap_or(0);
        self.release((self.buffer.len() - held).max(self.sent), false, false)
    }

    /// Lets out all that is held: the answer ended without a stop string.
    pub(crate) fn finish(&mut self) -> Release {
        self.release(self.buffer.len(), false, true)
    }

    fn release(&mut self, end: usize, stopped: bool, last: bool) -> Release {
        let mut text = String::new();
        let mut at = self.sent;
        // Bytes that never become a character are sent as U+FFFD, as all others do; what may still become one is held.
        for chunk in self.buffer[self.sent..end].utf8_chunks() {
            text.push_str(chunk.valid());
            at += chunk.valid().len();
            let broken = chunk.invalid();
            if broken.is_empty() {
                continue;
            }
            let unfinished =
                at + broken.len() == end && std::str::from_utf8(broken).is_err_and(|e| e.error_len().is_none());
            if unfinished && !last {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            at += broken.len();
        }
        self.sent = at;
        let done = if stopped {
            // The token in which the stop string begins was sent in part; those after it were not.
            self.tokens.iter().take_while(|(_, begin, end)| *begin < at || *end <= at).count()
        } else {
            self.tokens.iter().take_while(|(_, _, end)| *end <= at).count()
        };
        let tokens = self.tokens.drain(..done).map(|(token, ..)| token).collect();
        self.forget();
        Release { text, tokens, stopped }
    }

    /// Drops what was sent and no stop string can reach any more.
    fn forget(&mut self) {
        let reach = self.stops.iter().map(|s| s.len() - 1).max().unwrap_or(0);
        let gone = self.sent.saturating_sub(reach);
        self.buffer.drain(..gone);
        self.sent -= gone;
        for (_, begin, end) in &mut self.tokens {
            *begin = begin.saturating_sub(gone);
            *end -= gone;
        }
    }
}

/// Where `what` begins in `text`, if not all of it lies before `sent`.
fn find(text: &[u8], sent: usize, what: &[u8]) -> Option<usize> {
    let from = (sent + 1).saturating_sub(what.len());
    text[from..].windows(what.len()).position(|w| w == what).map(|at| from + at)
}

/// Length of the longest beginning of `stop` that `text` ends with.
fn overlap(text: &[u8], stop: &[u8]) -> usize {
    (1..stop.len()).rev().find(|n| text.ends_with(&stop[..*n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds the tokens one by one; gives the pieces, and how many tokens came with them.
    fn run(stops: &[&str], already: &str, tokens: &[&[u8]]) -> (Vec<String>, usize, bool) {
        let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
        let mut output = Output::new(&stops, already);
        let (mut pieces, mut count) = (Vec::new(), 0);
        let token = |bytes: &[u8]| TokenInfo { id: 0, bytes: bytes.to_vec(), logprob: None, top: Vec::new() };
        for bytes in tokens {
            let release = output.push(token(bytes), 0);
            count += release.tokens.len();
            pieces.push(release.text);
            if release.stopped {
                return (pieces, count, true);
            }
        }
        let release = output.finish();
        pieces.push(release.text);
        (pieces, count + release.tokens.len(), false)
    }

    #[test]
    fn nothing_leaves_too_early() {
        type Case<'a> = (&'a str, &'a [&'a str], &'a str, &'a [&'a [u8]], &'a [&'a str], usize, bool);
        let cases: &[Case<'_>] = &[
            ("plain", &[], "", &[b"ab", b"c"], &["ab", "c", ""], 2, false),
            ("a character in two tokens", &[], "", &[b"a\xE2\x82", b"\xACb"], &["a", "\u{20AC}b", ""], 2, false),
            ("a character that never ends", &[], "", &[b"a\xE2\x82"], &["a", "\u{FFFD}"], 1, false),
            ("a byte that begins nothing", &[], "", &[b"a\xFFb"], &["a\u{FFFD}b", ""], 1, false),
            ("stop in one token", &["STOP"], "", &[b"ab", b"cSTOPd", b"e"], &["ab", "c"], 2, true),
            ("stop over three tokens", &["STOP"], "", &[b"aS", b"TO", b"Px"], &["a", "", ""], 1, true),
            (
                "half a stop that goes on otherwise",
                &["STOP"],
                "",
                &[b"aST", b"Sx", b"!"],
                &["a", "STSx", "!", ""],
                3,
                false,
            ),
            ("half a stop at the end", &["STOP"], "", &[b"aSTO"], &["a", "STO"], 1, false),
            ("the earliest of two stops", &["cd", "b"], "", &[b"abcd"], &["a"], 1, true),
            ("a stop that begins with itself", &["aab"], "", &[b"aaab"], &["a"], 1, true),
            (
                "a stop within a character's bytes",
                &["\u{20AC}"],
                "",
                &[b"a\xE2", b"\x82", b"\xACb"],
                &["a", "", ""],
                1,
                true,
            ),
            ("a stop that began in what was sent", &["xyz"], "axy", &[b"zb"], &[""], 0, true),
            ("a stop that was sent whole", &["xy", "abcdef"], "axy", &[b"zb"], &["zb", ""], 1, false),
            ("a token without bytes", &["x"], "", &[b"", b"a"], &["", "a", ""], 2, false),
        ];
        for (what, stops, already, tokens, pieces, count, stopped) in cases {
            let got = run(stops, already, tokens);
            let want: Vec<String> = pieces.iter().map(|s| s.to_string()).collect();
            assert_eq!(got, (want, *count, *stopped), "{what}");
        }
    }

    #[test]
    fn what_is_held_is_bounded() {
        let mut output = Output::new(&["0123456789".to_string()], &"y".repeat(1000));
        for i in 0..10_000 {
            output.push(TokenInfo { id: 0, bytes: vec![b'0' + (i % 7) as u8], logprob: None, top: Vec::new() }, 0);
            assert!(output.buffer.len() < 20 && output.tokens.len() < 11);
        }
    }
}
