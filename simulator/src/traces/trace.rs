//! A workload that was recorded: what was asked, and when.
//! Invariant: its requests are in order of time; at most [`REQUESTS_MAX`] of them, which name at most [`NAMES_MAX`] blocks.

use super::error::TraceError;
use super::names::mix;
use super::{Request, Workload};

/// Requests of one trace: half a gigabyte.
pub const REQUESTS_MAX: usize = 10_000_000;
/// Names of blocks in one trace, all together: 400 MB.
pub const NAMES_MAX: usize = 50_000_000;

/// A recorded workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    requests: Vec<Request>,
}

impl Trace {
    /// Puts requests in order; those of the same time stay as they are.
    #[must_use]
    pub fn new(mut requests: Vec<Request>) -> Self {
        requests.sort_by_key(|request| request.at_us);
        Self { requests }
    }

    /// What was asked, in order.
    #[must_use]
    pub fn requests(&self) -> &[Request] {
        &self.requests
    }

    /// From the first request to the last, in microseconds.
    #[must_use]
    pub fn span_us(&self) -> u64 {
        let at = |request: Option<&Request>| request.map_or(0, |request| request.at_us);
        at(self.requests.last()) - at(self.requests.first())
    }

    /// What came from `from_us` until before `to_us`, told from `from_us`.
    #[must_use]
    pub fn between(mut self, from_us: u64, to_us: u64) -> Self {
        self.requests.retain(|request| (from_us..to_us).contains(&request.at_us));
        for request in &mut self.requests {
            request.at_us -= from_us;
        }
        self
    }

    /// The same requests at `pace` times the rate; 1 if it is not above 0.
    #[must_use]
    pub fn paced(mut self, pace: f64) -> Self {
        if pace > 0.0 && pace.is_finite() {
            for request in &mut self.requests {
                request.at_us = (request.at_us as f64 / pace) as u64;
            }
        }
        self
    }

    /// Spreads the conversations over `clients` clients, always the same way: for a trace that does not tell its clients.
    #[must_use]
    pub fn spread(mut self, clients: u32) -> Self {
        for request in &mut self.requests {
            request.client = (mix(1, request.session) % u64::from(clients.max(1))) as u32;
        }
        self
    }

    /// As a workload: each request at its time, whatever becomes of the others.
    #[must_use]
    pub fn replay(self) -> Replay {
        Replay(self.requests.into_iter())
    }
}

/// A trace that is played.
#[derive(Clone, Debug)]
pub struct Replay(std::vec::IntoIter<Request>);

impl Iterator for Replay {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        self.0.next()
    }
}

impl Workload for Replay {
    fn next(&mut self) -> Option<Request> {
        self.0.next()
    }
}

/// Gathers a file's requests within bounds.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    requests: Vec<Request>,
    names: usize,
}

impl Gathered {
    /// Adds one that stands at the present line.
    pub(crate) fn push(&mut self, file: &str, request: Request) -> Result<(), TraceError> {
        let too_many = |what, max| TraceError::TooMany { file: file.to_owned(), what, max };
        self.names += request.prefix.len();
        if self.names > NAMES_MAX {
            return Err(too_many("names of blocks", NAMES_MAX));
        }
        if self.requests.len() == REQUESTS_MAX {
            return Err(too_many("requests", REQUESTS_MAX));
        }
        self.requests.push(request);
        Ok(())
    }

    /// All of them, if there are any.
    pub(crate) fn all(self, file: &str) -> Result<Vec<Request>, TraceError> {
        if self.requests.is_empty() {
            return Err(TraceError::Empty { file: file.to_owned() });
        }
        Ok(self.requests)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(at_us: &[u64]) -> Trace {
        let request = |(index, at_us): (usize, &u64)| Request {
            at_us: *at_us,
            session: index as u64,
            output: 1,
            ..Request::default()
        };
        Trace::new(at_us.iter().enumerate().map(request).collect())
    }

    fn times(trace: &Trace) -> Vec<u64> {
        trace.requests().iter().map(|request| request.at_us).collect()
    }

    #[test]
    fn traces_are_ordered_cut_and_paced() {
        let trace = trace(&[50, 10, 30, 30]);
        assert_eq!(times(&trace), [10, 30, 30, 50]);
        assert_eq!(trace.requests()[1].session, 2, "equal times stay in their order");
        assert_eq!(trace.span_us(), 40);
        assert_eq!(times(&trace.clone().between(30, 50)), [0, 0]);
        assert_eq!(times(&trace.clone().paced(2.0)), [5, 15, 15, 25]);
        assert_eq!(times(&trace.clone().paced(f64::NAN)), [10, 30, 30, 50]);
        let replay = trace.replay();
        let played: Vec<_> = replay.map(|request| request.at_us).collect();
        assert_eq!(played, [10, 30, 30, 50]);
    }

    #[test]
    fn conversations_are_spread_evenly_over_clients() {
        let trace = trace(&[0; 4000]).spread(4);
        for client in 0..4 {
            let count = trace.requests().iter().filter(|request| request.client == client).count();
            assert!((900..1100).contains(&count), "client {client} has {count} of 4,000");
        }
        assert!(trace.spread(0).requests().iter().all(|request| request.client == 0));
    }
}
