//! `spillway-sim paper`.

use super::{Lab, Page, TABLE, named};
use std::path::PathBuf;
use std::process::ExitCode;

/// What to reproduce.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The result's name, or `all`; without one they are listed.
    name: Option<String>,
    /// The folder with whole traces. By default the one that the variable SPILLWAY_TRACES names.
    #[arg(long)]
    traces: Option<PathBuf>,
    /// Uses the cuts of traces in the repository: quick, and not what was published.
    #[arg(long, conflicts_with = "traces")]
    cut: bool,
    /// Prints one JSON object; an array for `all`.
    #[arg(long)]
    json: bool,
}

/// Prints published, reproduced and our own figures side by side. A figure that misses its goal is no failure of the command.
///
/// # Errors
/// If there is no such result, or it needs a trace that is missing.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Some(name) = &args.name else {
        for entry in TABLE {
            println!("{:<14} {}", entry.name, entry.about);
        }
        return Ok(ExitCode::SUCCESS);
    };
    let progress = |what: &str| eprintln!("{what}");
    let lab = if args.cut {
        Lab::on_cuts(&progress)
    } else {
        Lab::new(args.traces.or_else(|| std::env::var_os("SPILLWAY_TRACES").map(PathBuf::from)), &progress)
    };
    if name != "all" {
        let page = named(name)?.run(&lab)?;
        if args.json {
            println!("{}", serde_json::to_string(&page)?);
        } else {
            print!("{page}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut pages: Vec<Page> = Vec::new();
    for entry in TABLE {
        let page = entry.run(&lab)?;
        if !args.json {
            println!("{page}");
        }
        pages.push(page);
    }
    if args.json {
        println!("{}", serde_json::to_string(&pages)?);
    }
    Ok(ExitCode::SUCCESS)
}
