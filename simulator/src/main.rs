//! The simulator by itself: `spillway-sim`.

use clap::Parser as _;
use std::process::ExitCode;

/// Runs Spillway's market in virtual time: real protocol and ledger code, made-up network, GPUs and clients.
#[derive(clap::Parser)]
#[command(name = "spillway-sim", version)]
struct Cli {
    #[command(flatten)]
    args: spillway_simulator::cli::Args,
}

fn main() -> ExitCode {
    match spillway_simulator::cli::run(Cli::parse().args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("spillway-sim: {error:#}");
            ExitCode::FAILURE
        }
    }
}
