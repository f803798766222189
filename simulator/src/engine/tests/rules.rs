//! What each rule says, on an engine whose every step takes 10 ms; so times count steps.

use crate::engine::{Batch, Chunk, Engine, EngineRules, Progress, RulesError, StepModel, preset, presets};

const STEP_MS: u64 = 10;

fn rules() -> EngineRules {
    let step = StepModel {
        fixed_us: (STEP_MS * 1_000) as f64,
        weight_floor_us: 0.0,
        dense_us: 0.0,
        dense_per_token_us: 0.0,
        per_seq_us: 0.0,
        decode_us: 0.0,
        decode_per_kv_us: 0.0,
        mixed_decode: 1.0,
        prefill_us: 0.0,
        prefill_per_token_us: 0.0,
        prefill_per_token2_us: 0.0,
    };
    EngineRules {
        name: "steps of 10 ms".to_owned(),
        step,
        kv_tokens: 1_600,
        seqs_max: 8,
        chunk_budget: 100,
        prefix_grain: 32,
        async_scheduling: false,
    }
}

fn run(engine: &mut Engine) -> Vec<Progress> {
    let mut out = Vec::new();
    while let Some(at) = engine.next_at() {
        engine.advance(at, &mut out);
        engine.check();
    }
    let load = engine.load();
    assert_eq!((load.kv_used, load.waiting_tokens, load.running, load.waiting), (0, 0, 0, 0), "all is given back");
    out
}

/// What was told, in steps of 10 ms: `1 first 3` for request 1's first token after three.
fn tale(out: &[Progress]) -> Vec<String> {
    let step = |at_us: u64| {
        assert_eq!(at_us % (STEP_MS * 1_000), 0, "the end of a step");
        at_us / STEP_MS / 1_000
    };
    let tell = |progress: &Progress| match *progress {
        Progress::First { id, at_us, cached: 0 } => format!("{id} first {}", step(at_us)),
        Progress::First { id, at_us, cached } => format!("{id} first {} cached {cached}", step(at_us)),
        Progress::Done { id, at_us, .. } => format!("{id} done {}", step(at_us)),
        Progress::Tokens { id, at_us, count } => format!("{id} has {count} at {}", step(at_us)),
    };
    out.iter().map(tell).collect()
}

#[test]
fn a_long_prompt_takes_chunks_while_others_decode() {
    let mut engine = Engine::new(rules());
    engine.submit(0, 1, 50, 6, &[], 1);
    engine.submit(0, 2, 250, 1, &[], 1);
    // The first step was decided before 2 came; then 99, 99 and 52 tokens go beside 1's decoding.
    assert_eq!(tale(&run(&mut engine)), ["1 first 1", "2 first 4", "2 done 4", "1 done 6"]);
}

#[test]
fn with_asynchronous_scheduling_a_request_misses_one_more_step() {
    let mut engine = Engine::new(EngineRules { async_scheduling: true, ..rules() });
    engine.submit(0, 1, 50, 6, &[], 1);
    engine.submit(5_000, 2, 50, 1, &[], 1);
    assert_eq!(tale(&run(&mut engine)), ["1 first 1", "2 first 3", "2 done 3", "1 done 6"]);
}

#[test]
fn who_comes_last_is_preempted_first_and_comes_back_first() {
    // 12 blocks: four prompts take 2 each; with its answer each would take 6.
    let mut engine = Engine::new(EngineRules { kv_tokens: 12 * 16, prefix_grain: 0, ..rules() });
    for id in [1, 2, 3, 4] {
        engine.submit(0, id, 32, 60, &[], 1);
    }
    let out = run(&mut engine);
    let (first, done): (Vec<_>, Vec<_>) = out.iter().partition(|told| matches!(told, Progress::First { .. }));
    assert_eq!(tale(&first), ["1 first 1", "2 first 2", "3 first 2", "4 first 2"]);
    // 4 goes in step 18, when 1 needs a fourth block, with 44 tokens to come; 3 in step 34 with 28. 3 comes back when 1 is
    // done, 4 when 2 is: each with one chunk that gives its next token.
    assert_eq!(tale(&done), ["1 done 60", "2 done 61", "3 done 88", "4 done 105"]);
}

#[test]
fn a_prompt_that_begins_alike_is_not_computed_again() {
    let mut engine = Engine::new(rules());
    engine.submit(0, 1, 100, 10, &[7, 8, 9], 1);
    assert_eq!(engine.cached_tokens(&[7, 8, 9]), 96, "named as soon as they are in a step");
    engine.submit(0, 2, 100, 10, &[7, 8, 5], 1);
    let mut out = Vec::new();
    engine.advance(10_000, &mut out);
    // 7 blocks of 1, and of 2 what it does not share: 36 tokens more.
    assert_eq!(engine.load().kv_used, (7 + 3) * 16);
    out.extend(run(&mut engine));
    assert_eq!(tale(&out), ["1 first 1", "2 first 2 cached 64", "1 done 10", "2 done 11"]);
    assert_eq!(engine.cached_tokens(&[7, 8, 5]), 96);

    // The whole prompt is known, but its last token must be computed to answer.
    engine.submit(200_000, 3, 96, 1, &[7, 8, 9], 1);
    assert_eq!(tale(&run(&mut engine)), ["3 first 21 cached 64", "3 done 21"]);
}

#[test]
fn the_oldest_unused_piece_gives_way_and_a_prompts_end_before_its_beginning() {
    // 10 blocks: pieces of two.
    let mut engine = Engine::new(EngineRules { kv_tokens: 160, ..rules() });
    engine.submit(0, 1, 65, 1, &[1, 2], 1);
    run(&mut engine);
    engine.submit(1_000_000, 2, 65, 1, &[3, 4], 1);
    run(&mut engine);
    assert_eq!([&[1, 2], &[3, 4]].map(|names| engine.cached_tokens(names)), [64, 64]);
    // 5 blocks, of which 2 are free: 1's last piece, then its first.
    engine.submit(2_000_000, 3, 33, 1, &[5], 1);
    run(&mut engine);
    assert_eq!(engine.cached_tokens(&[1, 2]), 32);
    engine.submit(3_000_000, 4, 65, 1, &[6], 1);
    run(&mut engine);
    assert_eq!([&[1, 2], &[3, 4]].map(|names| engine.cached_tokens(names)), [0, 32]);
}

#[test]
fn an_answer_is_cached_when_names_tell() {
    let mut engine = Engine::new(rules());
    engine.submit(0, 1, 40, 30, &[1, 2, 3], 1);
    run(&mut engine);
    // 69 tokens have been computed: the answer's last is not yet.
    assert_eq!(engine.cached_tokens(&[1, 2, 3]), 64);
    engine.submit(1_000_000, 2, 90, 1, &[1, 2], 1);
    assert_eq!(tale(&run(&mut engine)), ["2 first 101 cached 64", "2 done 101"]);
}

#[test]
fn a_request_can_be_taken_back_at_any_time() {
    let mut engine = Engine::new(EngineRules { seqs_max: 2, ..rules() });
    engine.submit(0, 1, 50, 20, &[1], 1);
    engine.submit(0, 2, 450, 20, &[2, 3], 1);
    engine.submit(0, 3, 50, 5, &[], 1);
    assert!(engine.cancel(1_000, 3), "it waits");
    assert!(!engine.cancel(1_000, 3));
    assert!(engine.cancel(25_000, 2), "its second chunk is computed");
    assert_eq!(engine.load().kv_used, 64);
    assert!(engine.cancel(45_000, 1), "it decodes");
    assert_eq!(engine.load().kv_used, 0);
    assert!(!engine.cancel(45_000, 1) && !engine.cancel(45_000, 9));
    // The id is free again; the step in flight still ends, and has nothing to tell of it.
    engine.submit(46_000, 1, 50, 2, &[], 1);
    let mut out = Vec::new();
    engine.advance(46_000, &mut out);
    out.extend(run(&mut engine));
    assert_eq!(tale(&out), ["1 first 1", "1 first 6", "1 done 7"]);
    assert!(!engine.cancel(1_000_000, 1), "it is done");
}

#[test]
fn the_owner_goes_before_strangers_in_the_queue_but_not_in_a_step() {
    let mut engine = Engine::new(EngineRules { seqs_max: 1, ..rules() });
    for (id, priority) in [(1, 1), (2, 1), (3, 1), (4, 0), (5, 0)] {
        engine.submit(0, id, 10, 2, &[], priority);
    }
    let out = run(&mut engine);
    let ids = out.iter().filter_map(|told| match told {
        Progress::Done { id, .. } => Some(*id),
        Progress::First { .. } | Progress::Tokens { .. } => None,
    });
    assert_eq!(ids.collect::<Vec<_>>(), [1, 4, 5, 2, 3]);
}

#[test]
fn tokens_are_told_when_asked_for() {
    let mut engine = Engine::new(rules());
    engine.emit_tokens(4);
    engine.submit(0, 1, 10, 10, &[], 1);
    assert_eq!(tale(&run(&mut engine)), ["1 first 1", "1 has 4 at 4", "1 has 8 at 8", "1 done 10"]);
}

#[test]
fn a_busy_spell_may_last_longer_than_picoseconds_reach() {
    let step = StepModel { fixed_us: 1e9, ..rules().step };
    let mut engine = Engine::new(EngineRules { step, kv_tokens: 16_000, ..rules() });
    engine.submit(7, 1, 10, 6_000, &[], 1);
    engine.submit(5_000_000_000_007, 2, 10, 5_000, &[], 1);
    engine.submit(9_000_000_000_007, 3, 10, 5_000, &[], 1);
    let at = |progress: &Progress| match *progress {
        Progress::First { id, at_us, .. } | Progress::Done { id, at_us, .. } | Progress::Tokens { id, at_us, .. } => {
            (id, (at_us - 7) / 1_000_000_000)
        }
    };
    let out = run(&mut engine);
    assert_eq!(
        out.iter().map(at).collect::<Vec<_>>(),
        [(1, 1), (2, 5_002), (1, 6_000), (3, 9_002), (2, 10_001), (3, 14_001)]
    );
}

#[test]
fn what_never_fits_is_not_taken() {
    let mut engine = Engine::new(rules());
    assert!(engine.fits(1_000, 601) && !engine.fits(1_000, 602), "an answer's last token needs no memory");
    assert!(!engine.submit(0, 1, 1_000, 602, &[], 1));
    assert!(!engine.submit(0, 1, 0, 5, &[], 1) && !engine.submit(0, 1, 5, 0, &[], 1));
    assert!(!engine.fits(u32::MAX, u32::MAX));
    assert!(engine.submit(0, 1, 10, 5, &[], 1) && !engine.submit(0, 1, 10, 5, &[], 1), "the id is taken");
    assert_eq!(engine.next_at(), Some(10_000));
}

#[test]
fn rules_that_do_not_hold_are_named() {
    let check = |rules: EngineRules, error| assert_eq!(rules.validate(), Err(error));
    check(EngineRules { seqs_max: 0, ..rules() }, RulesError::NoSequences);
    check(EngineRules { chunk_budget: 7, ..rules() }, RulesError::SmallBudget { chunk_budget: 7, seqs_max: 8 });
    check(EngineRules { prefix_grain: 100, ..rules() }, RulesError::BrokenGrain(100));
}

#[test]
fn every_preset_holds_and_a_larger_share_is_faster() {
    let step = |name: &str| {
        let rules = preset(name).unwrap_or_else(|| panic!("no {name}"));
        let chunks = [Chunk { tokens: 2_000, prefix: 0 }];
        rules.step.step_us(&Batch { decoding: 32, decoding_kv: 32_000, chunks: &chunks })
    };
    for known in presets() {
        let rules = preset(&known.name).expect("it is listed");
        rules.validate().unwrap_or_else(|error| panic!("{}: {error}", known.name));
        assert!(rules.kv_tokens > 10_000 && step(&known.name) > 20_000.0 && step(&known.name) < 900_000.0);
    }
    for gpu in ["a100", "h100"] {
        let [two, four, eight] = [2, 4, 8].map(|parallel| step(&format!("{gpu}x{parallel}-llama-3-70b")));
        assert!(eight < four && four < two, "{gpu}");
    }
    assert!(step("h100x8-llama-3-70b") < step("a100x8-llama-3-70b"));
    assert!(step("a800x8-llama-3-70b") > step("a100x8-llama-3-70b"));
    assert!(preset("h100x2-qwen3-32b").is_some_and(|rules| rules.kv_tokens == 307_328));
}

/// The mean of what was predicted over what came, for requests that arrive while the engine is as busy as `gap_us` makes it.
fn predicted(rules: EngineRules, gap_us: u64) -> f64 {
    let mut draws = crate::draws::Draws::new(3, "predict");
    let mut engine = Engine::new(rules);
    let mut out = Vec::new();
    let (mut now, mut expected) = (0, Vec::new());
    for id in 0..400 {
        now += draws.wait(gap_us);
        let [input, output] = [1_155, 211].map(|mean| draws.wait(mean).min(4_000) as u32);
        engine.advance(now, &mut out);
        expected.push((now, engine.predict_ttft_us(input, 0)));
        engine.submit(now, id, input, output, &[], 1);
    }
    out.extend(run(&mut engine));
    let mut sums = [0, 0];
    for told in out {
        if let Progress::First { id, at_us, .. } = told
            && id >= 100
        {
            let (came, wait) = expected[id as usize];
            sums[0] += wait;
            sums[1] += at_us - came;
        }
    }
    sums[0] as f64 / sums[1] as f64
}

#[test]
fn the_first_token_is_predicted_idle_busy_and_overloaded() {
    for name in ["rtx4090-llama-3.1-8b", "rtxpro6000-llama-3.1-8b", "h100x4-llama-3-70b"] {
        for gap_us in [2_000_000, 400_000, 150_000, 50_000] {
            let ratio = predicted(preset(name).expect("a preset"), gap_us);
            println!("{name}, one each {gap_us} µs: predicted over actual {ratio:.2}");
            assert!(ratio > 0.7 && ratio < 1.4, "{name}, one each {gap_us} µs: {ratio}");
        }
    }
}
