//! An answer that was cut anywhere goes on as if it had not been cut.

use spillway_engine::{Finish, Request};

use crate::{Answer, QUESTIONS, answer, guide};

fn continued(engine: &spillway_engine::Engine, request: &Request, prefix: &str) -> Answer {
    answer(engine, Request { prefix: prefix.into(), ..request.clone() })
}

fn check(requests: impl Iterator<Item = Request>) {
    let engine = guide(4);
    for request in requests {
        let whole = answer(&engine, request.clone());
        let text = whole.text();
        // At every byte: between pieces, between tokens, and within them.
        for cut in (0..=text.len()).filter(|cut| text.is_char_boundary(*cut)) {
            let rest = continued(&engine, &request, &text[..cut]);
            let what = format!("{request:?} cut at {cut}: {:?}", &text[..cut]);
            assert_eq!(rest.text(), text[cut..], "{what}");
            assert_eq!(rest.finish, whole.finish, "{what}");
            assert_eq!(rest.usage.completion_tokens, whole.usage.completion_tokens, "{what}");
            assert_eq!(rest.usage.prefix_tokens + rest.tokens.len(), whole.usage.completion_tokens, "{what}");
            let last = rest.tokens.len().min(whole.tokens.len());
            assert_eq!(rest.tokens[rest.tokens.len() - last..], whole.tokens[whole.tokens.len() - last..], "{what}");
        }
    }
}

#[test]
fn greedy_answers_go_on() {
    check(QUESTIONS.iter().map(|q| Request::ask(*q)));
}

#[test]
fn sampled_answers_go_on_with_the_same_seed() {
    check((0..4).map(|seed| Request { temperature: 0.7, top_p: 0.95, seed, ..Request::ask(QUESTIONS[seed as usize]) }));
}

#[test]
fn limits_and_stops_count_from_the_answers_beginning() {
    check([7, 8, 21].into_iter().map(|n| Request { max_tokens: Some(n), ..Request::ask(QUESTIONS[0]) }));
    check(std::iter::once(Request { stop: vec!["the network".into()], ..Request::ask(QUESTIONS[0]) }));
}

/// What a stranger delivered need not be what this model would say: it goes on from there all the same.
#[test]
fn a_foreign_beginning_is_kept() {
    let engine = guide(1);
    let cases = ["Well, spill-over is", "Spill-over mea", "Zzyzx \u{20AC} \u{1F600}", "\n\n```rust\nfn", "12345 67"];
    for prefix in cases {
        let request = Request { max_tokens: Some(60), ..Request::ask(QUESTIONS[0]) };
        let got = continued(&engine, &request, prefix);
        let whole = format!("{prefix}{}", got.text());
        assert!(got.finish == Finish::Stop || got.finish == Finish::Length, "{prefix:?}");
        assert!(got.usage.completion_tokens <= 60 && !got.text().is_empty(), "{whole:?}");
    }
    let known = continued(&engine, &Request::ask(QUESTIONS[0]), "Spill-over mea");
    assert!(known.text().starts_with("ns that"), "{:?}", known.text());
}
