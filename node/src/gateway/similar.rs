//! Questions that mean the same: where a key allows it, one's answer serves the other.
//! Invariant: two questions share an answer only if everything around them is the same, their vectors are as near as the key says, and
//! no guard speaks against it: vectors of "safe to eat" and "unsafe to eat" are nearly one, and so are those of "10 miles in km" and
//! "10 km in miles".

use super::cache::{self, Tenant};
use crate::openai::Request;
use crate::openai::fields::{Fields, raw};
use serde::Deserialize;
use serde_json::value::RawValue;
use spillway_ledger::Digest;
use spillway_protocol::Kind;
use std::collections::BTreeSet;

/// The least similarity that a key may ask for.
pub const SIMILAR_MIN: f64 = 0.92;
/// What Portkey's `semantic` stands for.
pub const SIMILAR_DEFAULT: f64 = 0.95;
/// Longest question whose like is looked for, in bytes.
const QUESTION_BYTES_MAX: usize = 8 << 10;
/// Most numbers of a vector.
const DIMENSIONS_MAX: usize = 8192;

/// What a request asks, apart from all that it is asked with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Names everything but the question: whose it is, the model, its settings, the conversation before.
    pub context: Digest,
    /// The question.
    pub text: String,
}

impl Question {
    /// The last message, if it is the user's and plain text, or a completion's prompt; `None` where there is no such, or it is
    /// too long. The arguments are those of [`cache::name`].
    #[must_use]
    pub fn of(tenant: Tenant, asked: Kind, request: &Request, way: &str) -> Option<Self> {
        let mut fields = Fields::parse(&request.body).ok()?;
        let text = match request.kind {
            Kind::Chat => {
                let mut messages: Vec<Fields<'_>> = fields.read_borrowed("messages")?;
                let last = messages.last_mut()?;
                let text: String = last.read("content")?;
                if last.get("role") != Some("\"user\"") {
                    return None;
                }
                last.set("content", raw(""));
                let messages = raw(&messages);
                fields.set("messages", messages);
                text
            }
            Kind::Completion => {
                let text: String = fields.read("prompt")?;
                fields.set("prompt", raw(""));
                text
            }
            Kind::Embedding
            | Kind::Response
            | Kind::Message
            | Kind::Rerank
            | Kind::Image
            | Kind::Transcription
            | Kind::Speech
            | Kind::Moderation => return None,
        };
        if text.trim().is_empty() || text.len() > QUESTION_BYTES_MAX {
            return None;
        }
        let around = Request { body: fields.to_bytes(), ..request.clone() };
        Some(Self { context: cache::name(tenant, asked, &around, way), text })
    }
}

/// A question's place among others, of length 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Vector(Box<[f32]>);

impl Vector {
    /// Scales to length 1; `None` of what has no direction or too many numbers.
    #[must_use]
    pub fn new(numbers: Vec<f32>) -> Option<Self> {
        let length = numbers.iter().map(|number| number * number).sum::<f32>().sqrt();
        let holds = length.is_normal() && numbers.len() <= DIMENSIONS_MAX;
        holds.then(|| Self(numbers.into_iter().map(|number| number / length).collect()))
    }

    /// The first vector of an answer to `/v1/embeddings`.
    #[must_use]
    pub fn read(answer: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Answer<'a> {
            #[serde(borrow)]
            data: Vec<&'a RawValue>,
        }
        #[derive(Deserialize)]
        struct Item {
            embedding: Vec<f32>,
        }
        let answer: Answer<'_> = serde_json::from_slice(answer).ok()?;
        let item: Item = serde_json::from_str(answer.data.first()?.get()).ok()?;
        Self::new(item.embedding)
    }

    /// The cosine of the angle between the two; `None` if they are of different models.
    #[must_use]
    pub fn similarity(&self, other: &Self) -> Option<f32> {
        (self.0.len() == other.0.len()).then(|| self.0.iter().zip(&other.0).map(|(a, b)| a * b).sum())
    }

    /// What it takes, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.0)
    }
}

/// Words that turn a sentence round, in the languages that are most often written here. They must be the same in both, in order.
const NEGATIONS: [&str; 54] = [
    "not",
    "no",
    "never",
    "none",
    "nothing",
    "nobody",
    "nowhere",
    "neither",
    "nor",
    "without",
    "cannot",
    "cant",
    "dont",
    "wont",
    "except",
    "unless",
    "hardly",
    "but",
    "only",
    "nicht",
    "kein",
    "keine",
    "keinen",
    "keinem",
    "keiner",
    "keines",
    "nie",
    "niemals",
    "ohne",
    "weder",
    "außer",
    "nur",
    "ne",
    "pas",
    "jamais",
    "sans",
    "aucun",
    "aucune",
    "ni",
    "sauf",
    "nunca",
    "sin",
    "nada",
    "ningún",
    "ninguna",
    "non",
    "mai",
    "senza",
    "não",
    "sem",
    "не",
    "нет",
    "без",
    "никогда",
];

/// Words that are numbers.
const NUMBERS: [&str; 26] = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "hundred", "thousand", "million", "billion", "half", "quarter", "third", "double", "twice", "once", "first",
    "second", "last",
];

/// Beginnings that make a word its opposite.
const OPPOSING: [&str; 10] = ["un", "in", "im", "il", "ir", "non", "dis", "de", "mis", "anti"];

/// Words of which one is not said for the other.
const OPPOSITES: [(&str, &str); 40] = [
    ("safe", "dangerous"),
    ("good", "bad"),
    ("best", "worst"),
    ("better", "worse"),
    ("more", "less"),
    ("most", "least"),
    ("more", "fewer"),
    ("high", "low"),
    ("higher", "lower"),
    ("highest", "lowest"),
    ("maximum", "minimum"),
    ("max", "min"),
    ("increase", "decrease"),
    ("raise", "lower"),
    ("up", "down"),
    ("before", "after"),
    ("above", "below"),
    ("over", "under"),
    ("open", "close"),
    ("on", "off"),
    ("enable", "disable"),
    ("start", "stop"),
    ("begin", "end"),
    ("add", "remove"),
    ("create", "delete"),
    ("buy", "sell"),
    ("hot", "cold"),
    ("old", "new"),
    ("true", "false"),
    ("left", "right"),
    ("in", "out"),
    ("with", "without"),
    ("always", "never"),
    ("all", "some"),
    ("win", "lose"),
    ("push", "pull"),
    ("import", "export"),
    ("encode", "decode"),
    ("encrypt", "decrypt"),
    ("male", "female"),
];

/// A question, taken apart.
struct Parts {
    words: Vec<String>,
    /// Signs that are neither letters nor plain punctuation, in order.
    signs: Vec<char>,
}

impl Parts {
    fn of(text: &str) -> Self {
        let plain =
            |sign: char| matches!(sign, '.' | ',' | ';' | ':' | '!' | '?' | '\'' | '"' | '’' | '“' | '”' | '„' | '…');
        let signs =
            text.chars().filter(|sign| !sign.is_alphanumeric() && !sign.is_whitespace() && !plain(*sign)).collect();
        // "don't" is one word.
        let text: String = text.to_lowercase().chars().filter(|sign| !matches!(sign, '\'' | '’')).collect();
        let words = text.split(|sign: char| !sign.is_alphanumeric()).filter(|word| !word.is_empty());
        Self { words: words.map(str::to_owned).collect(), signs }
    }

    fn all(&self, is_wanted: impl Fn(&str) -> bool) -> impl Iterator<Item = &str> {
        self.words.iter().map(String::as_str).filter(move |word| is_wanted(word))
    }
}

fn is_number(word: &str) -> bool {
    NUMBERS.contains(&word) || word.chars().any(char::is_numeric)
}

fn is_negation(word: &str) -> bool {
    NEGATIONS.contains(&word)
        || (word.len() > 3 && word.ends_with("nt") && NEGATED_VERBS.contains(&&word[..word.len() - 2]))
}

/// Verbs that are negated by `n't`.
const NEGATED_VERBS: [&str; 16] = [
    "is", "are", "was", "were", "do", "does", "did", "have", "has", "had", "should", "would", "could", "must", "might",
    "need",
];

/// Whether `one` is said of what `other` is not.
fn are_opposed(one: &str, other: &str) -> bool {
    let made_of = |long: &str, short: &str| {
        short.len() >= 3
            && (OPPOSING.iter().any(|begin| long.strip_prefix(begin) == Some(short))
                || long
                    .strip_suffix("less")
                    .is_some_and(|stem| short == stem || short.strip_suffix("ful") == Some(stem)))
    };
    made_of(one, other)
        || made_of(other, one)
        || OPPOSITES.iter().any(|(a, b)| (one == *a && other == *b) || (one == *b && other == *a))
}

/// Whether nothing in the two speaks against one answer for both: the same numbers and negations in the same order, no word of one
/// that is the opposite of one of the other's, the words that they share in the same order, and the same signs.
#[must_use]
pub fn may_share(one: &str, other: &str) -> bool {
    let (one, other) = (Parts::of(one), Parts::of(other));
    let [here, there]: [BTreeSet<&str>; 2] = [&one, &other].map(|parts| parts.all(|_| true).collect());
    one.signs == other.signs
        && one.all(is_number).eq(other.all(is_number))
        && one.all(is_negation).eq(other.all(is_negation))
        && one.all(|word| there.contains(word)).eq(other.all(|word| here.contains(word)))
        && !here.difference(&there).any(|word| there.difference(&here).any(|theirs| are_opposed(word, theirs)))
}

#[cfg(test)]
mod tests {
    use super::super::holder::KeyId;
    use super::*;

    #[test]
    fn what_differs_in_a_number_a_negation_or_the_order_shares_no_answer() {
        for (one, other, want) in [
            ("How do I reset my password?", "How can I reset my password", true),
            ("What is the capital of France?", "what's the capital of France", true),
            ("Tell me about Rust", "Tell me about Rust, please!", true),
            ("Is it safe to eat raw eggs?", "Is it unsafe to eat raw eggs?", false),
            ("Is it safe to eat raw eggs?", "Is it dangerous to eat raw eggs?", false),
            ("Convert 10 miles to km", "Convert 10 km to miles", false),
            ("Convert 10 miles to km", "Convert 11 miles to km", false),
            ("Convert ten miles to km", "Convert two miles to km", false),
            ("Which plants are harmful?", "Which plants are harmless?", false),
            ("Should I pay this?", "Shouldn't I pay this?", false),
            ("Why does it work?", "Why doesn't it work?", false),
            ("May I park here?", "May I not park here?", false),
            ("Darf ich hier parken?", "Darf ich hier nicht parken?", false),
            ("Does A beat B?", "Does B beat A?", false),
            ("What is 5 - 3?", "What is 5 + 3?", false),
            ("How do I disable it?", "How do I enable it?", false),
            ("raise the limit", "lower the limit", false),
            ("users with a budget", "users without a budget", false),
            ("the first of May", "the last of May", false),
        ] {
            assert_eq!(may_share(one, other), want, "{one} / {other}");
            assert_eq!(may_share(other, one), want, "{other} / {one}");
            assert!(may_share(one, one), "{one}");
        }
    }

    fn question(body: &str) -> Option<Question> {
        let request = Request::parse(Kind::Chat, body.as_bytes()).expect("a request");
        Question::of(Tenant::Key(KeyId([1; 4])), Kind::Chat, &request, "")
    }

    #[test]
    fn a_question_is_the_last_message_and_all_else_is_around_it() {
        let chat = |before: &str, text: &str, rest: &str| {
            let body = format!(r#"{{"model":"m","messages":[{before}{{"role":"user","content":"{text}"}}]{rest}}}"#);
            question(&body).expect("a question")
        };
        let one = chat("", "a", "");
        assert_eq!(one.text, "a");
        assert_eq!(one.context, chat("", "b", "").context);
        assert_eq!(one.context, chat("", "b", r#","stream":true"#).context);
        for other in [
            chat(r#"{"role":"system","content":"s"},"#, "a", ""),
            chat("", "a", r#","temperature":0"#),
            chat("", "a", r#","tools":[]"#),
        ] {
            assert_ne!(one.context, other.context, "{other:?}");
        }
        for none in [
            r#"{"model":"m","messages":[{"role":"assistant","content":"a"}]}"#.to_owned(),
            r#"{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"a"}]}]}"#.to_owned(),
            r#"{"model":"m","messages":[{"role":"user","content":" "}]}"#.to_owned(),
            format!(
                r#"{{"model":"m","messages":[{{"role":"user","content":"{}"}}]}}"#,
                "a".repeat(QUESTION_BYTES_MAX + 1)
            ),
        ] {
            assert_eq!(question(&none), None);
        }
    }

    #[test]
    fn vectors_are_compared_by_their_direction() {
        let vector = |numbers: &[f32]| Vector::new(numbers.to_vec()).expect("a direction");
        let near = |a: &[f32], b: &[f32]| vector(a).similarity(&vector(b));
        assert!((near(&[1.0, 0.0], &[5.0, 0.0]).expect("alike") - 1.0).abs() < 1e-6);
        assert!(near(&[1.0, 0.0], &[0.0, 2.0]).expect("alike").abs() < 1e-6);
        assert_eq!(near(&[1.0], &[1.0, 0.0]), None);
        assert_eq!(Vector::new(vec![0.0; 3]), None);
        assert_eq!(Vector::new(vec![f32::NAN]), None);
        assert_eq!(Vector::new(vec![1.0; DIMENSIONS_MAX + 1]), None);
        let answer = br#"{"object":"list","data":[{"index":0,"embedding":[3, 4.0]}],"usage":{}}"#;
        assert_eq!(Vector::read(answer), Vector::new(vec![0.6, 0.8]));
        for none in [&b"{}"[..], br#"{"data":[]}"#, br#"{"data":[{"embedding":"AAAA"}]}"#, b""] {
            assert_eq!(Vector::read(none), None);
        }
    }
}
