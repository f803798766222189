//! What a router remembers of one provider: its last load, and how its word compares with what was measured.
//! Invariant: every figure is finite and within bounds, whatever a provider reports.

use crate::time::Now;
use std::time::Duration;

/// A provider's load as it told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// When it arrived here.
    pub at: Now,
    /// Jobs sent from here after this were still on their way when it was told.
    pub covers: Now,
    /// Slots free for strangers.
    pub slots_free: u32,
    /// Jobs admitted and not yet started.
    pub pending: u32,
    /// Jobs running.
    pub running: u32,
    /// Wait before a prompt is read, and the fixed part of the time to first text, in milliseconds.
    pub start_ms: u32,
    /// Reading 1,000 units that no cache holds, in microseconds.
    pub read_us_per_kilo: u32,
    /// Time per output unit, in microseconds.
    pub per_unit_us: u32,
    /// When it expects a free slot; only read if none is free.
    pub free_at: Now,
}

/// What a job showed of its provider.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Served {
    /// Milliseconds from sending to the first text as predicted when it was sent, and as measured.
    pub first_ms: (f64, f64),
    /// Microseconds per output unit as predicted, and as measured; `None` if the answer was too short to tell.
    pub per_unit_us: Option<(f64, f64)>,
    /// Units of output.
    pub output: u64,
}

/// How many times longer it takes than a provider says, as this node measured it. Bounded steps in the ratio's logarithm, so
/// that a few outliers move it little, and it eases back to 1 with each answer to a probe: whoever was slow once is tried
/// again.
#[derive(Clone, Copy, Debug)]
struct Bias(f64);

impl Bias {
    /// Takes in a measurement against a prediction that the bias was in already. `weight` is within 0 and 1.
    fn learn(&mut self, predicted: f64, measured: f64, weight: f64) {
        if predicted > 0.0 && measured >= 0.0 && measured.is_finite() {
            let ratio = measured / predicted;
            let off = (ratio - 1.0) / (ratio + 1.0);
            self.0 = (self.0 * (1.0 + 0.25 * weight * off)).clamp(0.5, 4.0);
        }
    }

    const fn ease(&mut self) {
        self.0 += 0.01 * (1.0 - self.0);
    }
}

/// Jobs on their way to one provider that are told apart; beyond, the oldest counts as arrived.
const SENT_MAX: usize = 256;

/// One provider.
#[derive(Clone, Debug)]
pub(super) struct Known {
    heard: Now,
    report: Option<Report>,
    fresh: bool,
    /// Jobs that the report does not know of: when they were sent, and the units they have to read. Oldest first.
    sent: Vec<(Now, u64)>,
    in_flight: u32,
    first: Bias,
    rate: Bias,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            heard: Now(0),
            report: None,
            fresh: false,
            sent: Vec::new(),
            in_flight: 0,
            first: Bias(1.0),
            rate: Bias(1.0),
        }
    }
}

impl Known {
    pub(super) const fn heard(&self) -> Now {
        self.heard
    }

    pub(super) fn touch(&mut self, now: Now) {
        self.heard = self.heard.max(now);
    }

    pub(super) const fn last(&self) -> Option<&Report> {
        self.report.as_ref()
    }

    pub(super) const fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// An answer to a probe. Whoever was slow is forgiven a little with each.
    pub(super) fn report(&mut self, now: Now, report: Report) {
        self.overheard(now, report);
        self.first.ease();
        self.rate.ease();
    }

    /// A load that came with a job's frame. It forgives nothing: the job itself shows how far the word is off.
    pub(super) fn overheard(&mut self, now: Now, mut report: Report) {
        report.at = now;
        // Nobody reads or writes slower than these, nor is it anybody's word that counts beyond them.
        report.start_ms = report.start_ms.min(600_000);
        report.read_us_per_kilo = report.read_us_per_kilo.min(60_000_000);
        report.per_unit_us = report.per_unit_us.min(10_000_000);
        report.free_at = report.free_at.min(now.after(Duration::from_secs(60)));
        self.sent.retain(|(at, _)| *at > report.covers);
        self.report = Some(report);
        self.fresh = true;
    }

    pub(super) const fn forget_load(&mut self) {
        self.fresh = false;
    }

    pub(super) fn sent(&mut self, now: Now, units: u64) {
        if self.sent.len() >= SENT_MAX {
            self.sent.remove(0);
        }
        self.sent.push((now, units));
        self.in_flight = self.in_flight.saturating_add(1);
    }

    pub(super) fn ended(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
        // Whoever is on the way is in flight.
        while self.sent.len() > self.in_flight as usize {
            self.sent.remove(0);
        }
    }

    /// `usual` is the usual output, in units: a rate seen over a shorter one says less.
    pub(super) fn served(&mut self, served: &Served, usual: f64) {
        self.first.learn(served.first_ms.0, served.first_ms.1, 1.0);
        if let Some((predicted, measured)) = served.per_unit_us {
            #[expect(clippy::cast_precision_loss, reason = "a weight")]
            let weight = (served.output as f64 / usual.max(1.0)).min(1.0);
            self.rate.learn(predicted, measured, weight);
        }
    }

    /// It has no slot now, whatever it said.
    pub(super) fn busy_until(&mut self, now: Now, free_at: Now) {
        let report = self.report.get_or_insert(Report {
            at: now,
            covers: now,
            slots_free: 0,
            pending: 0,
            running: 0,
            start_ms: 0,
            read_us_per_kilo: 0,
            per_unit_us: 0,
            free_at,
        });
        report.at = now;
        report.slots_free = 0;
        report.free_at = free_at.min(now.after(Duration::from_secs(60)));
        self.fresh = true;
    }

    /// Jobs that its last word does not know of.
    fn unknown(&self) -> u32 {
        u32::try_from(self.sent.len()).unwrap_or(u32::MAX)
    }

    /// Slots that are free by its last word, less the jobs that it did not know of.
    pub(super) fn free(&self) -> u32 {
        self.report.as_ref().map_or(0, |report| report.slots_free.saturating_sub(self.unknown()))
    }

    /// Whether it has no slot by its last word, and has named a time for the next that is not yet.
    pub(super) fn is_busy(&self, now: Now) -> bool {
        self.report.as_ref().is_some_and(|report| self.free() == 0 && report.free_at > now)
    }

    /// Whether the last word is young enough to act on.
    pub(super) fn is_fresh(&self, now: Now, fresh_for: Duration) -> bool {
        self.fresh && self.report.as_ref().is_some_and(|report| now.since(report.at) <= fresh_for)
    }

    /// Jobs there as far as is known.
    pub(super) fn requests(&self) -> u32 {
        let told = self.report.as_ref().map_or(0, |report| report.running.saturating_add(report.pending));
        told.saturating_add(self.unknown()).max(self.in_flight)
    }

    /// Jobs running there by its last word.
    pub(super) fn running(&self) -> u32 {
        self.report.as_ref().map_or(0, |report| report.running)
    }

    /// Units that jobs sent since the report have to read.
    pub(super) fn ahead_units(&self) -> u64 {
        self.sent.iter().map(|(_, units)| *units).fold(0, u64::saturating_add)
    }

    /// Measured over predicted, for first texts and for rates.
    pub(super) const fn biases(&self) -> (f64, f64) {
        (self.first.0, self.rate.0)
    }

    /// How slow it seems, for dropping the worst from the pool.
    pub(super) fn last_score(&self) -> f64 {
        let Some(report) = &self.report else { return f64::MAX };
        if report.slots_free == 0 {
            return f64::MAX;
        }
        f64::from(report.start_ms) * self.first.0 + f64::from(report.per_unit_us) * self.rate.0
    }
}

/// What is usual among a model's providers: stands in for those nothing is known of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Typical {
    start_ms: f64,
    read_us_per_kilo: f64,
    per_unit_us: f64,
    output: f64,
}

impl Typical {
    pub(super) const fn new() -> Self {
        // Before anything is known: a small model on one card, an answer of a few sentences.
        Self { start_ms: 100.0, read_us_per_kilo: 20_000.0, per_unit_us: 5_000.0, output: 512.0 }
    }

    pub(super) fn learn(&mut self, report: &Report) {
        let ease = |old: f64, new: u32, most: f64| old + 0.05 * (f64::from(new).min(most) - old);
        self.start_ms = ease(self.start_ms, report.start_ms, 60_000.0);
        self.read_us_per_kilo = ease(self.read_us_per_kilo, report.read_us_per_kilo, 10_000_000.0);
        self.per_unit_us = ease(self.per_unit_us, report.per_unit_us, 1_000_000.0);
    }

    pub(super) fn served(&mut self, served: &Served) {
        #[expect(clippy::cast_precision_loss, reason = "a mean")]
        let output = served.output as f64;
        self.output += 0.05 * (output - self.output);
    }

    pub(super) const fn usual_output(&self) -> f64 {
        self.output
    }

    pub(super) fn output(&self) -> u64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "`as` saturates, and it is positive"
        )]
        let output = self.output as u64;
        output.max(1)
    }

    /// A load to reckon with where there is none: worse than usual, so that the known win, not so bad as to be hopeless.
    pub(super) const fn pessimistic(&self) -> (f64, f64, f64) {
        (self.start_ms * 1.5, self.read_us_per_kilo * 1.5, self.per_unit_us * 1.5)
    }
}
