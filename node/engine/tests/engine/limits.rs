//! Slots, queue, context and unread pieces are bounded, and what is abandoned is freed.

use std::time::{Duration, Instant};

use spillway_engine::{Engine, EngineConfig, Finish, Generation, Piece, Prompt, Request, SubmitError};

use crate::{QUESTIONS, answer, collect, guide, noise::Model};

/// An engine, and a request that runs to the end of its context: noise in which no token ends an answer.
fn endless(config: EngineConfig) -> (Engine, Request) {
    let engine = Engine::load_bytes(Model { endless: true, ..Model::default() }.write(), config).expect("noise loads");
    let request = Request::new(Prompt::Text("the".into()));
    assert!(answer(&engine, request.clone()).finish == Finish::Length, "this noise must run to the end of its context");
    (engine, request)
}

fn until_started(generation: &mut Generation) {
    let first = generation.blocking_next();
    assert!(matches!(first, Some(Piece::Started { prompt_tokens: 1.. })), "{first:?}");
}

#[test]
fn fields_out_of_range_are_named() {
    let engine = guide(1);
    let ask = || Request::ask("hi");
    let cases = [
        ("temperature", Request { temperature: -0.1, ..ask() }),
        ("temperature", Request { temperature: f32::NAN, ..ask() }),
        ("temperature", Request { temperature: f32::INFINITY, ..ask() }),
        ("top_p", Request { top_p: 0.0, ..ask() }),
        ("top_p", Request { top_p: f32::NAN, ..ask() }),
        ("max_tokens", Request { max_tokens: Some(0), ..ask() }),
        ("stop", Request { stop: vec![String::new()], ..ask() }),
        ("stop", Request { stop: vec!["x".repeat(257)], ..ask() }),
        ("stop", Request { stop: vec!["x".into(); 17], ..ask() }),
        ("logprobs", Request { logprobs: Some(21), ..ask() }),
        ("prompt", Request::new(Prompt::Text(String::new()))),
    ];
    for (want, request) in cases {
        match engine.submit(request) {
            Err(SubmitError::OutOfRange { field, .. }) => assert_eq!(field, want),
            other => panic!("{want}: {other:?}"),
        }
    }
    let bare = Engine::load_bytes(
        Model { change: vec![("tokenizer.chat_template", None)], ..Model::default() }.write(),
        EngineConfig::default(),
    )
    .expect("loads");
    assert_eq!(bare.submit(ask()).map(|_| ()), Err(SubmitError::NoTemplate));
}

#[test]
fn what_exceeds_the_context_is_refused_before_it_runs() {
    let engine =
        Engine::guide(EngineConfig { context_max: Some(64), ..EngineConfig::default() }).expect("the guide loads");
    assert_eq!(engine.info().context_length, 64);
    let words = |n: usize| "market ".repeat(n);
    let prompt = |n| Request::new(Prompt::Text(words(n)));
    let tokens = |text: &str| engine.tokenize(text).len();
    let refused = |request| match engine.submit(request) {
        Err(SubmitError::ContextExceeded { prompt_tokens, prefix_tokens, context: 64 }) => {
            (prompt_tokens, prefix_tokens)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(prompt(70)), (tokens(&words(70)), 0));
    assert_eq!(refused(Request { prefix: words(40), ..prompt(30) }), (tokens(&words(30)), tokens(&words(40))));
    // Far too much is refused without being tokenised.
    assert!(refused(prompt(1 << 20)).0 >= 64);
    // What fits runs to the context's last token.
    let request = Request { temperature: 1.0, stop: vec![], ..prompt(40) };
    let got = answer(&engine, request);
    assert!(got.usage.prompt_tokens + got.usage.completion_tokens <= 64);
    let fits = Request { max_tokens: Some(1), ..prompt(10) };
    assert_eq!(answer(&engine, fits).usage.completion_tokens, 1);
}

#[test]
fn the_queue_is_bounded() {
    let config = EngineConfig { slots: 2, waiting_max: 1, ..EngineConfig::default() };
    let (engine, request) = endless(config);
    let mut open: Vec<Generation> =
        (0..3).map(|_| engine.submit(request.clone()).expect("2 slots and 1 place")).collect();
    until_started(&mut open[0]);
    until_started(&mut open[1]);
    assert_eq!((engine.running(), engine.waiting()), (2, 1));
    assert_eq!(engine.submit(request.clone()).map(|_| ()), Err(SubmitError::QueueFull { running: 2, waiting: 1 }));
    // A place that nobody waits in any more is free at once.
    drop(open.pop());
    let mut third = engine.submit(request.clone()).expect("the abandoned place is free");
    // So is a slot: the third starts although the others still have hundreds of tokens to go.
    drop(open.pop());
    until_started(&mut third);
    assert_eq!((engine.running(), engine.waiting()), (2, 0));
}

/// A receiver that does not read stops its own answer, and no other; when it reads on, it gets all of it.
#[test]
fn an_unread_answer_pauses_alone() {
    let (engine, request) = endless(EngineConfig { slots: 2, ..EngineConfig::default() });
    let whole = answer(&engine, request.clone());
    assert!(whole.pieces.len() > 200, "{} pieces are too few to fill what may lie unread", whole.pieces.len());
    let unread = engine.submit(request.clone()).expect("a slot");
    for _ in 0..3 {
        assert_eq!(answer(&engine, request.clone()), whole);
    }
    assert_eq!(engine.running(), 1, "the unread answer keeps its slot");
    assert_eq!(collect(unread), whole);
}

#[test]
fn an_unread_answer_that_is_dropped_frees_its_slot() {
    let (engine, request) = endless(EngineConfig { slots: 1, waiting_max: 1, ..EngineConfig::default() });
    let mut first = engine.submit(request.clone()).expect("the slot");
    until_started(&mut first);
    let mut second = engine.submit(request).expect("a place in the queue");
    drop(first);
    until_started(&mut second);
    assert_eq!((engine.running(), engine.waiting()), (1, 0));
}

#[test]
fn the_last_handle_cancels_what_is_open() {
    let (engine, request) = endless(EngineConfig { slots: 1, waiting_max: 1, ..EngineConfig::default() });
    let other = engine.clone();
    let mut running = other.submit(request.clone()).expect("the slot");
    until_started(&mut running);
    let mut waiting = other.submit(request).expect("a place in the queue");
    drop(engine);
    assert_eq!(other.running(), 1, "a clone keeps the engine alive");
    drop(other);
    for generation in [&mut running, &mut waiting] {
        let mut last = None;
        while let Some(piece) = generation.blocking_next() {
            last = Some(piece);
        }
        assert!(matches!(last, Some(Piece::Done { finish: Finish::Cancelled, .. })), "{last:?}");
    }
}

#[test]
fn an_operators_limit_on_speed_holds() {
    let engine = Engine::guide(EngineConfig { tokens_per_second: Some(200.0), ..EngineConfig::default() })
        .expect("the guide loads");
    let begun = Instant::now();
    let got = answer(&engine, Request { max_tokens: Some(30), ..Request::ask(QUESTIONS[0]) });
    assert_eq!(got.usage.completion_tokens, 30);
    assert!(begun.elapsed() >= Duration::from_millis(29 * 5), "30 tokens in {:?}", begun.elapsed());
}
