//! ServeGen: what each client of a large service asked of it over a fortnight, in numbers.
//! Source: alibaba/ServeGen, m-large; Xiang et al., "ServeGen: Workload Characterization and Generation of Large Language Model
//! Serving in Production", 2025.
//! Invariant: clients ascend by id, and a client's windows by time, none over another.

mod stream;

pub use stream::{Pick, Sample, Stream};

use super::error::{Problem, TraceError};
use super::lines::{Lines, Table};
use super::sampling::{Gaps, Lengths, TOKENS_MAX};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

/// How long a window is, in seconds.
pub const WINDOW_S: u32 = 600;
/// Clients of one table; the published ones have some hundreds.
pub const CLIENTS_MAX: usize = 60_000;
/// Windows of one table, of all clients together; the published one has 99,839.
pub const WINDOWS_MAX: usize = 5_000_000;

const RATE_COLUMNS: [&str; 7] = ["client", "window_start_s", "rate_rps", "cv", "pattern", "arg1", "arg2"];
const LENGTH_COLUMNS: [&str; 10] =
    ["client", "sum_rate", "in_mean", "in_p50", "in_p90", "in_p99", "out_mean", "out_p50", "out_p90", "out_p99"];

/// Which organisation a client belongs to, if there are so many: always the same one.
#[must_use]
pub const fn organisation(client: u32, organisations: u32) -> u32 {
    if organisations == 0 { 0 } else { client % organisations }
}

/// What clients ask, and when.
#[derive(Clone, Debug, Default)]
pub struct Clients {
    clients: Vec<Client>,
}

/// One client.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its number in the source.
    pub id: u32,
    /// When it asks; where there is no window, it asks nothing.
    pub windows: Vec<Window>,
    /// How long its prompts and answers are; none are published for some clients.
    pub lengths: Option<ClientLengths>,
}

/// How long a client's prompts and answers are.
#[derive(Clone, Debug)]
pub struct ClientLengths {
    /// Prompts.
    pub input: Lengths,
    /// Answers.
    pub output: Lengths,
    /// How much of the whole traffic it is: the sum of its rates over all windows.
    pub weight: f64,
}

/// Ten minutes of a client.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    /// When it begins, in seconds.
    pub start_s: u32,
    /// Requests a second.
    pub rate: f64,
    /// How evenly they come. The shape is as published; the scale is not used, as it fits the gaps within a burst and so misses
    /// the rate, by more than 30 % in a tenth of the windows.
    pub gaps: Gaps,
}

impl Clients {
    /// Reads a table of rates and one of lengths, each plain or `.zst`.
    pub fn read(rates: &Path, lengths: &Path) -> Result<Self, TraceError> {
        Self::parse(Lines::open(rates)?, Lines::open(lengths)?)
    }

    /// The day that lies in the repository: all 109 clients that ask from noon of the tenth day to the next. Of all days it has the most
    /// swing: its peak is 2.96 times its mean, as the peak of the whole fortnight is 2.98 times its mean. 15 million requests.
    ///
    /// # Panics
    /// Never: a test reads it.
    #[must_use]
    pub fn day() -> &'static Self {
        static DAY: LazyLock<Clients> = LazyLock::new(|| {
            let rates = Lines::of("servegen_rates.csv.zst", include_bytes!("../../../data/servegen_rates.csv.zst"));
            let lengths = Lines::of("servegen_lengths.csv", include_bytes!("../../../data/servegen_lengths.csv"));
            Clients::parse(rates, lengths).expect("a test reads it")
        });
        &DAY
    }

    pub(super) fn parse(rates: Lines<'_>, lengths: Lines<'_>) -> Result<Self, TraceError> {
        let mut lengths = parse_lengths(lengths)?;
        let clients = parse_rates(rates)?.into_iter().map(|(id, windows)| Client {
            id,
            windows: windows.into_values().collect(),
            lengths: lengths.remove(&id),
        });
        Ok(Self { clients: clients.collect() })
    }

    /// Each client.
    #[must_use]
    pub fn all(&self) -> &[Client] {
        &self.clients
    }

    /// Where the last window ends, in seconds.
    #[must_use]
    pub fn end_s(&self) -> u32 {
        let ends = self.clients.iter().filter_map(|client| client.windows.last());
        ends.map(|window| window.start_s + WINDOW_S).max().unwrap_or(0)
    }

    /// Requests a second of all clients together, in each window from the first to the last.
    #[must_use]
    pub fn rates(&self) -> Vec<f64> {
        let mut rates = vec![0.0; self.end_s().div_ceil(WINDOW_S) as usize];
        for window in self.clients.iter().flat_map(|client| &client.windows) {
            rates[(window.start_s / WINDOW_S) as usize] += window.rate;
        }
        rates
    }

    /// Requests a second over the whole span, of all clients together.
    #[must_use]
    pub fn mean_rate(&self) -> f64 {
        let rates = self.rates();
        rates.iter().sum::<f64>() / rates.len().max(1) as f64
    }

    /// The clients with the most requests, the greatest first, and what share of all requests each has.
    #[must_use]
    pub fn greatest(&self) -> Vec<(u32, f64)> {
        let requests = |client: &Client| client.windows.iter().map(|window| window.rate).sum::<f64>();
        let total: f64 = self.clients.iter().map(requests).sum();
        let mut shares: Vec<_> = self.clients.iter().map(|client| (client.id, requests(client) / total)).collect();
        shares.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        shares
    }
}

fn parse_rates(lines: Lines<'_>) -> Result<BTreeMap<u32, BTreeMap<u32, Window>>, TraceError> {
    /// Ten years.
    const START_MAX_S: u32 = 10 * 366 * 86_400;
    let mut table = Table::new(lines, &RATE_COLUMNS)?;
    let file = table.file().to_owned();
    let mut clients: BTreeMap<u32, BTreeMap<u32, Window>> = BTreeMap::new();
    let mut count = 0;
    while let Some(row) = table.row()? {
        let id = row.whole(0, 0, u32::MAX)?;
        let start_s = row.whole(1, 0, START_MAX_S)?;
        if start_s % WINDOW_S != 0 {
            return Err(row.error(1, Problem::not(start_s, "a multiple of 600")));
        }
        let rate = row.real(2, 0.0, 1e6)?;
        // For the reader of the table; the shape says the same.
        row.real(3, 0.0, 1e9)?;
        let shape = row.real(5, 1e-9, 1e9)?;
        let gaps = match row.text(4) {
            "Gamma" => Gaps::gamma(shape),
            "Weibull" => Gaps::weibull(shape),
            other => return Err(row.error(4, Problem::not(other, "Gamma or Weibull"))),
        };
        count += 1;
        let too_many = |what, max| Err(TraceError::TooMany { file: file.clone(), what, max });
        if count > WINDOWS_MAX {
            return too_many("windows", WINDOWS_MAX);
        }
        let known = clients.len();
        let windows = clients.entry(id).or_default();
        if known == CLIENTS_MAX && windows.is_empty() {
            return too_many("clients", CLIENTS_MAX);
        }
        if windows.insert(start_s, Window { start_s, rate, gaps }).is_some() {
            return Err(row.error(1, Problem::Twice));
        }
    }
    if clients.is_empty() {
        return Err(TraceError::Empty { file });
    }
    Ok(clients)
}

fn parse_lengths(lines: Lines<'_>) -> Result<BTreeMap<u32, ClientLengths>, TraceError> {
    let mut table = Table::new(lines, &LENGTH_COLUMNS)?;
    let file = table.file().to_owned();
    let mut clients = BTreeMap::new();
    while let Some(row) = table.row()? {
        let id = row.whole(0, 0, u32::MAX)?;
        let weight = row.real(1, 0.0, 1e12)?;
        let lengths = |first: usize| {
            let max = f64::from(TOKENS_MAX);
            let mean = row.real(first, 1.0, max)?;
            let p50 = row.real(first + 1, 1.0, max)?;
            let p90 = row.real(first + 2, p50, max)?;
            let p99 = row.real(first + 3, p90, max)?;
            Ok(Lengths::summary(mean, p50, p90, p99))
        };
        let known = ClientLengths { input: lengths(2)?, output: lengths(6)?, weight };
        if clients.insert(id, known).is_some() {
            return Err(row.error(0, Problem::Twice));
        }
        if clients.len() > CLIENTS_MAX {
            return Err(TraceError::TooMany { file, what: "clients", max: CLIENTS_MAX });
        }
    }
    if clients.is_empty() {
        return Err(TraceError::Empty { file });
    }
    Ok(clients)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: &str = "client,window_start_s,rate_rps,cv,pattern,arg1,arg2\n";
    const LENGTHS: &str = "client,sum_rate,in_mean,in_p50,in_p90,in_p99,out_mean,out_p50,out_p90,out_p99\n";

    #[test]
    fn the_day_has_the_published_swing() {
        let day = Clients::day();
        let rates = day.rates();
        let (mean, peak) = (day.mean_rate(), rates.iter().copied().fold(0.0, f64::max));
        let trough = rates.iter().copied().fold(f64::INFINITY, f64::min);
        assert_eq!((day.all().len(), rates.len(), day.end_s()), (109, 144, 86_400));
        // The whole fortnight: mean 195.8, peak over mean 2.98, ten clients with 63 %.
        assert!((mean - 176.9).abs() < 0.1, "mean {mean}");
        assert!((peak / mean - 2.96).abs() < 0.01, "peak over mean {}", peak / mean);
        assert!((peak / trough - 9.43).abs() < 0.01, "peak over trough {}", peak / trough);
        let top: f64 = day.greatest().iter().take(10).map(|(_, share)| share).sum();
        assert!((top - 0.578).abs() < 0.001, "top ten {top}");
        assert_eq!(day.all().iter().filter(|client| client.lengths.is_none()).count(), 15);
    }

    #[test]
    fn lengths_meet_the_published_means() {
        let lines = Lines::of("l.csv", include_bytes!("../../../data/servegen_lengths.csv"));
        let mut table = Table::new(lines, &LENGTH_COLUMNS).unwrap();
        let (mut off, mut traffic) = (Vec::new(), 0.0);
        while let Some(row) = table.row().unwrap() {
            let number = |field: usize| row.real(field, 0.0, 1e9).unwrap();
            traffic += number(1);
            for first in [2, 6] {
                let [mean, p50, p90, p99] = [0, 1, 2, 3].map(|field| number(first + field));
                let lengths = Lengths::summary(mean, p50, p90, p99);
                if (lengths.mean() / mean - 1.0).abs() > 0.01 {
                    off.push((number(0), first, number(1), lengths.mean(), mean));
                }
            }
        }
        assert_eq!(off, [], "of {traffic}");
    }

    #[test]
    fn organisations_are_by_client() {
        assert_eq!([0, 7, 8, 15].map(|client| organisation(client, 8)), [0, 7, 0, 7]);
        assert_eq!(organisation(5, 0), 0);
    }

    #[test]
    fn errors_name_the_field() {
        let good = "0,2,10,9,20,40,10,9,20,40";
        let cases = [
            ("0,0,1,1,Gamma,1,1", "0,2,10,9,8,40,10,9,20,40", "l.csv:2: in_p90: 8 is not from 9 to 10000000"),
            ("0,0,1,1,Gamma,1,1", "0,2,10,9,20,40,0,9,20,40", "l.csv:2: out_mean: 0 is not from 1 to 10000000"),
            ("0,0,1,1,Gamma,1,1", "", "l.csv: empty"),
            ("", good, "r.csv: empty"),
            ("-1,0,1,1,Gamma,1,1", good, "r.csv:2: client: \"-1\" is not a whole number"),
            ("0,601,1,1,Gamma,1,1", good, "r.csv:2: window_start_s: \"601\" is not a multiple of 600"),
            ("0,0,-1,1,Gamma,1,1", good, "r.csv:2: rate_rps: -1 is not from 0 to 1000000"),
            ("0,0,1,1,Pareto,1,1", good, "r.csv:2: pattern: \"Pareto\" is not Gamma or Weibull"),
            ("0,0,1,1,Gamma,0,1", good, "r.csv:2: arg1: 0 is not from 0.000000001 to 1000000000"),
            ("0,0,1,1,Gamma,1,1\n0,0,1,1,Gamma,1,1", good, "r.csv:3: window_start_s: there twice"),
        ];
        for (rates, lengths, error) in cases {
            let (rates, lengths) = (format!("{RATES}{rates}"), format!("{LENGTHS}{lengths}"));
            let parsed = Clients::parse(Lines::of("r.csv", rates.as_bytes()), Lines::of("l.csv", lengths.as_bytes()));
            assert_eq!(parsed.unwrap_err().to_string(), error);
        }
    }
}
