//! W3C trace context: what a client says of its trace, what is decided about ours, and what own servers are told.
//! Invariant: a header that does not hold counts as none, so no client's mistake reaches a server or a collector.
//! Source: W3C Recommendation "Trace Context", level 1.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use spillway_ledger::JobId;

/// The header that names a trace and the span that calls.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What others on the way added to it.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// Longest `tracestate` that is passed on, in bytes, as the Recommendation asks.
const STATE_BYTES_MAX: usize = 512;
/// The flag that says that the caller records the trace.
const SAMPLED: u8 = 1;

/// What a client said of its trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    trace: [u8; 16],
    span: [u8; 8],
    sampled: bool,
    state: Option<String>,
}

/// A request's place in a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The trace.
    pub trace: [u8; 16],
    /// Our span.
    pub span: [u8; 8],
    /// The client's span.
    pub parent: Option<[u8; 8]>,
    /// Whether it is recorded.
    pub sampled: bool,
    /// What others on the way added.
    pub state: Option<String>,
}

/// What an own server is told of a trace, ready to be sent.
#[derive(Clone, Debug)]
pub struct TraceHeaders {
    /// `traceparent`
    pub parent: HeaderValue,
    /// `tracestate`
    pub state: Option<HeaderValue>,
}

impl Parent {
    /// Reads a request's headers; `None` if there is no trace, or what is there does not hold.
    #[must_use]
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let (value, None) = (values.next()?, values.next()) else { return None };
        let (trace, span, sampled) = parsed(value.as_bytes())?;
        let mut states = headers.get_all(TRACESTATE).iter();
        let state = match (states.next(), states.next()) {
            (Some(state), None) => {
                state.to_str().ok().filter(|state| state.len() <= STATE_BYTES_MAX).map(str::to_owned)
            }
            _ => None,
        };
        Some(Self { trace, span, sampled, state })
    }
}

/// The parts of a `traceparent`: of version 0, or of a later one, whose beginning is the same.
fn parsed(text: &[u8]) -> Option<([u8; 16], [u8; 8], bool)> {
    if text.len() < 55 || (text.len() > 55 && (text[..2] == *b"00" || text[55] != b'-')) {
        return None;
    }
    let is_lower_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let digits = [&text[..2], &text[3..35], &text[36..52], &text[53..55]];
    let dashes = [text[2], text[35], text[52]] == [b'-'; 3];
    if !dashes || !digits.iter().all(|part| part.iter().all(is_lower_hex)) || digits[0] == b"ff" {
        return None;
    }
    let (mut trace, mut span, mut flags) = ([0; 16], [0; 8], [0; 1]);
    hex::decode_to_slice(digits[1], &mut trace).ok()?;
    hex::decode_to_slice(digits[2], &mut span).ok()?;
    hex::decode_to_slice(digits[3], &mut flags).ok()?;
    (trace != [0; 16] && span != [0; 8]).then_some((trace, span, flags[0] & SAMPLED != 0))
}

impl Trace {
    /// The trace of a job. It is the client's, if there is one and its decision with it; else it is named after the job, and
    /// recorded for a share of `ratio` of all.
    #[must_use]
    pub fn of(parent: Option<Parent>, job: JobId, ratio: f64) -> Self {
        let (name, mut span) = (job.0, [0; 8]);
        // Ids are random, so that half of one names a span as well as anything.
        span.copy_from_slice(&name[..8]);
        span[0] |= 1;
        match parent {
            Some(Parent { trace, span: caller, sampled, state }) => {
                Self { trace, span, parent: Some(caller), sampled, state }
            }
            None => {
                let mut low = [0; 8];
                low.copy_from_slice(&name[8..]);
                Self { trace: name, span, parent: None, sampled: drawn(u64::from_be_bytes(low), ratio), state: None }
            }
        }
    }

    /// What an own server is told: our span as the caller's.
    #[must_use]
    pub fn headers(&self) -> TraceHeaders {
        headers(&self.trace, &self.span, self.sampled, self.state.as_deref())
    }
}

impl Parent {
    /// What an own server is told where nothing is traced here: what the client said, as it was.
    #[must_use]
    pub fn headers(&self) -> TraceHeaders {
        headers(&self.trace, &self.span, self.sampled, self.state.as_deref())
    }
}

fn headers(trace: &[u8; 16], span: &[u8; 8], sampled: bool, state: Option<&str>) -> TraceHeaders {
    let parent = format!("00-{}-{}-0{}", hex::encode(trace), hex::encode(span), u8::from(sampled));
    let parent = HeaderValue::from_str(&parent).expect("hexadecimal digits are header text");
    TraceHeaders { parent, state: state.and_then(|state| HeaderValue::from_str(state).ok()) }
}

/// Whether one of so many equally likely numbers is among the first `ratio` of them.
fn drawn(number: u64, ratio: f64) -> bool {
    #[expect(clippy::cast_precision_loss, reason = "a share of all numbers")]
    let place = number as f64 / u64::MAX as f64;
    ratio >= 1.0 || place < ratio
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(HeaderName, &str)]) -> Option<Parent> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, value.parse().expect("a value"));
        }
        Parent::read(&headers)
    }

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_holds_is_continued_and_what_does_not_is_not() {
        for (text, holds) in [
            (GOOD, true),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", true),
            ("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", true),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", false),
            ("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01more", false),
            ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", false),
            ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", false),
            ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1", false),
            ("00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", false),
            ("", false),
        ] {
            assert_eq!(read(&[(TRACEPARENT, text)]).is_some(), holds, "{text}");
        }
        assert!(read(&[(TRACEPARENT, GOOD), (TRACEPARENT, GOOD)]).is_none(), "twice is none");
    }

    #[test]
    fn our_span_is_the_servers_parent() {
        let parent = read(&[(TRACEPARENT, GOOD), (TRACESTATE, "a=1,b=2")]).expect("holds");
        assert_eq!(parent.headers().parent, GOOD);
        let job = JobId(*b"0123456789abcdef");
        let trace = Trace::of(Some(parent), job, 0.0);
        assert!(trace.sampled, "the caller's decision counts, not our share");
        let headers = trace.headers();
        assert_eq!(headers.parent, "00-4bf92f3577b34da6a3ce929d0e0e4736-3131323334353637-01");
        assert_eq!(headers.state.expect("passed on"), "a=1,b=2");
        let own = Trace::of(None, job, 1.0);
        assert_eq!((own.trace, own.parent, own.sampled), (*b"0123456789abcdef", None, true));
        let long = "x=".to_owned() + &"y".repeat(STATE_BYTES_MAX);
        assert_eq!(read(&[(TRACEPARENT, GOOD), (TRACESTATE, &long)]).expect("holds").state, None);
    }

    #[test]
    fn about_the_share_that_is_asked_for_is_recorded() {
        let mut number: u64 = 1;
        let mut sampled = 0;
        for _ in 0..10_000 {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            sampled += u32::from(drawn(number, 0.1));
        }
        assert!((800..1200).contains(&sampled), "{sampled}");
        assert!(drawn(u64::MAX, 1.0) && !drawn(0, 0.0));
    }
}
