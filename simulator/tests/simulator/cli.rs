//! The command line: exit codes, fixed JSON, and errors that name the field.

use std::process::{Command, Output};

fn sim(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_spillway-sim")).args(args).output().expect("the binary runs")
}

fn keys(value: &serde_json::Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[test]
fn run_prints_exactly_the_documented_fields() {
    let out = sim(&["run", "calm", "--seed", "3", "--json"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).expect("one JSON object");
    let mut expected =
        ["scenario", "seed", "hash", "events", "jobs", "slo", "ttft_ms", "cost", "provider_share", "violations"];
    let mut got = keys(&report);
    expected.sort_unstable();
    got.sort_unstable();
    assert_eq!(got, expected);
    assert_eq!(keys(&report["jobs"]).len(), 5);
    assert_eq!(keys(&report["ttft_ms"]).len(), 3);
    assert_eq!(report["violations"], serde_json::json!([]));
    assert!(report["provider_share"].as_f64().expect("a number") >= 0.7);
}

#[test]
fn swarm_prints_exactly_the_documented_fields() {
    let out = sim(&["swarm", "--seeds", "0..4", "--json"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let result: serde_json::Value = serde_json::from_slice(&out.stdout).expect("one JSON object");
    assert_eq!(result, serde_json::json!({ "seeds": 4, "failures": [] }));
    assert!(String::from_utf8_lossy(&out.stderr).contains("4 of 4 seeds"));
}

#[test]
fn what_show_prints_runs_as_a_file() {
    let shown = sim(&["show", "burst"]);
    let folder = std::env::temp_dir().join(format!("spillway-sim-test-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for the test");
    let file = folder.join("mine.toml");
    std::fs::write(&file, &shown.stdout).expect("the file can be written");
    let path = file.to_str().expect("a plain path");
    let (by_file, by_name) = (sim(&["run", path, "--json"]), sim(&["run", "burst", "--json"]));
    assert_eq!(String::from_utf8_lossy(&by_file.stdout), String::from_utf8_lossy(&by_name.stdout));

    let broken = String::from_utf8_lossy(&shown.stdout).replacen("slots = 1", "slots = 0", 1);
    std::fs::write(&file, broken).expect("the file can be written");
    let out = sim(&["run", path]);
    assert!(!out.status.success());
    assert!(String::from_utf8_lossy(&out.stderr).contains("fleet[0].gpu.slots"));
    std::fs::remove_dir_all(&folder).expect("the test's folder");
}

#[test]
fn mistakes_are_named() {
    for (args, code, says) in [
        (&["run", "nowhere"][..], 1, "no scenario is named `nowhere`"),
        (&["swarm", "--seeds", "9..3"], 2, "not a range of seeds"),
        (&["dance"], 2, "unrecognized subcommand"),
    ] {
        let out = sim(args);
        assert_eq!(out.status.code(), Some(code), "{args:?}");
        assert!(
            String::from_utf8_lossy(&out.stderr).contains(says),
            "{args:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
    }
}

#[test]
fn list_has_every_scenario_with_a_sentence() {
    let out = sim(&["list", "--json"]);
    let list: Vec<serde_json::Value> = serde_json::from_slice(&out.stdout).expect("a JSON array");
    assert!(list.len() >= 5);
    assert!(list.iter().all(|it| it["about"].as_str().is_some_and(|about| about.ends_with('.'))));
}
