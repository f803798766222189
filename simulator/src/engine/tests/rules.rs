//! What each rule says.

use crate::engine::{Engine, Progress, preset};

fn run(engine: &mut Engine) -> Vec<Progress> {
    let mut out = Vec::new();
    while let Some(at) = engine.next_at() {
        engine.advance(at, &mut out);
        engine.check();
    }
    out
}

#[test]
fn a_lone_request_runs_to_its_end() {
    let mut engine = Engine::new(preset("rtx4090-llama-3.1-8b").expect("a preset"));
    assert!(engine.submit(1_000, 7, 3_000, 200, &[1, 2, 3, 4, 5], 1));
    let out = run(&mut engine);
    let [Progress::First { id: 7, at_us: first, cached: 0 }, Progress::Done { id: 7, at_us: done, cached: 0 }] =
        out[..]
    else {
        panic!("{out:?}");
    };
    assert!(first > 250_000 && first < 350_000, "{first}");
    let tpot = (done - first) / 199;
    assert!(tpot > 17_000 && tpot < 20_000, "{tpot}");
    assert_eq!(engine.load().kv_used, 0);
    assert_eq!(engine.load().waiting_tokens, 0);
    assert_eq!(engine.cached_tokens(&[1, 2, 3, 4, 5]), 2_560);
    assert_eq!(engine.cached_tokens(&[2]), 512);
}
