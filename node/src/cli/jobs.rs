//! `spillway jobs`: what a running node keeps of its last jobs.
//! Invariant: what is exported is what the simulator reads, line by line, and has no content in it.

use super::table;
use super::{Place, Verdict};
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::Value;
use std::time::SystemTime;
use time::format_description::well_known::Rfc3339;
use time::{Date, OffsetDateTime, Time};

#[derive(Debug, Subcommand)]
pub(crate) enum JobsCommand {
    /// Print a JSON line for each of the last 100,000 jobs: time, model, sizes, hashed key and conversation
    Export(ExportArguments),
}

#[derive(Debug, Args)]
pub(crate) struct ExportArguments {
    /// Only jobs that came at this time or later: RFC 3339, a date (UTC), or an age such as 24h, 7d, 90m
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only jobs that came before this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    #[command(flatten)]
    place: Place,
}

/// A time as Unix milliseconds. `way` is -1 where a span such as `24h` lies in the past, 1 where it lies ahead.
pub(super) fn unix_ms(field: &str, text: &str, now: OffsetDateTime, way: i64) -> Result<u64> {
    let age = || {
        let (count, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let seconds: i64 = match unit {
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return None,
        };
        now.checked_add(time::Duration::seconds(count.parse::<u32>().map(i64::from).ok()? * seconds * way))
    };
    let date = || {
        let mut parts = text.splitn(3, '-');
        let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
        let month = time::Month::try_from(month.parse::<u8>().ok()?).ok()?;
        let date = Date::from_calendar_date(year.parse().ok()?, month, day.parse().ok()?).ok()?;
        Some(date.with_time(Time::MIDNIGHT).assume_utc())
    };
    let at = age().or_else(date).or_else(|| OffsetDateTime::parse(text, &Rfc3339).ok());
    match at.and_then(|at| u64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok()) {
        Some(ms) => Ok(ms),
        None => bail!("{field}: {text:?} is not RFC 3339, a date such as 2026-07-01, or a span such as 24h"),
    }
}

/// Runs `spillway jobs …`.
pub(crate) async fn run(command: JobsCommand) -> Result<Verdict> {
    let JobsCommand::Export(arguments) = command;
    let now = OffsetDateTime::from(SystemTime::now());
    let mut wanted = String::new();
    for (field, name, text) in [("--since", "since", &arguments.since), ("--until", "until", &arguments.until)] {
        if let Some(text) = text {
            wanted.push_str(&format!("&{name}={}", unix_ms(field, text, now, -1)?));
        }
    }
    let admin = arguments.place.admin()?;
    let mut from = 0;
    loop {
        let page = admin.get(&format!("/admin/jobs?from={from}{wanted}")).await?;
        let jobs = page.get("jobs").and_then(Value::as_array).context("the node's answer has no `jobs`")?;
        for job in jobs {
            table::line(&job.to_string())?;
        }
        match page.get("next").and_then(Value::as_u64) {
            Some(next) if next > from => from = next,
            Some(_) | None => return Ok(Verdict::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_or_named() {
        let now = OffsetDateTime::from_unix_timestamp(1_782_896_400).expect("a time"); // 2026-07-01T09:00:00Z
        for (text, want) in [
            ("2026-07-01T09:00:00Z", Some(1_782_896_400_000)),
            ("2026-07-01T11:00:00.5+02:00", Some(1_782_896_400_500)),
            ("2026-07-01", Some(1_782_864_000_000)),
            ("90m", Some(1_782_891_000_000)),
            ("24h", Some(1_782_810_000_000)),
            ("1d", Some(1_782_810_000_000)),
            ("", None),
            ("h", None),
            ("1w", None),
            ("-1h", None),
            ("4000000000d", None),
            ("2026-13-01", None),
            ("2026-07-01T09:00:00", None),
            ("1960-01-01", None),
            ("ä", None),
        ] {
            let got = unix_ms("--since", text, now, -1);
            assert_eq!(got.as_ref().ok(), want.as_ref(), "{text}: {got:?}");
            if let Err(error) = got {
                assert!(error.to_string().starts_with("--since: "), "{error}");
            }
        }
        assert_eq!(unix_ms("--expires", "1d", now, 1).expect("tomorrow"), 1_782_982_800_000);
    }
}
