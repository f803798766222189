//! The guide's corpus: conversations drawn from [`crate::topics`] by a seed.
//! Invariant: the same seed gives the same conversations on every machine, and no held-out form is ever drawn.

use crate::topics::{OFF_TOPIC, OFF_TOPIC_ANSWER, TOPICS, Topic};

/// SplitMix64: small, fast, and ours, so that a corpus does not change when a dependency does.
pub struct Rng(u64);

impl Rng {
    /// A generator whose whole sequence follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n`, which must not be 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() >> 33) as usize % n
    }

    /// A number in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number from the standard normal distribution (Box-Muller).
    pub fn normal(&mut self) -> f32 {
        let (a, b) = (1.0 - self.unit(), self.unit());
        ((-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()) as f32
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }
}

/// Forms that ask about a named thing; trained on.
const FORMS: &[&str] = &[
    "what is {}?",
    "what is {}?",
    "explain {}",
    "tell me about {}",
    "what does {} mean?",
    "how does {} work?",
    "can you explain {}?",
    "i do not understand {}",
    "describe {}",
    "what do you know about {}?",
    "i want to know about {}",
    "give me a short explanation of {}",
    "could you explain {} to me?",
    "{}",
    "{}?",
    "explain {} in one sentence.",
    "explain {} in two sentences.",
    "in one sentence, what is {}?",
];

/// Forms that are never trained on; `eval` asks them.
pub const FORMS_HELD: &[&str] =
    &["i have a question about {}", "so what exactly is {}?", "help me understand {}", "in simple words, what is {}?"];

const BEFORE: &[&str] =
    &["", "", "", "", "", "", "hi, ", "hello, ", "please: ", "quick question: ", "hey, ", "ok so ", "one more thing, "];
const AFTER: &[&str] = &["", "", "", "", "", "", " please", " thanks", " in short"];
const SYSTEM: &[&str] = &[
    "You are a helpful assistant.",
    "You are the guide.",
    "Answer briefly.",
    "You are a helpful AI assistant. Be concise.",
    "Be polite.",
    "You answer questions about Spillway.",
    "You are a concise assistant.",
];

/// Who says something in a conversation.
pub type Turn = (&'static str, String);

/// One training text: a conversation, or an answer as plain text for completion without a chat.
pub enum Sample {
    /// Turns of (role, text).
    Chat(Vec<Turn>),
    /// Plain text.
    Plain(&'static str),
}

/// Types like a person: capitals, a forgotten question mark, now and then a slip.
fn mistype(rng: &mut Rng, text: &str) -> String {
    let mut s = text.to_string();
    match rng.below(6) {
        0..=2 => s = capital(&s),
        3 => s.truncate(s.trim_end_matches('?').len()),
        4..=5 => {}
        6.. => unreachable!("below(6)"),
    }
    if rng.unit() < 0.12 && s.len() > 8 && s.is_ascii() {
        let at = 1 + rng.below(s.len() - 2);
        let mut bytes = s.into_bytes();
        match rng.below(3) {
            0 => {
                bytes.remove(at);
            }
            1 => bytes.insert(at, bytes[at]),
            2.. => bytes.swap(at, at - 1),
        }
        s = String::from_utf8(bytes).expect("ASCII stays ASCII");
    }
    s
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().collect::<String>() + chars.as_str(),
        None => String::new(),
    }
}

/// A question on `topic` as it is trained on; also used by `eval` with a seed of its own for fresh slips.
pub fn question(rng: &mut Rng, topic: &Topic) -> String {
    let plain = if topic.names.is_empty() || rng.unit() < 0.5 {
        rng.pick(topic.asked).to_string()
    } else {
        let form = rng.pick(FORMS);
        form.replace("{}", rng.pick(topic.names))
    };
    let mut q = format!("{}{plain}{}", rng.pick(BEFORE), rng.pick(AFTER));
    // Load generators number their prompts so that no cache answers.
    if rng.unit() < 0.06 {
        q += &format!(" ({})", 1 + rng.below(99));
    }
    mistype(rng, &q)
}

fn exchange(rng: &mut Rng) -> (String, &'static str) {
    // Off-topic questions weigh as much as two topics.
    let i = rng.below(TOPICS.len() + 2);
    match TOPICS.get(i) {
        Some(topic) => (question(rng, topic), topic.answer),
        None => {
            let q = rng.pick(OFF_TOPIC);
            (mistype(rng, q), OFF_TOPIC_ANSWER)
        }
    }
}

/// One training text.
pub fn sample(rng: &mut Rng) -> Sample {
    if rng.unit() < 0.06 {
        return Sample::Plain(TOPICS[rng.below(TOPICS.len())].answer);
    }
    let mut turns = Vec::new();
    if rng.unit() < 0.4 {
        turns.push(("system", rng.pick(SYSTEM).to_string()));
    }
    for _ in 0..if rng.unit() < 0.2 { 2 } else { 1 } {
        let (q, a) = exchange(rng);
        turns.push(("user", q));
        turns.push(("assistant", a.to_string()));
    }
    Sample::Chat(turns)
}
