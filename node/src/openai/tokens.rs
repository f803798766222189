//! The tokens that a server reports of an answer, wherever in its events they are.
//! Invariant: nothing is paid by them; they are for counts, logs and traces. What a model writes is never taken for a report: in
//! a JSON string every quote has a backslash before it.

use memchr::memmem::Finder;
use std::sync::LazyLock;

/// What the names of all counts end with.
static END: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"_tokens\""));

/// Tokens of a request, as its server reported them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Tokens {
    /// Of the prompt.
    pub input: u64,
    /// Of these, read from a cache.
    pub cached: u64,
    /// Of the answer.
    pub output: u64,
    /// Of these, thoughts.
    pub reasoning: u64,
}

impl Tokens {
    /// Takes in what an event or a piece of an answer reports; later reports replace earlier ones. Whether there was any.
    pub fn read(&mut self, bytes: &[u8]) -> bool {
        let mut found = false;
        for end in END.find_iter(bytes) {
            let begin = bytes[..end].iter().rposition(|byte| !byte.is_ascii_lowercase() && *byte != b'_');
            let Some(quote) = begin.filter(|at| bytes[*at] == b'"' && (*at == 0 || bytes[*at - 1] != b'\\')) else {
                continue;
            };
            let field = match &bytes[quote + 1..end] {
                b"prompt" | b"input" => &mut self.input,
                b"cached" | b"cache_read_input" => &mut self.cached,
                b"completion" | b"output" => &mut self.output,
                b"reasoning" => &mut self.reasoning,
                _ => continue,
            };
            if let Some(count) = number(&bytes[end + b"_tokens\"".len()..]) {
                *field = count;
                found = true;
            }
        }
        found
    }
}

/// The number behind a field's name.
fn number(bytes: &[u8]) -> Option<u64> {
    let rest = bytes.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_every_dialect_are_read_and_text_is_not() {
        let cases: [(&str, Option<[u64; 4]>); 8] = [
            (
                r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens": 2,"total_tokens":11,"prompt_tokens_details":{"cached_tokens":4},"completion_tokens_details":{"reasoning_tokens":1}}}"#,
                Some([9, 4, 2, 1]),
            ),
            (r#"{"type":"message_delta","usage":{"output_tokens":7}}"#, Some([0, 0, 7, 0])),
            (r#"{"usage":{"input_tokens":5,"cache_read_input_tokens":3,"output_tokens":1}}"#, Some([5, 3, 1, 0])),
            (r#"{"choices":[{"delta":{"content":"{\"prompt_tokens\":9}"}}]}"#, None),
            (r#"{"usage":{"prompt_tokens":null}}"#, None),
            (r#"{"usage":{"prompt_tokens":18446744073709551616}}"#, None),
            (r#"_tokens""#, None),
            ("", None),
        ];
        for (text, want) in cases {
            let mut tokens = Tokens::default();
            let found = tokens.read(text.as_bytes());
            let want = want.map(|[input, cached, output, reasoning]| Tokens { input, cached, output, reasoning });
            assert_eq!(found.then_some(tokens), want, "{text}");
        }
    }
}
