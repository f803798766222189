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

/// A folder for a test's files, gone at its end.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("spillway-sim-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder for the test");
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("a plain path").to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_report_is_a_page_and_the_json() {
    let folder = Folder::new("report");
    let dir = folder.path("a/b");
    let out = sim(&["run", "burst", "--seed", "7", "--json", "--report", &dir]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let read = |name: &str| std::fs::read_to_string(folder.path(&format!("a/b/{name}"))).expect("it was written");
    let printed: serde_json::Value = serde_json::from_slice(&out.stdout).expect("one JSON object");
    assert_eq!(serde_json::from_str::<serde_json::Value>(&read("report.json")).expect("JSON"), printed);
    let page = read("index.html");
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains(&format!("run burst --seed 7 --json --report {dir}")));

    // A file is in the way: said before the run begins.
    let out = sim(&["run", "burst", "--report", &folder.path("a/b/index.html")]);
    assert_eq!(out.status.code(), Some(1));
    assert!(out.stdout.is_empty() && String::from_utf8_lossy(&out.stderr).contains("--report: cannot make"));
}

/// Forty jobs of two clients in four minutes, in bytes.
fn day() -> String {
    let job = |nth: u64| {
        let (time, input, key) = (1_782_896_400_000 + nth * 6_000, 400 + nth * 60, nth % 2);
        format!(r#"{{"time":{time},"model":"m{key}","input_units":{input},"output_units":400,"key":"k{key}"}}"#) + "\n"
    };
    (0..40).map(job).collect()
}

#[test]
fn an_own_day_costs_nothing_at_home_and_what_strangers_ask_without() {
    let folder = Folder::new("replay");
    let log = folder.path("jobs.jsonl");
    std::fs::write(&log, day()).expect("the log can be written");
    let replay = |more: &[&str]| -> serde_json::Value {
        let args = ["replay", &log, "--units-per-token", "4", "--seeds", "0..2", "--json"];
        let out = sim(&[&args[..], more].concat());
        assert!(out.status.success(), "{more:?}: {}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).expect("one JSON object")
    };
    let report = folder.path("report");
    let at_home = replay(&["--own", "2", "--policies", "spillway,own-only", "--report", &report]);
    assert_eq!((&at_home["jobs"], &at_home["span_s"]), (&40.into(), &235.into()));
    for row in at_home["policies"].as_array().expect("rows") {
        assert_eq!(row["cost"]["mean"], 0.0, "own hardware serves it all");
        assert!(row["slo"]["mean"].as_f64() > Some(0.9), "{row}");
    }
    let page = std::fs::read_to_string(folder.path("report/index.html")).expect("it was written");
    assert!(page.contains("40 jobs in 0.1 h") && page.contains("own_count = 2"));

    let without = replay(&["--own", "0", "--policies", "spillway"]);
    let (cost, earned) = (&without["policies"][0]["cost"]["mean"], &without["earned"][0]);
    let (cost, earned) = (cost.as_f64().expect("a cost"), earned["strangers"]["mean"].as_f64().expect("earnings"));
    assert!(
        cost > 0.0 && earned > 0.6 * cost && earned <= 0.7 * cost,
        "providers get 70 %, rounded down: {cost} {earned}"
    );

    let half = replay(&["--own", "2", "--policies", "own-only", "--model", "m1"]);
    assert_eq!(half["jobs"], 20);
}

#[test]
fn a_log_in_a_setting_of_ones_own_pays_who_sells() {
    let folder = Folder::new("setting");
    let (log, setting) = (folder.path("jobs.jsonl"), folder.path("mine.toml"));
    std::fs::write(&log, day()).expect("the log can be written");
    let text = r#"
        name = "mine"
        duration_s = 5
        pace = 3
        gateway = [
            { name = "asks", region = "france", organisation = "they", clients = [0, 9] },
            { name = "sells", region = "france", organisation = "we", clients = [10, 19] },
        ]
        [[replica]]
        name = "gpu"
        engine = "rtx4090-llama-3.1-8b"
        region = "germany"
        owner = "we"
        sells = true
        slots = 8
        price = { input_micro = 20_000, output_micro = 50_000 }
    "#;
    std::fs::write(&setting, text).expect("the setting can be written");
    let args = ["replay", &log, "--setting", &setting, "--seeds", "0..1", "--policies", "spillway", "--json"];
    let out = sim(&args);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let found: serde_json::Value = serde_json::from_slice(&out.stdout).expect("one JSON object");
    let earned = &found["earned"][0];
    assert!(earned["own"]["mean"].as_f64() > Some(0.0) && earned["strangers"]["mean"] == 0.0, "{earned}");
}

#[test]
fn a_replays_mistakes_are_named() {
    let folder = Folder::new("mistakes");
    let (log, broken, setting) = (folder.path("jobs.jsonl"), folder.path("broken.jsonl"), folder.path("mine.toml"));
    std::fs::write(&log, day()).expect("the log can be written");
    std::fs::write(&broken, day().replacen(r#""output_units":400"#, r#""output_units":"many""#, 3)).expect("written");
    std::fs::write(&setting, "name = \"x\"\nslots = 3").expect("the setting can be written");
    for (args, code, says) in [
        (&[&*broken][..], 1, "broken.jsonl:1: output_units: \"\\\"many\\\"\" is not a whole number"),
        (&["nowhere.jsonl"], 1, "nowhere.jsonl"),
        (&[&log, "--model", "m7"], 1, "has no job of `m7`; there are [\"m0\", \"m1\"]"),
        (&[&log, "--engine", "abacus-8b"], 1, "market.own.engine: no engine is named `abacus-8b`"),
        (&[&log, "--engine", "abacus"], 1, "--engine: no prices are known for `abacus`"),
        (&[&log, "--slots", "0"], 1, "market.own.slots: 0 is not between"),
        (&[&log, "--setting", &setting], 1, "unknown field `slots`"),
        (&[&log, "--setting", &setting, "--own", "3"], 2, "--setting"),
        (&[&log, "--units-per-token", "0"], 2, "--units-per-token"),
    ] {
        let out = sim(&[&["replay"], args].concat());
        let error = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {error}");
        assert!(error.contains(says), "{args:?}: {error}");
    }
}
