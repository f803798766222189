//! Server-sent events: reading a backend's, writing the client's.
//! Invariant: no line or event of a backend is kept beyond its limit, and nothing a backend sends can end or add an event
//! of the client's stream.

use bytes::Bytes;
use spillway_protocol::wire::CHUNK_BYTES_MAX;

/// Longest line and longest event's data, in bytes; what may travel as one chunk.
pub const EVENT_BYTES_MAX: usize = CHUNK_BYTES_MAX;

/// The event that ends an OpenAI stream.
pub const DONE: &[u8] = b"data: [DONE]\n\n";
/// A comment that keeps a waiting connection open.
pub const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";

/// An event over [`EVENT_BYTES_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event is over 256 KiB")]
pub struct EventTooLong;

/// Cuts a byte stream into the data of its events.
#[derive(Debug, Default)]
pub struct SseParser {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    after_cr: bool,
}

impl SseParser {
    /// Takes the next bytes and adds the data of each event that they complete to `events`.
    ///
    /// # Errors
    /// If a line or an event is too long; the stream is not to be read any further.
    pub fn push(&mut self, bytes: &[u8], events: &mut Vec<Vec<u8>>) -> Result<(), EventTooLong> {
        let mut rest = bytes;
        while let Some(&first) = rest.first() {
            // A line ends with CR, LF, or both.
            if std::mem::take(&mut self.after_cr) && first == b'\n' {
                rest = &rest[1..];
                continue;
            }
            let end = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let part = &rest[..end.unwrap_or(rest.len())];
            if self.line.len() + part.len() > EVENT_BYTES_MAX {
                return Err(EventTooLong);
            }
            self.line.extend_from_slice(part);
            let Some(end) = end else { break };
            self.after_cr = rest[end] == b'\r';
            rest = &rest[end + 1..];
            self.end_line(events)?;
        }
        Ok(())
    }

    /// The event that the stream's end completes, for servers that leave out the last blank line.
    #[must_use]
    pub fn finish(mut self) -> Option<Vec<u8>> {
        let mut events = Vec::new();
        let ended = self.end_line(&mut events).and_then(|()| self.end_line(&mut events));
        ended.ok().and_then(|()| events.pop())
    }

    fn end_line(&mut self, events: &mut Vec<Vec<u8>>) -> Result<(), EventTooLong> {
        if self.line.is_empty() {
            if std::mem::take(&mut self.has_data) {
                events.push(std::mem::take(&mut self.data));
            }
            return Ok(());
        }
        // Only `data` matters; event names, ids and comments are left out.
        if let Some(value) = self.line.strip_prefix(b"data:") {
            let value = value.strip_prefix(b" ").unwrap_or(value);
            if self.data.len() + value.len() + 1 > EVENT_BYTES_MAX {
                return Err(EventTooLong);
            }
            if self.has_data {
                self.data.push(b'\n');
            }
            self.has_data = true;
            self.data.extend_from_slice(value);
        }
        self.line.clear();
        Ok(())
    }
}

/// `json` as one event of a client's stream. Line breaks between JSON's tokens become spaces, as they would end the event;
/// within its strings there are none.
#[must_use]
pub fn frame(json: &[u8]) -> Bytes {
    let mut event = Vec::with_capacity(json.len() + 8);
    event.extend_from_slice(b"data: ");
    event.extend(json.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }));
    event.extend_from_slice(b"\n\n");
    Bytes::from(event)
}

/// As [`frame`], for streams whose events have names; a name is text without line breaks.
#[must_use]
pub fn named_frame(name: &str, json: &[u8]) -> Bytes {
    debug_assert!(!name.contains(['\r', '\n']), "a name that would end its line");
    Bytes::from([b"event: ".as_slice(), name.as_bytes(), b"\n", &frame(json)].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events of `stream`, cut into pieces of each size up to its length: where packets end must not matter.
    fn check(stream: &str, want: &[&str], last: Option<&str>) {
        for size in 1..=stream.len() {
            let (mut parser, mut events) = (SseParser::default(), Vec::new());
            for piece in stream.as_bytes().chunks(size) {
                parser.push(piece, &mut events).expect("within limits");
            }
            let events: Vec<_> = events.iter().map(|event| String::from_utf8_lossy(event)).collect();
            assert_eq!(events, want, "{stream:?} in pieces of {size}");
            let end = parser.finish().map(|event| String::from_utf8_lossy(&event).into_owned());
            assert_eq!(end.as_deref(), last, "the end of {stream:?} in pieces of {size}");
        }
    }

    #[test]
    fn events_are_cut_by_the_standards_rules() {
        check("data: {\"a\":1}\n\ndata: [DONE]\n\n", &["{\"a\":1}", "[DONE]"], None);
        check("data: a\r\n\r\ndata: b\r\rdata: c\n\n", &["a", "b", "c"], None);
        check(": comment\n\nevent: x\ndata:a\ndata: b\nid: 4\n\n", &["a\nb"], None);
        check("data:  two spaces\n\ndata\n\ndata:\n\n", &[" two spaces", ""], None);
        check("data: é\n\n\n\ndata: open", &["é"], Some("open"));
        check("data: open\n", &[], Some("open"));
    }

    #[test]
    fn long_events_are_refused() {
        let line = format!("data: {}", "x".repeat(EVENT_BYTES_MAX));
        let lines = format!("data: {}\n", "x".repeat(EVENT_BYTES_MAX / 2)).repeat(3);
        for stream in [line, lines] {
            let mut events = Vec::new();
            let mut parser = SseParser::default();
            let result = stream.as_bytes().chunks(4096).try_for_each(|piece| parser.push(piece, &mut events));
            assert_eq!(result, Err(EventTooLong));
            assert!(parser.line.len() <= EVENT_BYTES_MAX && parser.data.len() <= EVENT_BYTES_MAX);
        }
    }

    #[test]
    fn a_frame_is_one_event_whatever_is_in_it() {
        assert_eq!(&frame(b"{\"a\":1}")[..], b"data: {\"a\":1}\n\n");
        assert_eq!(&named_frame("ping", b"{\n}")[..], b"event: ping\ndata: { }\n\n");
        assert_eq!(&frame(b"{\r\n\"a\":\n1}\n\ndata: [DONE]")[..], b"data: {  \"a\": 1}  data: [DONE]\n\n");
    }
}
