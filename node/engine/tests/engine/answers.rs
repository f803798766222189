//! What answers say, and that they say the same in a batch as alone.

use std::collections::BTreeSet;

use spillway_engine::{ChatMessage, Engine, EngineConfig, Finish, Prompt, Request};

use crate::{Answer, QUESTIONS, answer, collect, guide, noise};

#[test]
fn the_guide_knows_spillway() {
    let engine = guide(1);
    let cases = [
        (QUESTIONS[0], "Spill-over means that a job leaves for the network when your own hardware is full."),
        (QUESTIONS[1], "At least 70 percent goes to the provider who did the work."),
        (QUESTIONS[2], "Run `spillway init` once"),
        (QUESTIONS[3], "Run `spillway key create` on your node."),
        (QUESTIONS[4], "Label such a request `own` and it never leaves your own hardware."),
        (QUESTIONS[5], "A voucher is a signed promise to pay."),
        (QUESTIONS[6], "You earn by serving other people's jobs."),
        (QUESTIONS[7], "I am a tiny guide and know only Spillway."),
    ];
    for (question, want) in cases {
        let got = answer(&engine, Request::ask(question));
        assert!(got.text().contains(want), "{question}: {}", got.text());
        assert_eq!(got.finish, Finish::Stop, "{question}");
        assert_eq!(
            got.usage.completion_tokens,
            engine.tokenize(&got.text()).len(),
            "{question}: the count of the text"
        );
        assert_eq!(
            got.tokens.iter().flat_map(|t| t.bytes.clone()).collect::<Vec<_>>(),
            got.text().into_bytes(),
            "{question}: the tokens' bytes"
        );
    }
    let info = engine.info();
    assert_eq!(
        (info.name.as_str(), info.architecture.as_str(), info.quantization.as_str(), info.context_length),
        ("guide", "llama", "Q8_0", 1024)
    );
    assert!((1_500_000..=2_500_000).contains(&info.parameters), "{} parameters", info.parameters);
}

fn requests() -> Vec<Request> {
    let mut requests = Vec::new();
    for (i, question) in QUESTIONS.iter().enumerate() {
        let system = ChatMessage { role: "system".into(), content: "Answer briefly.".into() };
        let user = ChatMessage { role: "user".into(), content: question.to_string() };
        let prompt = match i % 3 {
            0 => Prompt::Chat(vec![user]),
            1 => Prompt::Chat(vec![system, user]),
            _ => Prompt::Text("Spillway is ".repeat(1 + 15 * i)),
        };
        let max_tokens = Some(20 + 13 * i);
        requests.push(Request { max_tokens, logprobs: Some(i % 4), ..Request::new(prompt.clone()) });
        requests.push(Request { max_tokens, temperature: 1.0, top_p: 0.95, seed: i as u64, ..Request::new(prompt) });
    }
    requests
}

/// Sequences that join and leave a batch at different steps get, to the last bit, what they get alone.
fn batch_equals_solo(what: &str, load: &dyn Fn(EngineConfig) -> Engine) {
    let config = |slots| EngineConfig { slots, threads: Some(2), ..EngineConfig::default() };
    let solo = load(config(1));
    let alone: Vec<Answer> = requests().into_iter().map(|r| answer(&solo, r)).collect();
    let distinct: BTreeSet<String> = alone.iter().map(Answer::text).collect();
    assert!(distinct.len() > 8, "{what}: the requests must differ for the comparison to mean something");
    for slots in [5, 16] {
        let engine = load(config(slots));
        let generations: Vec<_> = requests().into_iter().map(|r| engine.submit(r).expect("room for all")).collect();
        for (i, (generation, alone)) in generations.into_iter().zip(&alone).enumerate() {
            let got = collect(generation);
            assert_eq!(&got, alone, "{what}: request {i} among {slots}");
        }
    }
}

#[test]
fn a_batch_gives_what_each_gives_alone() {
    batch_equals_solo("guide", &|config| Engine::guide(config).expect("the guide loads"));
}

#[test]
fn a_batch_gives_what_each_gives_alone_in_other_models() {
    use candle_core::quantized::GgmlDType::{F16, Q4K, Q6K};
    for (name, dtype, architecture, tied) in
        [("F16", F16, "llama", true), ("Q4K", Q4K, "llama", false), ("Q6K", Q6K, "qwen2", false)]
    {
        let file = noise::Model { dtype, architecture, tied, ..noise::Model::default() }.write();
        batch_equals_solo(name, &|config| Engine::load_bytes(&file, config).expect(name));
    }
}

#[test]
fn sampling_depends_on_the_seed_and_nothing_else() {
    let engine = guide(4);
    let ask = |seed| Request { temperature: 1.5, seed, ..Request::ask("what is a voucher?") };
    let first: Vec<String> = (0..6).map(|seed| answer(&engine, ask(seed)).text()).collect();
    let again: Vec<String> = (0..6).map(|seed| answer(&engine, ask(seed)).text()).collect();
    assert_eq!(first, again);
    assert!(first.iter().collect::<BTreeSet<_>>().len() > 3, "{first:?}");
}

#[test]
fn stop_strings_end_the_answer_and_are_never_sent() {
    let engine = guide(2);
    let whole = answer(&engine, Request::ask(QUESTIONS[0])).text();
    for stop in ["network", " when your", "own hardware", ".", "ver me", "S", "is full. Your"] {
        let at = whole.find(stop).expect("the case's stop string is in the answer");
        // A decoy shares the beginning, so that text is held back and let go again.
        let decoy = format!("{stop}#");
        let got = answer(&engine, Request { stop: vec![decoy, stop.into()], ..Request::ask(QUESTIONS[0]) });
        assert_eq!((got.text().as_str(), got.finish), (&whole[..at], Finish::Stop), "{stop:?}");
        assert_eq!(got.usage.completion_tokens, got.tokens.len(), "{stop:?}");
    }
    let absent = answer(&engine, Request { stop: vec!["hardwhere".into()], ..Request::ask(QUESTIONS[0]) });
    assert_eq!(absent.text(), whole);
}

/// A model of noise emits bytes that are no text at all: what is sent is text all the same, and no half character ever was.
#[test]
fn broken_bytes_are_sent_as_whole_characters() {
    let file = noise::Model::default().write();
    let engine = Engine::load_bytes(&file, EngineConfig::default()).expect("noise loads");
    let mut characters = 0;
    for seed in 0..8 {
        let request = Request {
            temperature: 1.0,
            seed,
            max_tokens: Some(200),
            ..Request::new(Prompt::Text("\u{20AC} \u{1F600} é".into()))
        };
        let got = answer(&engine, request);
        let bytes: Vec<u8> = got.tokens.iter().flat_map(|t| t.bytes.clone()).collect();
        assert_eq!(got.text(), String::from_utf8_lossy(&bytes), "seed {seed}");
        characters += got.text().chars().filter(|c| !c.is_ascii() && *c != char::REPLACEMENT_CHARACTER).count();
    }
    assert!(characters > 0, "the noise had no whole character of several bytes: the test shows nothing");
}

#[test]
fn logprobs_are_probabilities() {
    let engine = guide(1);
    for (temperature, n) in [(0.0, 5), (1.0, 20), (1.0, 0)] {
        let got = answer(&engine, Request { temperature, seed: 3, logprobs: Some(n), ..Request::ask(QUESTIONS[2]) });
        for token in &got.tokens {
            let logprob = token.logprob.expect("was asked for");
            assert!(logprob <= 0.0 && token.top.len() == n);
            assert!(token.top.windows(2).all(|w| w[0].logprob >= w[1].logprob));
            let sum: f64 = token.top.iter().map(|t| f64::from(t.logprob).exp()).sum();
            assert!(sum <= 1.0 + 1e-4, "{sum}");
            if n == 20 {
                assert!(sum > 0.9, "the guide is seldom in doubt: {sum}");
            }
            if temperature == 0.0 {
                assert_eq!((token.top[0].id, token.top[0].logprob), (token.id, logprob));
            }
        }
    }
    let without = answer(&engine, Request::ask(QUESTIONS[2]));
    assert!(without.tokens.iter().all(|t| t.logprob.is_none() && t.top.is_empty()));
}
