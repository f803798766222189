//! The campaigns in their long form, one JSON line each.
//!
//! `cargo run -p spillway-bft --example campaign -- NAME [COUNT] [SEED]`; build `--example validator` first.
//! `scripts/validators.sh` does both.

#[path = "../tests/committee/mod.rs"]
mod committee;

use committee::scenarios;

fn main() {
    let mut words = std::env::args().skip(1);
    let name = words.next().unwrap_or_default();
    let mut number = |default: u64| words.next().map_or(default, |word| word.parse().expect("a number"));
    let figures = match name.as_str() {
        "one_down" => scenarios::one_down(usize::try_from(number(4)).expect("a small number")),
        "kill_cycles" => scenarios::kill_cycles(number(500), number(1)),
        "lies" => scenarios::lies(usize::try_from(number(10)).expect("a small number")),
        "twins" => scenarios::twins(),
        "election" => scenarios::election(),
        "partition" => scenarios::partition(u32::try_from(number(5)).expect("a small number")),
        "slow_clock" => scenarios::slow_clock(),
        _ => panic!("campaigns: one_down, kill_cycles, lies, twins, election, partition, slow_clock"),
    };
    println!("{figures}");
}
