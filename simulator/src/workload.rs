//! Clients: when they come, what they ask, when they leave.
//! Invariant: what clients do depends on the seed and the scenario alone, never on how they are served.

use crate::draws::Draws;
use crate::oracle;
use crate::scenario::{Arrivals, Clients, Preference};
use spillway_ledger::{Credits, JobId, Price};
use spillway_protocol::{Job, Kind, Prefer};

/// One group of clients.
#[derive(Debug)]
pub struct Source {
    rules: Clients,
    draws: Draws,
    /// What is left of the present burst, in microseconds.
    burst_left: u64,
}

/// A client with its request.
#[derive(Clone, Debug)]
pub struct Client {
    /// What it asks.
    pub job: Job,
    /// Which gateway of its fleet, from 0.
    pub gateway: usize,
    /// After how many microseconds it leaves, if it does.
    pub leaves: Option<u64>,
}

impl Source {
    /// The `index`-th group of a scenario.
    #[must_use]
    pub fn new(seed: u64, index: usize, rules: Clients) -> Self {
        let draws = Draws::new(seed, &format!("workload {index}"));
        Self { rules, draws, burst_left: 0 }
    }

    /// The fleet it asks.
    #[must_use]
    pub fn fleet(&self) -> &str {
        &self.rules.fleet
    }

    /// How long until the next client, in microseconds.
    pub fn wait(&mut self) -> u64 {
        match self.rules.arrivals {
            Arrivals::Poisson { per_minute } => self.draws.wait(60_000_000 / per_minute.max(1)),
            Arrivals::Burst { per_minute, on_ms, off_ms } => {
                let mut lull = 0_u64;
                loop {
                    let wait = self.draws.wait(60_000_000 / per_minute.max(1));
                    if wait <= self.burst_left {
                        self.burst_left -= wait;
                        return lull.saturating_add(wait);
                    }
                    // The burst ends before the next client would come; an exponential wait may start anew.
                    lull = lull.saturating_add(self.burst_left).saturating_add(self.draws.wait(off_ms * 1000));
                    self.burst_left = self.draws.wait(on_ms * 1000);
                }
            }
        }
    }

    /// The next client, for one of `gateways`.
    pub fn client(&mut self, gateways: usize) -> Client {
        let rules = &self.rules;
        let draws = &mut self.draws;
        let id = JobId(draws.name());
        let prompt = usize::try_from(draws.within(rules.prompt_bytes)).expect("at most a MiB");
        let answer = u32::try_from(draws.within(rules.answer_bytes)).expect("at most a MiB");
        let bad = draws.happens(rules.bad_per_mille * 1000);
        let single = draws.happens(rules.single_per_mille * 1000);
        let leaves = draws.happens(rules.leave_per_mille * 1000).then(|| draws.within([0, 6_000_000]));
        let gateway = usize::try_from(draws.below(gateways as u64)).expect("below a usize");
        let input = Credits::new(rules.price_input_max_micro);
        let body = oracle::body(prompt, answer, id.0, bad);
        let job = Job {
            id,
            model: rules.model.clone(),
            kind: Kind::Chat,
            prefix: spillway_protocol::prefix::names(&rules.model, &body),
            body,
            output_max: u64::from(answer).max(1),
            continuable: !single,
            prefer: match rules.prefer {
                Preference::OwnFirst => Prefer::OwnFirst,
                Preference::Own => Prefer::Own,
                Preference::Any => Prefer::Any,
            },
            price_max: Price { input, cached: input, output: Credits::new(rules.price_output_max_micro) },
            alternatives: Vec::new(),
            preferences: spillway_protocol::Preferences::default(),
            own: spillway_protocol::OwnChoice::default(),
            whole: false,
            target_ms: None,
        };
        Client { job, gateway, leaves }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(arrivals: Arrivals) -> Clients {
        Clients {
            fleet: "g".into(),
            model: "m".into(),
            arrivals,
            prompt_bytes: [40, 50],
            answer_bytes: [1, 9],
            prefer: Preference::OwnFirst,
            price_input_max_micro: 1,
            price_output_max_micro: 2,
            leave_per_mille: 500,
            bad_per_mille: 0,
            single_per_mille: 0,
        }
    }

    /// Arrivals in each of `count` stretches of that many microseconds.
    fn counts(arrivals: Arrivals, stretch: u64, count: usize) -> Vec<u64> {
        let mut source = Source::new(5, 0, rules(arrivals));
        let mut counts = vec![0; count];
        let mut at = 0;
        loop {
            at += source.wait();
            let Some(slot) = counts.get_mut((at / stretch) as usize) else { return counts };
            *slot += 1;
        }
    }

    /// Variance over mean: 1 for Poisson, more for bursts.
    fn dispersion(counts: &[u64]) -> f64 {
        let mean = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
        counts.iter().map(|count| (*count as f64 - mean) * (*count as f64 - mean)).sum::<f64>()
            / counts.len() as f64
            / mean
    }

    #[test]
    fn poisson_is_even_and_bursts_are_not() {
        let poisson = counts(Arrivals::Poisson { per_minute: 600 }, 1_000_000, 2000);
        let total: u64 = poisson.iter().sum();
        assert!((19_400..20_600).contains(&total), "{total} for 20,000 expected");
        assert!((0.9..1.1).contains(&dispersion(&poisson)));
        let burst = counts(Arrivals::Burst { per_minute: 1800, on_ms: 2000, off_ms: 4000 }, 1_000_000, 2000);
        let total: u64 = burst.iter().sum();
        assert!((17_500..22_500).contains(&total), "{total} for 20,000 expected");
        assert!(dispersion(&burst) > 5.0);
    }

    #[test]
    fn clients_stay_within_their_rules() {
        let mut source = Source::new(5, 0, rules(Arrivals::Poisson { per_minute: 1 }));
        let clients: Vec<_> = (0..400).map(|_| source.client(3)).collect();
        assert!(clients.iter().all(|client| (40..=50).contains(&client.job.body.len()) && client.gateway < 3));
        assert!(clients.iter().all(|client| (1..=9).contains(&client.job.output_max)));
        let left = clients.iter().filter(|client| client.leaves.is_some()).count();
        assert!((150..250).contains(&left));
    }
}
