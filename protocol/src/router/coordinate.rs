//! Network coordinates: round trips to peers that were never measured, from those that were.
//! Invariant: every part is finite and within bounds, whatever a peer says of itself.
//!
//! Vivaldi (Dabek, Cox, Kaashoek, Morris: "Vivaldi: A Decentralized Network Coordinate System", SIGCOMM 2004), with three
//! dimensions, a height for the access link, and its adaptive time step.

use std::time::Duration;

/// How far a coordinate moves towards a sample, at most.
const STEP: f64 = 0.25;
/// How quickly the error estimate follows samples.
const EASE: f64 = 0.25;
/// The furthest that a part of a coordinate may lie out, in microseconds.
const PART_MAX: i32 = 2_000_000;
/// The least height, in microseconds.
const HEIGHT_MIN: i32 = 100;

/// A place in the network's space. Integers, since it is signed as part of an offer. Microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, wincode::SchemaRead, wincode::SchemaWrite)]
pub struct Coordinate {
    /// The place.
    pub place: [i32; 3],
    /// The access link's share, at least [`HEIGHT_MIN`].
    pub height: i32,
    /// How wrong estimates from it tend to be, in thousandths of the round trip: 1000 knows nothing.
    pub error_per_mille: u16,
}

impl Default for Coordinate {
    fn default() -> Self {
        Self { place: [0; 3], height: HEIGHT_MIN, error_per_mille: 1000 }
    }
}

impl Coordinate {
    /// Whether it says anything.
    #[must_use]
    pub const fn is_settled(&self) -> bool {
        self.error_per_mille < 500
    }

    /// The coordinate with each part within bounds, as taken from a peer.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        for part in &mut self.place {
            *part = (*part).clamp(-PART_MAX, PART_MAX);
        }
        self.height = self.height.clamp(HEIGHT_MIN, PART_MAX);
        self.error_per_mille = self.error_per_mille.clamp(1, 1000);
        self
    }

    /// The estimated round trip to `other`.
    #[must_use]
    pub fn distance(&self, other: &Self) -> Duration {
        Duration::from_micros(distance_us(self, other) as u64)
    }

    /// Moves towards what a measured round trip to `other` says.
    pub fn learn(&mut self, other: &Self, measured: Duration) {
        let other = other.bounded();
        let measured = (measured.as_secs_f64() * 1e6).clamp(1.0, f64::from(PART_MAX));
        let (mine, theirs) = (f64::from(self.error_per_mille) / 1e3, f64::from(other.error_per_mille) / 1e3);
        let weight = mine / (mine + theirs);
        let estimated = distance_us(self, &other);
        let wrong = ((estimated - measured).abs() / measured).min(1.0);
        let error = wrong * EASE * weight + mine * (1.0 - EASE * weight);
        let step = STEP * weight * (measured - estimated);
        let mut away = [0.0; 3];
        let mut length = 0.0;
        for (index, part) in away.iter_mut().enumerate() {
            *part = f64::from(self.place[index]) - f64::from(other.place[index]);
            length += *part * *part;
        }
        let mut length = length.sqrt();
        if length < 1.0 {
            // On one spot: any direction will do, as long as it differs from pair to pair.
            away = [1.0, f64::from(other.height % 7) - 3.0, f64::from(self.height % 5) - 2.0];
            length = (1.0 + away[1] * away[1] + away[2] * away[2]).sqrt();
        }
        let heights = f64::from(self.height) + f64::from(other.height);
        let whole = length + heights;
        for (index, part) in away.iter().enumerate() {
            self.place[index] =
                rounded(f64::from(self.place[index]) + step * part / length * (length / whole).max(0.1));
        }
        self.height = rounded(f64::from(self.height) + step * f64::from(self.height) / whole);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within 0 and 1000")]
        let error = (error * 1e3) as u16;
        self.error_per_mille = error;
        *self = self.bounded();
    }
}

fn distance_us(a: &Coordinate, b: &Coordinate) -> f64 {
    let square = |index: usize| {
        let apart = f64::from(a.place[index]) - f64::from(b.place[index]);
        apart * apart
    };
    (square(0) + square(1) + square(2)).sqrt() + f64::from(a.height) + f64::from(b.height)
}

#[expect(clippy::cast_possible_truncation, reason = "`as` saturates, and the bounds follow")]
fn rounded(value: f64) -> i32 {
    value.round() as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Azure's published 95th percentiles between six regions, July 2026, in milliseconds.
    const ROUND_TRIP_MS: [[u64; 6]; 6] = [
        [1, 75, 90, 214, 229, 207],
        [75, 1, 153, 218, 165, 180],
        [90, 153, 1, 147, 176, 279],
        [214, 218, 147, 1, 59, 152],
        [229, 165, 176, 59, 1, 98],
        [207, 180, 279, 152, 98, 1],
    ];

    #[test]
    fn distances_that_were_never_measured_are_learnt_from_those_that_were() {
        // Four nodes in each of six regions; only pairs whose numbers differ by an odd amount are ever measured.
        let mut all = vec![Coordinate::default(); 24];
        let rtt = |a: usize, b: usize| Duration::from_millis(ROUND_TRIP_MS[a % 6][b % 6]);
        for round in 0..400_usize {
            for a in 0..24 {
                let b = (a + 1 + 2 * ((round + a) % 11)) % 24;
                let theirs = all[b];
                all[a].learn(&theirs, rtt(a, b));
            }
        }
        let (mut wrong, mut count) = (0.0, 0.0);
        for a in 0..24 {
            for b in (0..24).filter(|b| (a + 24 - b) % 2 == 0 && a % 6 != b % 6) {
                let (said, is) = (all[a].distance(&all[b]).as_secs_f64(), rtt(a, b).as_secs_f64());
                wrong += (said - is).abs() / is;
                count += 1.0;
            }
        }
        // Real round trips embed in no space exactly; assuming 150 ms for all would be off by 46 %.
        let mean = wrong / count;
        assert!(mean < 0.25, "off by {:.0} % on average", mean * 100.0);
        assert!(all.iter().all(Coordinate::is_settled));
    }

    #[test]
    fn nothing_a_peer_says_throws_it_off_the_map() {
        let mut mine = Coordinate::default();
        let liar = Coordinate { place: [i32::MAX, i32::MIN, 0], height: i32::MIN, error_per_mille: 0 };
        for _ in 0..1000 {
            mine.learn(&liar, Duration::from_secs(1 << 40));
            mine.learn(&liar, Duration::ZERO);
        }
        assert_eq!(mine, mine.bounded());
        assert!(mine.distance(&liar.bounded()) < Duration::from_secs(20));
    }
}
