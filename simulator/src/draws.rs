//! Random draws that are the same on every machine.
//! Invariant: one generator per concern, so that a new draw in one does not shift the others; no floating point.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// One concern's stream of draws.
#[derive(Debug)]
pub struct Draws(ChaCha8Rng);

impl Draws {
    /// The stream of `seed` for `concern`. Different concerns are independent.
    #[must_use]
    pub fn new(seed: u64, concern: &str) -> Self {
        Self(ChaCha8Rng::from_seed(key(seed, concern, 0)))
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `end`; 0 if `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        let wide = u128::from(self.any()) * u128::from(end);
        u64::try_from(wide >> 64).expect("the upper half of a 128-bit product fits 64 bits")
    }

    /// A number from `range[0]` to `range[1]`, both included; `range[0]` if they are the wrong way round.
    pub fn within(&mut self, range: [u64; 2]) -> u64 {
        range[0] + self.below(range[1].saturating_sub(range[0]).saturating_add(1))
    }

    /// Whether something of that chance, in parts per million, happens.
    pub fn happens(&mut self, per_million: u32) -> bool {
        // Nothing is drawn for what never happens, so that switching a fault off leaves the rest as it was.
        per_million > 0 && self.below(1_000_000) < u64::from(per_million)
    }

    /// An exponentially distributed wait with that mean, in the same unit, at least 1.
    ///
    /// Von Neumann's method: it only compares uniform draws, so unlike a logarithm it has no last bit to differ in.
    pub fn wait(&mut self, mean: u64) -> u64 {
        let mut whole: u64 = 0;
        loop {
            let first = self.any();
            let mut last = first;
            let mut run = 1_u32;
            loop {
                let next = self.any();
                if next > last {
                    break;
                }
                last = next;
                run += 1;
            }
            if run % 2 == 1 {
                let part = u64::try_from((u128::from(first) * u128::from(mean)) >> 64).expect("below mean");
                return whole.saturating_mul(mean).saturating_add(part).max(1);
            }
            whole += 1;
        }
    }

    /// 16 bytes for a name.
    pub fn name(&mut self) -> [u8; 16] {
        let mut name = [0; 16];
        self.0.fill_bytes(&mut name);
        name
    }
}

/// A 32-byte seed or secret for the `index`-th thing of a concern.
#[must_use]
pub fn key(seed: u64, concern: &str, index: u64) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("spillway-simulator draws/1");
    hasher.update(&seed.to_le_bytes()).update(&index.to_le_bytes()).update(concern.as_bytes());
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concerns_and_seeds_differ_and_repeat() {
        let first = |seed, concern| Draws::new(seed, concern).any();
        assert_eq!(first(1, "network"), first(1, "network"));
        assert_ne!(first(1, "network"), first(1, "faults"));
        assert_ne!(first(1, "network"), first(2, "network"));
    }

    #[test]
    fn waits_have_the_mean_and_the_tail_of_an_exponential() {
        let mut draws = Draws::new(7, "test");
        let waits: Vec<u64> = (0..40_000).map(|_| draws.wait(1_000_000)).collect();
        let mean = waits.iter().sum::<u64>() / waits.len() as u64;
        assert!((980_000..1_020_000).contains(&mean), "mean {mean}");
        // e^-2 of them, 13.5 %, exceed twice the mean.
        let tail = waits.iter().filter(|wait| **wait > 2_000_000).count() * 1000 / waits.len();
        assert!((129..141).contains(&tail), "tail {tail} per mille");
    }

    #[test]
    fn ranges_hold() {
        let mut draws = Draws::new(3, "test");
        for (range, low, high) in [([5, 5], 5, 5), ([0, 3], 0, 3), ([9, 2], 9, 9)] {
            for _ in 0..200 {
                let drawn = draws.within(range);
                assert!((low..=high).contains(&drawn), "{range:?} gave {drawn}");
            }
        }
        assert!(!draws.happens(0));
        assert!(draws.happens(1_000_000));
    }
}
