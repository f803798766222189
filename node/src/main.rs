//! The `spillway` program: reads the command line, does the one thing it asks for, and says how that went.
//! Invariant: the exit code is 0 when it was done, 1 when it failed, 2 when the command line was wrong.

mod cli;

use clap::Parser;
use std::process::ExitCode;
use tokio::runtime::Builder;

/// With the system's, a request takes half as much processor time again: `docs/performance.md`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    let threads = arguments.threads();
    // One thread needs no other's leave for its next step.
    let mut builder = if threads == Some(1) { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    if let Some(threads) = threads {
        builder.worker_threads(threads);
    }
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(cli::run(arguments)) {
        Ok(cli::Verdict::Done) => ExitCode::SUCCESS,
        Ok(cli::Verdict::Failed) => ExitCode::FAILURE,
        Err(error) => {
            // The causes in one line: each was worded to follow its context.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
