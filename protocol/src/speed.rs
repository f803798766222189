//! How fast a backend is, learned from what it did: the wait for the first text, and the time per unit after it.
//! Invariants: every prediction is finite and within [`LEAST_US`] and [`MOST_US`]; once learned, a measurement that is
//! absurd beside the ones before it is not learned from, unless [`RECENT`] in a row agree.
//!
//! Both halves are linear, as an engine with continuous batching is between its limits:
//!
//! ```text
//! first text = start + beside · running + read · own prompt + ahead · prompts before it     (prompts: uncached units)
//! per unit   = alone + shared · running                                                     (running: beside this job)
//! ```
//!
//! They are fitted by recursive least squares on relative errors. Before data they follow a default, and the first three
//! measurements scale all of it at once: hardware differs far more in its speed than in its proportions.

use std::time::Duration;

/// The shortest time that is measured or predicted, in microseconds.
pub const LEAST_US: f64 = 1.0;
/// The longest: one hour.
pub const MOST_US: f64 = 3.6e9;
/// Rates of fewer units than this say nothing.
pub const RATE_UNITS_MIN: u64 = 16;

/// Start, beside, read, ahead, in microseconds (the last two per 1,000 units): a mid-sized model on one data-centre GPU.
const FIRST_DEFAULT: [f64; 4] = [60_000.0, 2_000.0, 25_000.0, 25_000.0];
/// Alone and shared, in microseconds per unit.
const RATE_DEFAULT: [f64; 2] = [5_000.0, 150.0];

/// What the next measurement weighs against all before it: about 25 are remembered.
const MEMORY: f64 = 0.96;
/// The square of the relative noise that one measurement is taken to have.
const NOISE: f64 = 0.01;
/// How far a parameter may lie from its proportion in the default, as a multiple of it: one standard deviation.
const FREEDOM: f64 = 3.0;
/// What misses by more than this many times the usual miss is not learned from.
const OUTLIER: f64 = 3.0;
/// The usual relative miss is never taken to be smaller.
const MISS_LEAST: f64 = 0.02;
/// Measurements that set the scale.
const SCALING: u32 = 3;
/// Measurements after that until the proportions are learned.
const SETTLED: u32 = 12;
/// So many in a row on the same side, each off by [`SHIFTED`], are a change of the hardware and no outliers.
const RECENT: usize = 5;
const SHIFTED: f64 = 1.4;

/// A backend's predicted behaviour towards one more job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Predicted {
    /// From the start of work to the first text, in microseconds.
    pub ttft_us: u64,
    /// Per unit after the first text, in microseconds.
    pub per_unit_us: u64,
}

/// The step model of one backend and model.
#[derive(Clone, Debug, PartialEq)]
pub struct Speed {
    first: Fit<4>,
    rate: Fit<2>,
}

impl Default for Speed {
    fn default() -> Self {
        Self { first: Fit::new(FIRST_DEFAULT), rate: Fit::new(RATE_DEFAULT) }
    }
}

impl Speed {
    /// A model that begins with what a provider says of itself, until measurements differ.
    #[must_use]
    pub fn reported(start_ms: u32, read_us_per_kilo: u32, per_unit_us: u32) -> Self {
        let start = (f64::from(start_ms) * 1e3).max(LEAST_US);
        let read = f64::from(read_us_per_kilo).max(LEAST_US);
        let alone = f64::from(per_unit_us).max(LEAST_US);
        // What is not reported keeps its proportion to what is.
        let first = [start, start * FIRST_DEFAULT[1] / FIRST_DEFAULT[0], read, read];
        Self { first: Fit::new(first), rate: Fit::new([alone, alone * RATE_DEFAULT[1] / RATE_DEFAULT[0]]) }
    }

    /// Learns from a first text: it came `waited` after the work began, with `prompt_uncached` units to read, `running` other
    /// jobs beside it and `pending_units` of other prompts to be read before it.
    pub fn observe_first(&mut self, prompt_uncached: u64, running: u32, pending_units: u64, waited: Duration) {
        self.first.observe(first_features(prompt_uncached, running, pending_units), micros(waited));
    }

    /// Learns from `units` of output in `elapsed` after the first text, with `running` other jobs beside it on average. Fewer
    /// than [`RATE_UNITS_MIN`] units are ignored.
    pub fn observe_rate(&mut self, units: u64, running: f64, elapsed: Duration) {
        if units < RATE_UNITS_MIN || !running.is_finite() {
            return;
        }
        self.rate.observe([1.0, running.clamp(0.0, 1e6)], micros(elapsed) / float(units));
    }

    /// Learns from an answer in one piece: `units` came `waited` after the work began, the rest as for the two above. What it
    /// took is shared out between the wait for the first text and the time per unit as it was predicted.
    pub fn observe_whole(
        &mut self,
        prompt_uncached: u64,
        running_first: u32,
        pending_units: u64,
        units: u64,
        running: f64,
        waited: Duration,
    ) {
        let running = if running.is_finite() { running.clamp(0.0, 1e6) } else { 0.0 };
        let first = self.first.predict(first_features(prompt_uncached, running_first, pending_units));
        let rate = self.rate.predict([1.0, running]);
        let scale = micros(waited) / (first + rate * float(units));
        self.observe_first(prompt_uncached, running_first, pending_units, span(first * scale));
        self.observe_rate(units, running, span(rate * scale * float(units)));
    }

    /// What one more job meets: `prompt_uncached` units to read, `running` jobs beside it, and `pending_units` of prompts before
    /// its own.
    #[must_use]
    pub fn predict(&self, prompt_uncached: u64, running: u32, pending_units: u64) -> Predicted {
        Predicted {
            ttft_us: whole(self.first.predict(first_features(prompt_uncached, running, pending_units))),
            per_unit_us: whole(self.rate.predict([1.0, f64::from(running)])),
        }
    }

    /// The part of the first text's wait that does not depend on the job's own prompt, in milliseconds.
    #[must_use]
    pub fn start_ms(&self, running: u32, pending_units: u64) -> u32 {
        narrow(self.first.predict(first_features(0, running, pending_units)) / 1e3)
    }

    /// The time to read 1,000 uncached units of prompt, in microseconds.
    #[must_use]
    pub fn read_us_per_kilo(&self) -> u32 {
        narrow(self.first.theta[2])
    }

    /// How many measurements it rests on: first texts, and rates.
    #[must_use]
    pub const fn observed(&self) -> (u32, u32) {
        (self.first.seen, self.rate.seen)
    }
}

fn first_features(prompt_uncached: u64, running: u32, pending_units: u64) -> [f64; 4] {
    [1.0, f64::from(running), float(prompt_uncached) / 1e3, float(pending_units) / 1e3]
}

/// How far a provider's own figures are off, as one consumer measures it: the ratio of what was measured to what was said.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Correction {
    ratio: f64,
    seen: u32,
}

/// A measured time is taken to be at most this many times what was predicted, and at least its inverse.
const RATIO_MAX: f64 = 16.0;
/// What the newest ratio weighs.
const RATIO_WEIGHT: f64 = 0.2;

impl Default for Correction {
    fn default() -> Self {
        Self { ratio: 1.0, seen: 0 }
    }
}

impl Correction {
    /// Learns from one measurement. One alone moves the ratio by at most a fifth up, a tenth down.
    pub fn observe(&mut self, predicted_us: u64, measured_us: u64) {
        let ratio = float(measured_us.max(1)) / float(predicted_us.max(1));
        let ratio = ratio.clamp(self.ratio / 2.0, self.ratio * 2.0);
        self.ratio = (self.ratio + RATIO_WEIGHT * (ratio - self.ratio)).clamp(1.0 / RATIO_MAX, RATIO_MAX);
        self.seen = self.seen.saturating_add(1);
    }

    /// A predicted time, as it is likely to be measured; in microseconds.
    #[must_use]
    pub fn apply(&self, predicted_us: u64) -> u64 {
        whole(float(predicted_us) * self.ratio)
    }

    /// Measured over predicted, smoothed.
    #[must_use]
    pub const fn ratio(&self) -> f64 {
        self.ratio
    }

    /// How many measurements it rests on.
    #[must_use]
    pub const fn observed(&self) -> u32 {
        self.seen
    }
}

/// A linear fit of positive times with parameters that are never negative.
#[derive(Clone, Debug, PartialEq)]
struct Fit<const K: usize> {
    theta: [f64; K],
    /// What each parameter would be if the hardware had the default's proportions.
    typical: [f64; K],
    /// The covariance of `theta`.
    spread: [[f64; K]; K],
    /// The usual relative miss, smoothed.
    miss: f64,
    /// The last ratios of measured to predicted, newest last.
    ratios: [f64; RECENT],
    seen: u32,
    /// How many since the scale was set.
    settled: u32,
}

impl<const K: usize> Fit<K> {
    fn new(theta: [f64; K]) -> Self {
        let mut fit = Self {
            theta,
            typical: theta,
            spread: [[0.0; K]; K],
            miss: 1.0,
            ratios: [1.0; RECENT],
            seen: 0,
            settled: 0,
        };
        fit.loosen();
        fit
    }

    fn predict(&self, x: [f64; K]) -> f64 {
        dot(&self.theta, &x).clamp(LEAST_US, MOST_US)
    }

    fn observe(&mut self, x: [f64; K], measured: f64) {
        let measured = measured.clamp(LEAST_US, MOST_US);
        let guess = self.predict(x);
        self.ratios.rotate_left(1);
        self.ratios[RECENT - 1] = measured / guess;
        self.seen = self.seen.saturating_add(1);
        if self.seen <= SCALING {
            return self.rescale(self.seen as usize);
        }
        self.settled = self.settled.saturating_add(1);
        let (slower, faster) = (|ratio: &f64| *ratio > SHIFTED, |ratio: &f64| *ratio < 1.0 / SHIFTED);
        if self.settled > SETTLED && (self.ratios.iter().all(slower) || self.ratios.iter().all(faster)) {
            return self.rescale(RECENT);
        }
        // Relative to the larger of the two, so that too high and too low count alike.
        let unit = guess.max(measured);
        let miss = (measured - guess) / unit;
        let limit = OUTLIER * self.miss;
        let weight = (1.0 / f64::from(self.settled + 1)).max(0.1);
        self.miss = (self.miss + weight * (miss.abs().min(2.0 * self.miss) - self.miss)).max(MISS_LEAST);
        if self.settled > SETTLED && miss.abs() > limit {
            return;
        }
        let x = x.map(|part| part / unit);
        let gain: [f64; K] = std::array::from_fn(|i| dot(&self.spread[i], &x));
        let expected = MEMORY * NOISE + dot(&gain, &x);
        for (part, gain) in self.theta.iter_mut().zip(gain) {
            *part += gain / expected * miss;
        }
        let before = self.spread;
        for i in 0..K {
            for j in 0..K {
                self.spread[i][j] = (before[i][j] - gain[i] * gain[j] / expected) / MEMORY;
            }
        }
        self.bound();
        self.not_negative();
    }

    /// Moves to the likeliest parameters that are not negative: as far as one is raised to zero, those that it was confused
    /// with are lowered.
    fn not_negative(&mut self) {
        for i in 0..K {
            if self.theta[i] < 0.0 && self.spread[i][i] > 0.0 {
                let raise = -self.theta[i] / self.spread[i][i];
                for j in 0..K {
                    self.theta[j] += self.spread[j][i] * raise;
                }
            }
        }
        self.theta = self.theta.map(|part| part.clamp(0.0, MOST_US));
    }

    /// Scales all by the median of the newest `count` ratios.
    fn rescale(&mut self, count: usize) {
        let mut newest = self.ratios;
        let newest = &mut newest[RECENT - count..];
        newest.sort_by(f64::total_cmp);
        let scale = newest[count / 2];
        for part in self.theta.iter_mut().chain(&mut self.typical) {
            *part = (*part * scale).clamp(0.0, MOST_US);
        }
        for ratio in &mut self.ratios {
            *ratio /= scale;
        }
        self.settled = 0;
        self.miss = 1.0;
        self.loosen();
    }

    /// Forgets how sure it was, and keeps what it knows.
    fn loosen(&mut self) {
        for i in 0..K {
            self.spread[i] = [0.0; K];
            self.spread[i][i] = self.widest(i);
        }
    }

    fn widest(&self, i: usize) -> f64 {
        let deviation = FREEDOM * self.theta[i].max(self.typical[i]);
        deviation * deviation
    }

    /// What no measurement speaks of does not become ever less certain.
    fn bound(&mut self) {
        for i in 0..K {
            let (have, widest) = (self.spread[i][i], self.widest(i));
            if have > widest {
                let shrink = (widest / have).sqrt();
                for j in 0..K {
                    self.spread[i][j] *= shrink;
                    self.spread[j][i] *= shrink;
                }
            }
        }
    }
}

fn dot<const K: usize>(a: &[f64; K], b: &[f64; K]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[expect(clippy::cast_precision_loss, reason = "a speed estimate")]
const fn float(units: u64) -> f64 {
    units as f64
}

fn span(us: f64) -> Duration {
    Duration::from_secs_f64(us.clamp(0.0, MOST_US) / 1e6)
}

fn micros(span: Duration) -> f64 {
    span.as_secs_f64() * 1e6
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, and times are not negative"
)]
const fn whole(us: f64) -> u64 {
    us as u64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, and times are not negative"
)]
const fn narrow(number: f64) -> u32 {
    number as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt as _, SeedableRng as _};
    use rand_chacha::ChaCha8Rng;

    /// A made-up engine: the parameters of both halves.
    #[derive(Clone, Copy)]
    struct Engine {
        first: [f64; 4],
        rate: [f64; 2],
    }

    impl Engine {
        fn scaled(self, by: f64) -> Self {
            Self { first: self.first.map(|part| part * by), rate: self.rate.map(|part| part * by) }
        }

        fn truth(&self, prompt: u64, running: u32, pending: u64) -> (f64, f64) {
            (dot(&self.first, &first_features(prompt, running, pending)), dot(&self.rate, &[1.0, f64::from(running)]))
        }
    }

    const BATCHED: Engine = Engine { first: [40_000.0, 3_000.0, 9_000.0, 9_000.0], rate: [3_000.0, 220.0] };
    /// Slots that do not touch each other, and no time but for reading.
    const APART: Engine = Engine { first: [20_000.0, 0.0, 50_000.0, 0.0], rate: [3_300.0, 0.0] };
    /// A long fixed part, and a prompt that costs next to nothing.
    const REMOTE: Engine = Engine { first: [700_000.0, 0.0, 1_000.0, 1_000.0], rate: [9_000.0, 10.0] };

    fn draw(rng: &mut ChaCha8Rng) -> (u64, u32, u64) {
        let pending = if rng.random_range(0..3) == 0 { rng.random_range(200..12_000) } else { 0 };
        (rng.random_range(200..12_000), rng.random_range(0..16), pending)
    }

    /// Lets a model watch `jobs` jobs with `noise` per cent of noise, of which one in `garbage` measures nonsense.
    fn watch(speed: &mut Speed, rng: &mut ChaCha8Rng, engine: Engine, jobs: u32, noise: i64, garbage: Option<u32>) {
        for job in 0..jobs {
            let (prompt, running, pending) = draw(rng);
            let (first, rate) = engine.truth(prompt, running, pending);
            let mut noisy = |us: f64| {
                let percent = rng.random_range(-noise..=noise);
                #[expect(clippy::cast_precision_loss, reason = "small")]
                let factor = 1.0 + percent as f64 / 100.0;
                Duration::from_secs_f64(us * factor / 1e6)
            };
            let (mut waited, mut elapsed) = (noisy(first), noisy(rate * 800.0));
            if garbage.is_some_and(|every| job % every == every - 1) {
                waited = if job % 2 == 0 { Duration::ZERO } else { Duration::from_secs(86_400) };
                elapsed = if job % 2 == 0 { Duration::from_secs(86_400) } else { Duration::ZERO };
            }
            speed.observe_first(prompt, running, pending, waited);
            speed.observe_rate(800, f64::from(running), elapsed);
        }
    }

    /// The mean relative error over what that engine may meet: first text, and rate.
    fn error(speed: &Speed, engine: Engine) -> (f64, f64) {
        let mut rng = ChaCha8Rng::seed_from_u64(99);
        let (mut first, mut rate) = (0.0, 0.0);
        for _ in 0..400 {
            let (prompt, running, pending) = draw(&mut rng);
            let truth = engine.truth(prompt, running, pending);
            let predicted = speed.predict(prompt, running, pending);
            first += (float(predicted.ttft_us) / truth.0 - 1.0).abs() / 400.0;
            rate += (float(predicted.per_unit_us) / truth.1 - 1.0).abs() / 400.0;
        }
        (first, rate)
    }

    #[test]
    fn thirty_jobs_make_predictions_right_within_a_tenth() {
        for (name, engine) in [("batched", BATCHED), ("apart", APART), ("remote", REMOTE)] {
            for scale in [0.1, 1.0, 30.0] {
                for seed in 0..20 {
                    let mut rng = ChaCha8Rng::seed_from_u64(seed);
                    let mut speed = Speed::default();
                    let engine = engine.scaled(scale);
                    watch(&mut speed, &mut rng, engine, 30, 8, None);
                    let (first, rate) = error(&speed, engine);
                    assert!(first < 0.1 && rate < 0.1, "{name} × {scale}, seed {seed}: off by {first:.3}, {rate:.3}");
                }
            }
        }
    }

    #[test]
    fn garbage_is_survived() {
        for seed in 0..20 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut speed = Speed::default();
            watch(&mut speed, &mut rng, BATCHED, 200, 8, Some(6));
            let (first, rate) = error(&speed, BATCHED);
            assert!(first < 0.1 && rate < 0.1, "seed {seed}: off by {first:.3}, {rate:.3}");
            watch(&mut speed, &mut rng, BATCHED, 60, 8, None);
            let (first, rate) = error(&speed, BATCHED);
            assert!(first < 0.1 && rate < 0.1, "seed {seed}, after it: off by {first:.3}, {rate:.3}");
        }
    }

    #[test]
    fn what_begins_with_garbage_recovers() {
        for nonsense in [Duration::ZERO, Duration::from_secs(86_400)] {
            let mut rng = ChaCha8Rng::seed_from_u64(3);
            let mut speed = Speed::default();
            for _ in 0..20 {
                speed.observe_first(0, 0, 0, nonsense);
                speed.observe_rate(u64::MAX, f64::NAN, nonsense);
                speed.observe_rate(16, f64::MAX, nonsense);
                speed.observe_first(u64::MAX, u32::MAX, u64::MAX, nonsense);
            }
            assert!(speed.predict(u64::MAX, u32::MAX, u64::MAX).ttft_us <= 3_600_000_000);
            watch(&mut speed, &mut rng, BATCHED, 120, 8, None);
            let (first, rate) = error(&speed, BATCHED);
            assert!(first < 0.15 && rate < 0.15, "after {nonsense:?}: off by {first:.3}, {rate:.3}");
        }
    }

    #[test]
    fn hardware_that_becomes_slower_is_noticed_soon() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let mut speed = Speed::default();
        watch(&mut speed, &mut rng, BATCHED, 200, 8, None);
        let throttled = BATCHED.scaled(3.0);
        watch(&mut speed, &mut rng, throttled, 20, 8, None);
        let (first, rate) = error(&speed, throttled);
        assert!(first < 0.1 && rate < 0.1, "off by {first:.3}, {rate:.3}");
    }

    #[test]
    fn before_data_the_defaults_and_the_reported_figures_hold() {
        let speed = Speed::default();
        assert_eq!(speed.predict(1_000, 0, 0), Predicted { ttft_us: 85_000, per_unit_us: 5_000 });
        let speed = Speed::reported(200, 10_000, 4_000);
        assert_eq!(speed.predict(2_000, 0, 0), Predicted { ttft_us: 220_000, per_unit_us: 4_000 });
        assert_eq!((speed.start_ms(0, 0), speed.read_us_per_kilo()), (200, 10_000));
        let nothing = Speed::reported(0, 0, 0);
        assert!(nothing.predict(0, 0, 0).ttft_us >= 1 && nothing.predict(0, 0, 0).per_unit_us >= 1);
    }

    #[test]
    fn a_correction_follows_what_is_measured_and_one_lie_moves_it_little() {
        let mut correction = Correction::default();
        assert_eq!(correction.apply(1_000), 1_000);
        for _ in 0..30 {
            correction.observe(1_000, 3_000);
        }
        assert!((2_900..=3_000).contains(&correction.apply(1_000)), "{correction:?}");
        correction.observe(1_000, u64::MAX);
        correction.observe(0, 0);
        assert!(correction.ratio() > 2.0 && correction.ratio() < 4.0, "{correction:?}");
        for _ in 0..200 {
            correction.observe(u64::MAX, 0);
        }
        assert!(correction.apply(1_000) >= 1);
    }
}
