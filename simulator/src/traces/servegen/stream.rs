//! Draws requests from what is known of clients.
//! Invariant: requests come in order of time; what is held grows with the clients, not with the requests. A client's requests
//! follow from the seed and its own windows, whichever others are picked.
//!
//! Each client is a renewal process on a clock of its own, which runs as fast as its rate: gaps of mean 1 are drawn there, by
//! the law of the window in which the gap begins, and carried over the ends of windows. So a window's expected requests are its
//! rate times its length, however bursty the law. Prompt and answer are drawn apart from each other.

use super::super::error::{SettingError, within};
use super::super::sampling::{Gaps, Lengths};
use super::super::{Request, Workload};
use super::{Clients, WINDOW_S, Window};
use crate::draws::Draws;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

/// Bits of a queue's key that name the client.
const CLIENT_BITS: u32 = 16;

/// Which clients ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Pick {
    /// All.
    #[default]
    All,
    /// Those with the most requests.
    Greatest(usize),
    /// These ids.
    Only(Vec<u32>),
}

/// What is drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// All draws follow from it.
    pub seed: u64,
    /// Every rate is multiplied by it; from 1e-6 to 1000.
    pub scale: f64,
    /// From when, in seconds of the source; the stream's time begins here.
    pub from_s: u32,
    /// Until when, in seconds of the source.
    pub to_s: u32,
    /// Who.
    pub pick: Pick,
}

impl Default for Sample {
    fn default() -> Self {
        Self { seed: 0, scale: 1.0, from_s: 0, to_s: u32::MAX, pick: Pick::All }
    }
}

/// Requests drawn one after the other.
#[derive(Debug)]
pub struct Stream {
    sources: Vec<Source>,
    /// When each source's next request comes, in microseconds, and its index in the lower bits.
    due: BinaryHeap<Reverse<u64>>,
    /// Lengths by client, and which client's a client without its own takes.
    lengths: Vec<[Lengths; 2]>,
    /// For each of `lengths`, how much traffic lies before it, in parts of 2^64.
    shares: Vec<u64>,
    count: u64,
}

/// One client at work.
#[derive(Debug)]
struct Source {
    id: u32,
    draws: Draws,
    spans: Box<[Span]>,
    /// The present span.
    at: usize,
    /// When the next request comes, in seconds since the stream began.
    next_s: f64,
    /// Its own lengths among the stream's.
    lengths: Option<usize>,
}

/// What of a window is drawn from. Times in seconds since the stream began.
#[derive(Debug)]
struct Span {
    begin_s: f64,
    end_s: f64,
    /// Requests a second.
    rate: f64,
    gaps: Gaps,
}

impl Clients {
    /// Begins to draw. Windows that lie across an end of the sample are cut there.
    pub fn stream(&self, sample: &Sample) -> Result<Stream, SettingError> {
        within("scale", sample.scale, 1e-6, 1e3)?;
        within("from_s", sample.from_s.into(), 0.0, self.end_s().saturating_sub(1).into())?;
        let to_s = sample.to_s.min(self.end_s());
        within("to_s", to_s.into(), f64::from(sample.from_s) + 1.0, f64::from(u32::MAX))?;
        let mut picked: Vec<u32> = match &sample.pick {
            Pick::All => self.all().iter().map(|client| client.id).collect(),
            Pick::Greatest(count) => self.greatest().iter().take(*count).map(|(id, _)| *id).collect(),
            Pick::Only(ids) => ids.clone(),
        };
        picked.sort_unstable();
        // Without lengths of their own, clients take those of all others, each as often as it asks.
        let known: Vec<_> =
            self.all().iter().filter_map(|client| Some((client.id, client.lengths.as_ref()?))).collect();
        let total: f64 = known.iter().map(|(_, lengths)| lengths.weight).sum();
        within("lengths", total, f64::MIN_POSITIVE, f64::MAX)?;
        let mut before = 0.0;
        let mut shares = Vec::with_capacity(known.len());
        for (_, lengths) in &known {
            // A cast of what is too great gives the greatest.
            shares.push((before / total * 2.0_f64.powi(64)) as u64);
            before += lengths.weight;
        }
        let mut sources = Vec::new();
        for client in self.all().iter().filter(|client| picked.binary_search(&client.id).is_ok()) {
            let span = |window: &Window| {
                let begin = window.start_s.max(sample.from_s);
                let end = (window.start_s + WINDOW_S).min(to_s);
                (begin < end && window.rate > 0.0).then(|| Span {
                    begin_s: f64::from(begin - sample.from_s),
                    end_s: f64::from(end - sample.from_s),
                    rate: window.rate * sample.scale,
                    gaps: window.gaps,
                })
            };
            sources.push(Source {
                id: client.id,
                draws: Draws::new(sample.seed, &format!("servegen client {}", client.id)),
                spans: client.windows.iter().filter_map(span).collect(),
                at: 0,
                next_s: 0.0,
                lengths: known.binary_search_by_key(&client.id, |(id, _)| *id).ok(),
            });
        }
        let mut due = BinaryHeap::with_capacity(sources.len());
        for (index, source) in sources.iter_mut().enumerate() {
            if let Some(at_us) = source.begin() {
                due.push(Reverse(key_of(at_us, index)));
            }
        }
        let lengths = known.into_iter().map(|(_, lengths)| [lengths.input.clone(), lengths.output.clone()]).collect();
        Ok(Stream { sources, due, lengths, shares, count: 0 })
    }
}

impl Stream {
    /// Prompt and answer of a source's next request.
    fn lengths(&mut self, index: usize) -> (u32, u32) {
        let Source { draws, lengths, .. } = &mut self.sources[index];
        let of = match *lengths {
            Some(own) => own,
            None => {
                let place = draws.any();
                self.shares.partition_point(|share| *share <= place) - 1
            }
        };
        let [input, output] = &self.lengths[of];
        (input.draw(draws), output.draw(draws))
    }
}

impl Iterator for Stream {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        let Reverse(key) = *self.due.peek()?;
        let (at_us, index) = (key >> CLIENT_BITS, (key & ((1 << CLIENT_BITS) - 1)) as usize);
        let (input, output) = self.lengths(index);
        let source = &mut self.sources[index];
        let (client, after) = (source.id, source.after());
        let mut first = self.due.peek_mut()?;
        match after {
            Some(at_us) => *first = Reverse(key_of(at_us, index)),
            None => {
                PeekMut::pop(first);
            }
        }
        let session = self.count;
        self.count += 1;
        Some(Request { at_us, client, session, input, output, prefix: Box::default() })
    }
}

impl Workload for Stream {
    fn next(&mut self) -> Option<Request> {
        Iterator::next(self)
    }
}

/// Time first, then the client.
fn key_of(at_us: u64, index: usize) -> u64 {
    at_us << CLIENT_BITS | index as u64
}

impl Source {
    /// When the first request comes, in microseconds.
    fn begin(&mut self) -> Option<u64> {
        let first = self.spans.first()?;
        self.next_s = first.begin_s;
        let rest = first.gaps.rest(&mut self.draws);
        self.go_on(rest)
    }

    /// When the request after the present one comes, in microseconds.
    fn after(&mut self) -> Option<u64> {
        let gap = self.spans.get(self.at)?.gaps.draw(&mut self.draws);
        self.go_on(gap)
    }

    /// Goes on by `gap` on the client's own clock.
    fn go_on(&mut self, mut gap: f64) -> Option<u64> {
        loop {
            let span = self.spans.get(self.at)?;
            let at_s = self.next_s + gap / span.rate;
            if at_s < span.end_s {
                self.next_s = at_s;
                return Some((at_s * 1e6) as u64);
            }
            gap -= (span.end_s - self.next_s) * span.rate;
            self.at += 1;
            self.next_s = self.spans.get(self.at)?.begin_s;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests a second, over the sample's span.
    fn drawn(sample: &Sample) -> Vec<Request> {
        Clients::day().stream(sample).unwrap().collect()
    }

    fn gaps_cv(requests: &[Request]) -> f64 {
        let gaps: Vec<f64> = requests.windows(2).map(|pair| (pair[1].at_us - pair[0].at_us) as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let square = gaps.iter().map(|gap| (gap - mean) * (gap - mean)).sum::<f64>() / gaps.len() as f64;
        square.sqrt() / mean
    }

    #[test]
    fn a_day_has_the_tables_rates() {
        let requests = drawn(&Sample { seed: 1, scale: 0.005, ..Sample::default() });
        assert!(requests.windows(2).all(|pair| pair[0].at_us <= pair[1].at_us));
        assert!(requests.iter().all(|request| request.input >= 1 && request.output >= 1));
        let table = Clients::day().rates();
        let expected = Clients::day().mean_rate() * 0.005 * 86_400.0;
        let count = requests.len() as f64;
        assert!((count / expected - 1.0).abs() < 0.03, "{count} requests, expected {expected}");
        // By the hour.
        let mut hours = [0.0; 24];
        for request in &requests {
            hours[(request.at_us / 3_600_000_000) as usize] += 1.0;
        }
        for (hour, drawn) in hours.iter().enumerate() {
            let expected = table[6 * hour..6 * hour + 6].iter().sum::<f64>() * 3.0;
            assert!((drawn / expected - 1.0).abs() < 0.2, "hour {hour}: {drawn}, expected {expected}");
        }
        // The shares of the greatest.
        for (id, share) in Clients::day().greatest().into_iter().take(4) {
            let drawn = requests.iter().filter(|request| request.client == id).count() as f64 / count;
            assert!((drawn / share - 1.0).abs() < 0.15, "client {id}: {drawn}, not {share}");
        }
    }

    #[test]
    fn a_window_has_the_tables_swing_at_full_scale() {
        // The busiest ten minutes and the quietest, each its first half minute.
        let rates = Clients::day().rates();
        for window in [
            (0..rates.len()).max_by(|a, b| rates[*a].total_cmp(&rates[*b])).unwrap(),
            (0..rates.len()).min_by(|a, b| rates[*a].total_cmp(&rates[*b])).unwrap(),
        ] {
            let from_s = window as u32 * WINDOW_S;
            let count = drawn(&Sample { from_s, to_s: from_s + 30, ..Sample::default() }).len() as f64;
            let expected = rates[window] * 30.0;
            assert!((count / expected - 1.0).abs() < 0.15, "window {window}: {count}, expected {expected}");
        }
    }

    #[test]
    fn bursty_clients_are_bursty_and_even_ones_even() {
        // Clients with the most requests of all whose mean variation is high, and low.
        let day = Clients::day();
        let mut seen = [false; 2];
        for (id, _) in day.greatest().into_iter().take(12) {
            let client = day.all().iter().find(|client| client.id == id).unwrap();
            // One window is of one law.
            let window = client.windows.iter().max_by(|a, b| a.rate.total_cmp(&b.rate)).unwrap();
            let cv = window.gaps.cv();
            let sample = Sample {
                seed: 5,
                from_s: window.start_s,
                to_s: window.start_s + WINDOW_S,
                pick: Pick::Only(vec![id]),
                ..Sample::default()
            };
            let drawn: Vec<_> = day.stream(&sample).unwrap().take(8000).collect();
            if drawn.len() < 2000 {
                continue;
            }
            let ratio = gaps_cv(&drawn) / cv;
            assert!((0.7..1.4).contains(&ratio), "client {id}: {} of a law with {cv}", gaps_cv(&drawn));
            seen[usize::from(cv > 1.5)] = true;
        }
        assert_eq!(seen, [true; 2], "both kinds are among the greatest");
    }

    #[test]
    fn a_bursty_client_asks_no_more_than_its_rate() {
        // 300 requests in ten minutes, at a variation of 8. Were each stream to begin with a whole gap, as after a request, it
        // would have (8² - 1) / 2 = 31 too many.
        let gaps = Gaps::gamma(1.0 / 64.0);
        let window = |start_s| Window { start_s, rate: 0.25, gaps };
        let client = super::super::Client { id: 0, windows: vec![window(0), window(600)], lengths: None };
        let lengths = Clients::day().all().iter().find_map(|client| client.lengths.clone());
        let other = super::super::Client { id: 1, windows: vec![window(0)], lengths };
        let clients = Clients { clients: vec![client, other] };
        let seeds = 500;
        let count = |seed| {
            clients.stream(&Sample { seed, pick: Pick::Only(vec![0]), ..Sample::default() }).unwrap().count() as f64
        };
        let mean = (0..seeds).map(count).sum::<f64>() / f64::from(seeds as u32);
        // The standard error is 8 * sqrt(300 / 500) = 6.2.
        assert!((mean - 300.0).abs() < 18.0, "{mean} requests of 300");
    }

    #[test]
    fn clients_do_not_depend_on_each_other() {
        let to_s = 1200;
        let all = drawn(&Sample { scale: 0.05, to_s, ..Sample::default() });
        let ids = vec![61, 143, 20];
        let some = drawn(&Sample { scale: 0.05, to_s, pick: Pick::Only(ids.clone()), ..Sample::default() });
        assert!(some.len() > 100);
        let bare = |request: &Request| (request.at_us, request.client, request.input, request.output);
        let picked: Vec<_> = all.iter().filter(|request| ids.contains(&request.client)).map(bare).collect();
        assert_eq!(picked, some.iter().map(bare).collect::<Vec<_>>());
        let greatest = drawn(&Sample { scale: 0.05, to_s, pick: Pick::Greatest(2), ..Sample::default() });
        let top: Vec<u32> = Clients::day().greatest().iter().take(2).map(|(id, _)| *id).collect();
        assert!(greatest.iter().all(|request| top.contains(&request.client)));
        let other = drawn(&Sample { seed: 9, scale: 0.05, to_s, ..Sample::default() });
        assert_ne!(all, other);
    }

    #[test]
    fn lengths_are_the_clients() {
        let day = Clients::day();
        let own = |id: u32| day.all().iter().find(|client| client.id == id).unwrap();
        // The greatest with and the greatest without lengths of its own.
        let greatest = day.greatest();
        let with = greatest.iter().find(|(id, _)| own(*id).lengths.is_some()).unwrap().0;
        let without = greatest.iter().find(|(id, _)| own(*id).lengths.is_none()).unwrap().0;
        let pick = Pick::Only(vec![with, without]);
        let requests = drawn(&Sample { scale: 0.01, pick, ..Sample::default() });
        let mean = |id: u32| {
            let inputs = requests.iter().filter(|request| request.client == id).map(|request| f64::from(request.input));
            let inputs: Vec<f64> = inputs.collect();
            assert!(inputs.len() > 1000, "client {id} has {}", inputs.len());
            inputs.iter().sum::<f64>() / inputs.len() as f64
        };
        let expected = own(with).lengths.as_ref().unwrap().input.mean();
        assert!((mean(with) / expected - 1.0).abs() < 0.1, "client {with}: {}, not {expected}", mean(with));
        let known: Vec<_> = day.all().iter().filter_map(|client| client.lengths.as_ref()).collect();
        let weight: f64 = known.iter().map(|lengths| lengths.weight).sum();
        let expected = known.iter().map(|lengths| lengths.weight * lengths.input.mean()).sum::<f64>() / weight;
        assert!((mean(without) / expected - 1.0).abs() < 0.15, "client {without}: {}, not {expected}", mean(without));
    }

    #[test]
    fn bad_settings_are_named() {
        let cases = [
            (Sample { scale: 0.0, ..Sample::default() }, "scale: 0 is not from 0.000001 to 1000"),
            (Sample { from_s: 86_400, ..Sample::default() }, "from_s: 86400 is not from 0 to 86399"),
            (Sample { from_s: 50, to_s: 50, ..Sample::default() }, "to_s: 50 is not from 51 to 4294967295"),
        ];
        for (sample, error) in cases {
            assert_eq!(Clients::day().stream(&sample).unwrap_err().to_string(), error);
        }
        let none = Sample { pick: Pick::Only(vec![9999]), ..Sample::default() };
        assert_eq!(drawn(&none), []);
    }
}
