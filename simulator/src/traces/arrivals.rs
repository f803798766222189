//! When those come who ask on their own account: at random, in bursts, by the hour of the day, or in steps.
//! Invariant: arrivals ascend, and follow from the settings and a seed alone.

use super::error::{SettingError, within};
use super::sampling::{exponential, unit};
use crate::draws::Draws;
use serde::Deserialize;

/// Steps of one workload.
const STEPS_MAX: usize = 10_000;
const RATE_MAX: f64 = 1e6;
const SECONDS_MAX: f64 = 1e9;

/// How those come. Rates per second, times in seconds.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Arrivals {
    /// At a constant rate, independent of each other.
    Poisson {
        /// The rate.
        per_s: f64,
    },
    /// In two states by turns, each for an exponentially distributed time: a Markov-modulated Poisson process (MMPP).
    Bursts {
        /// The rates in the first state, which is where it begins, and in the second.
        per_s: [f64; 2],
        /// How long each state lasts, on average.
        mean_s: [f64; 2],
    },
    /// At a rate that goes up and down as a cosine does.
    Diurnal {
        /// The mean rate.
        per_s: f64,
        /// How far the peak lies above the mean, as a share of it: from 0 to 1.
        swing: f64,
        /// From peak to peak; a day by default.
        #[serde(default = "day")]
        period_s: f64,
        /// When the first peak is.
        #[serde(default)]
        peak_s: f64,
    },
    /// At one rate after the other; nobody comes after the last.
    Steps {
        /// In order.
        steps: Vec<Step>,
    },
}

/// A time of constant rate.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// How long.
    pub for_s: f64,
    /// The rate.
    pub per_s: f64,
}

const fn day() -> f64 {
    86_400.0
}

impl Arrivals {
    /// Whether the settings hold.
    pub fn validate(&self) -> Result<(), SettingError> {
        match self {
            Self::Poisson { per_s } => within("per_s", *per_s, 1e-9, RATE_MAX),
            Self::Bursts { per_s, mean_s } => {
                for (rate, mean) in per_s.iter().zip(mean_s) {
                    within("per_s", *rate, 0.0, RATE_MAX)?;
                    within("mean_s", *mean, 1e-6, SECONDS_MAX)?;
                }
                within("per_s", per_s[0] + per_s[1], 1e-9, 2.0 * RATE_MAX)
            }
            Self::Diurnal { per_s, swing, period_s, peak_s } => {
                within("per_s", *per_s, 1e-9, RATE_MAX)?;
                within("swing", *swing, 0.0, 1.0)?;
                within("period_s", *period_s, 1.0, SECONDS_MAX)?;
                within("peak_s", *peak_s, -SECONDS_MAX, SECONDS_MAX)
            }
            Self::Steps { steps } => {
                within("steps", steps.len() as f64, 1.0, STEPS_MAX as f64)?;
                for step in steps {
                    within("for_s", step.for_s, 1e-6, SECONDS_MAX)?;
                    within("per_s", step.per_s, 0.0, RATE_MAX)?;
                }
                Ok(())
            }
        }
    }
}

/// The arrivals one after the other, in seconds.
#[derive(Debug)]
pub struct Times {
    arrivals: Arrivals,
    draws: Draws,
    now_s: f64,
    /// Which state or step, and when it ends.
    state: usize,
    state_end_s: f64,
}

impl Times {
    /// From time 0.
    pub fn new(seed: u64, concern: &str, arrivals: Arrivals) -> Result<Self, SettingError> {
        arrivals.validate()?;
        let mut draws = Draws::new(seed, concern);
        let state_end_s = match &arrivals {
            Arrivals::Poisson { .. } | Arrivals::Diurnal { .. } => f64::INFINITY,
            Arrivals::Bursts { mean_s, .. } => mean_s[0] * exponential(&mut draws),
            Arrivals::Steps { steps } => steps[0].for_s,
        };
        Ok(Self { arrivals, draws, now_s: 0.0, state: 0, state_end_s })
    }

    /// The next arrival among those at that rate until the state ends; otherwise goes there. Exponential gaps may start anew.
    fn until_state_ends(&mut self, per_s: f64) -> Option<f64> {
        let at = if per_s > 0.0 { self.now_s + exponential(&mut self.draws) / per_s } else { f64::INFINITY };
        self.now_s = at.min(self.state_end_s);
        (at < self.state_end_s).then_some(at)
    }
}

impl Iterator for Times {
    type Item = f64;

    fn next(&mut self) -> Option<f64> {
        loop {
            match &self.arrivals {
                Arrivals::Poisson { per_s } => return self.until_state_ends(*per_s),
                Arrivals::Bursts { per_s, mean_s } => {
                    let (rate, mean) = (per_s[self.state], mean_s[1 - self.state]);
                    if let Some(at) = self.until_state_ends(rate) {
                        return Some(at);
                    }
                    self.state = 1 - self.state;
                    self.state_end_s = self.now_s + mean * exponential(&mut self.draws);
                }
                Arrivals::Diurnal { per_s, swing, period_s, peak_s } => {
                    // Thinning (Lewis and Shedler, 1979): draws at the peak's rate, and keeps as many as the rate then allows.
                    let (mean, swing, period, peak) = (*per_s, *swing, *period_s, *peak_s);
                    let at = self.now_s + exponential(&mut self.draws) / (mean * (1.0 + swing));
                    self.now_s = at;
                    let turn = 2.0 * std::f64::consts::PI * ((at - peak) / period);
                    if unit(&mut self.draws) * (1.0 + swing) < 1.0 + swing * libm::cos(turn) {
                        return Some(at);
                    }
                }
                Arrivals::Steps { steps } => {
                    let rate = steps.get(self.state)?.per_s;
                    if let Some(at) = self.until_state_ends(rate) {
                        return Some(at);
                    }
                    self.state += 1;
                    let step = steps_at(&self.arrivals, self.state)?;
                    self.state_end_s += step.for_s;
                }
            }
        }
    }
}

fn steps_at(arrivals: &Arrivals, state: usize) -> Option<Step> {
    if let Arrivals::Steps { steps } = arrivals { steps.get(state).copied() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Arrivals in each of `count` seconds.
    fn counts(arrivals: Arrivals, count: usize) -> Vec<f64> {
        let mut counts = vec![0.0; count];
        let mut last = 0.0;
        for at in Times::new(4, "test", arrivals).unwrap() {
            assert!(at >= last);
            last = at;
            let Some(slot) = counts.get_mut(at as usize) else { break };
            *slot += 1.0;
        }
        counts
    }

    fn mean(counts: &[f64]) -> f64 {
        counts.iter().sum::<f64>() / counts.len() as f64
    }

    /// Variance over mean: 1 for Poisson, more for bursts.
    fn dispersion(counts: &[f64]) -> f64 {
        let mean = mean(counts);
        counts.iter().map(|count| (count - mean) * (count - mean)).sum::<f64>() / counts.len() as f64 / mean
    }

    #[test]
    fn poisson_is_poisson() {
        let counts = counts(Arrivals::Poisson { per_s: 20.0 }, 2000);
        assert!((mean(&counts) / 20.0 - 1.0).abs() < 0.03, "{}", mean(&counts));
        assert!((0.85..1.15).contains(&dispersion(&counts)), "{}", dispersion(&counts));
    }

    #[test]
    fn bursts_have_the_mean_and_variance_of_an_mmpp() {
        let counts = counts(Arrivals::Bursts { per_s: [5.0, 65.0], mean_s: [15.0, 5.0] }, 20_000);
        // A quarter of the time at 65: 0.75 * 5 + 0.25 * 65 = 20.
        assert!((mean(&counts) / 20.0 - 1.0).abs() < 0.1, "{}", mean(&counts));
        // Index of dispersion for windows much shorter than a state: 1 + the rate's variance over its mean, less what averages
        // out within a second, under a tenth: variance 0.75 * 0.25 * 60² = 675.
        let expected = 1.0 + 675.0 / 20.0;
        assert!((0.8..1.1).contains(&(dispersion(&counts) / expected)), "{}, not {expected}", dispersion(&counts));
        let on_off = Arrivals::Bursts { per_s: [0.0, 50.0], mean_s: [1000.0, 10.0] };
        assert!(super::Times::new(4, "test", on_off).unwrap().take(1000).all(f64::is_finite));
    }

    #[test]
    fn days_rise_and_fall() {
        let arrivals = Arrivals::Diurnal { per_s: 50.0, swing: 0.6, period_s: 400.0, peak_s: 100.0 };
        let counts = counts(arrivals, 4000);
        assert!((mean(&counts) / 50.0 - 1.0).abs() < 0.03);
        let around = |second: usize| {
            let at: Vec<f64> =
                (0..10).flat_map(|day| counts[day * 400 + second - 10..day * 400 + second + 10].to_vec()).collect();
            mean(&at)
        };
        for (second, expected) in [(100, 80.0), (300, 20.0), (200, 50.0)] {
            assert!((around(second) / expected - 1.0).abs() < 0.1, "second {second}: {}", around(second));
        }
    }

    #[test]
    fn steps_follow_each_other_and_end() {
        let step = |for_s, per_s| Step { for_s, per_s };
        let steps = vec![step(100.0, 3.0), step(50.0, 0.0), step(100.0, 60.0)];
        let counts = counts(Arrivals::Steps { steps: steps.clone() }, 400);
        for (range, expected) in [(0..100, 3.0), (150..250, 60.0)] {
            assert!((mean(&counts[range]) / expected - 1.0).abs() < 0.15);
        }
        assert_eq!((mean(&counts[100..150]), mean(&counts[250..])), (0.0, 0.0));
        let mut times = Times::new(1, "test", Arrivals::Steps { steps }).unwrap();
        assert!(times.by_ref().last().is_some());
        assert_eq!(times.next(), None, "what has ended stays so");
    }

    #[test]
    fn settings_are_read_and_bad_ones_named() {
        let read = |text: &str| toml::from_str::<Arrivals>(text).unwrap();
        assert_eq!(
            read("kind = \"diurnal\"\nper_s = 2.0\nswing = 0.5"),
            Arrivals::Diurnal { per_s: 2.0, swing: 0.5, period_s: 86_400.0, peak_s: 0.0 }
        );
        let cases = [
            ("kind = \"poisson\"\nper_s = 0.0", "per_s: 0 is not from 0.000000001 to 1000000"),
            ("kind = \"poisson\"\nper_s = nan", "per_s: NaN is not from 0.000000001 to 1000000"),
            (
                "kind = \"bursts\"\nper_s = [0.0, 0.0]\nmean_s = [1.0, 1.0]",
                "per_s: 0 is not from 0.000000001 to 2000000",
            ),
            (
                "kind = \"bursts\"\nper_s = [0.0, 1.0]\nmean_s = [0.0, 1.0]",
                "mean_s: 0 is not from 0.000001 to 1000000000",
            ),
            ("kind = \"diurnal\"\nper_s = 1.0\nswing = 1.5", "swing: 1.5 is not from 0 to 1"),
            ("kind = \"steps\"\nsteps = []", "steps: 0 is not from 1 to 10000"),
            ("kind = \"steps\"\nsteps = [{ for_s = 0.0, per_s = 1.0 }]", "for_s: 0 is not from 0.000001 to 1000000000"),
        ];
        for (text, error) in cases {
            assert_eq!(read(text).validate().unwrap_err().to_string(), error);
        }
    }
}
