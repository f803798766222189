//! What holds for all readers and all workloads.

use super::lines::Lines;
use super::servegen::Clients;
use super::{Request, Spec, TraceError, azure, joblog, mooncake};
use crate::draws::Draws;

const AZURE: &str = "TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
";
const MOONCAKE: &str = r#"{"timestamp": 0, "input_length": 1500, "output_length": 500, "hash_ids": [0, 1, 2]}
{"timestamp": 3000, "input_length": 1024, "output_length": 490, "hash_ids": [0, 14]}
"#;
const JOBS: &str = r#"{"time":"2026-07-01T09:00:02.5Z","model":"b","input_units":90,"output_units":0,"key":"k2"}
{"time":1782896410250,"model":"a","input_units":130,"output_units":9,"client":7,"session":"7"}
"#;
const RATES: &str = "client,window_start_s,rate_rps,cv,pattern,arg1,arg2
0,0,1.3317,8.6,Weibull,0.375,0.397
0,600,0.15,4.07,Gamma,0.0604,104
7,0,0.2733,6.02,Weibull,0.495,3.38
";
const LENGTHS: &str = "client,sum_rate,in_mean,in_p50,in_p90,in_p99,out_mean,out_p50,out_p90,out_p99
0,1125.645,666.5,275,414,6151,217.7,72,278,1874
";

/// Reads a text by every reader; how many requests, or windows, there are.
fn read(reader: usize, bytes: &[u8], name: &str) -> Result<usize, TraceError> {
    let lines = || Lines::of(name, bytes);
    match reader {
        0 => azure::parse(lines()).map(|trace| trace.requests().len()),
        1 => mooncake::parse(lines(), 1).map(|trace| trace.requests().len()),
        2 => joblog::JobLog::parse(lines()).map(|log| log.jobs.len()),
        3 => Clients::parse(lines(), Lines::of("l", LENGTHS.as_bytes())).map(|clients| clients.all().len()),
        _ => Clients::parse(Lines::of("r", RATES.as_bytes()), lines()).map(|clients| clients.all().len()),
    }
}

#[test]
fn no_file_makes_a_reader_panic() {
    let mut draws = Draws::new(8, "hostile files");
    for (reader, good) in [AZURE, MOONCAKE, JOBS, RATES, LENGTHS].into_iter().enumerate() {
        assert!(read(reader, good.as_bytes(), "f").is_ok(), "reader {reader}");
        let packed = ruzstd::encoding::compress_to_vec(good.as_bytes(), ruzstd::encoding::CompressionLevel::Fastest);
        assert!(read(reader, &packed, "f.zst").is_ok(), "reader {reader}");
        let mut refused = 0;
        for round in 0..600 {
            let (from, name) = if round % 3 == 0 { (packed.as_slice(), "f.zst") } else { (good.as_bytes(), "f") };
            let mut bytes = from.to_vec();
            for _ in 0..=draws.below(3) {
                let at = draws.below(bytes.len() as u64) as usize;
                match draws.below(4) {
                    0 => bytes[at] = draws.any() as u8,
                    1 => bytes.truncate(at + 1),
                    // What numbers and structure are made of.
                    2 => bytes.insert(at, b"0123456789.,-+eE\"[]{}:\n\r Zx\0"[draws.below(28) as usize]),
                    _ => bytes.extend_from_within(at..),
                }
            }
            if let Err(error) = read(reader, &bytes, name) {
                refused += 1;
                assert!(error.to_string().starts_with(name), "{error}");
            }
        }
        assert!(refused > 100, "reader {reader} refused {refused} of 600");
    }
}

#[test]
fn the_manuals_settings_are_settings() {
    let manual = include_str!("../../../docs/simulator.md");
    let section = manual.split("## Workloads").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap();
    let examples: Vec<&str> = section.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(examples.len(), 5);
    for example in examples {
        if let Err(error) = toml::from_str::<Spec>(example) {
            panic!("{example}\n{error}");
        }
    }
}

/// All of a request, so that a hash covers it.
fn digest(requests: impl Iterator<Item = Request>) -> String {
    let mut hasher = blake3::Hasher::new();
    for request in requests {
        let Request { at_us, client, session, input, output, prefix } = request;
        for number in [at_us, client.into(), session, input.into(), output.into()].iter().chain(&*prefix) {
            hasher.update(&number.to_le_bytes());
        }
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

#[test]
fn requests_are_the_same_on_every_machine() {
    let talk = "talk = { groups = 3, users = 4, system = 900, question = { mean = 90, p50 = 60, p90 = 200, p99 = 600 }, answer = 9 }";
    let cases = [
        ("kind = \"azure\"\nclients = 5".to_owned(), "8494332f863cfe80"),
        ("kind = \"mooncake\"".to_owned(), "fee66a36d6b36908"),
        ("kind = \"servegen\"\nscale = 0.05\nprefixes = { system = 400 }".to_owned(), "42d7ec758bbf26f6"),
        (format!("kind = \"users\"\nramp_s = 3.0\nuntil_s = 60.0\n{talk}"), "b318dd185934b248"),
        (
            format!(
                "kind = \"visitors\"\nuntil_s = 60.0\narrivals = {{ kind = \"bursts\", per_s = [1.0, 9.0], mean_s = [2.0, 3.0] }}\n{talk}"
            ),
            "ab77571843e9fd08",
        ),
        (
            format!(
                "kind = \"visitors\"\nuntil_s = 60.0\narrivals = {{ kind = \"diurnal\", per_s = 9.0, swing = 0.5, period_s = 20.0 }}\n{talk}"
            ),
            "7010a120967943fe",
        ),
    ];
    let digests = cases.each_ref().map(|(text, _)| {
        let mut workload = toml::from_str::<Spec>(text).unwrap().workload(1).unwrap();
        digest(std::iter::from_fn(|| workload.next()).take(3000))
    });
    assert_eq!(digests.each_ref().map(String::as_str), cases.map(|(_, frozen)| frozen));
}
