//! Chooses a token from logits.
//! Invariant: the choice is a function of logits, settings, seed and the token's place in the answer, and of nothing else, so
//! that an answer can be continued anywhere.

use crate::attention::exp;

/// How one request samples.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sampling {
    /// 0 is greedy.
    pub(crate) temperature: f32,
    /// Above 0, up to 1.
    pub(crate) top_p: f32,
    pub(crate) seed: u64,
}

/// Tokens less likely than this times the likeliest are not sampled: all of a large vocabulary's tail together is below 1e-5.
const NEGLIGIBLE: f32 = 1e-11;
/// Sets these hashes apart from all others.
const DOMAIN: &[u8] = b"spillway-engine: sampling, version 1";

/// A number in [0, 1) for the token at `place` of an answer.
fn draw(seed: u64, place: usize) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(DOMAIN).update(&seed.to_le_bytes()).update(&(place as u64).to_le_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    (u64::from_le_bytes(first) >> 11) as f64 / (1u64 << 53) as f64
}

/// The likeliest token among those that `allowed` lets through; of equals the first.
pub(crate) fn likeliest(logits: &[f32], allowed: impl Fn(u32) -> bool) -> Option<u32> {
    let mut best: Option<(u32, f32)> = None;
    for (id, logit) in logits.iter().enumerate() {
        let id = id as u32;
        if best.is_none_or(|(_, b)| *logit > b) && allowed(id) {
            best = Some((id, *logit));
        }
    }
    best.map(|(id, _)| id)
}

impl Sampling {
    /// The token at `place` of the answer. `logits` are finite and not empty.
    pub(crate) fn choose(&self, logits: &[f32], place: usize) -> u32 {
        let top = likeliest(logits, |_| true).expect("logits are not empty");
        if self.temperature == 0.0 {
            return top;
        }
        let most = logits[top as usize];
        let mut candidates: Vec<(f32, u32)> = logits
            .iter()
            .enumerate()
            .map(|(id, logit)| (exp((logit - most) / self.temperature), id as u32))
            .filter(|(weight, _)| *weight >= NEGLIGIBLE)
            .collect();
        let total: f64 = candidates.iter().map(|(w, _)| f64::from(*w)).sum();
        let (mut kept, mut count) = (total, candidates.len());
        if self.top_p < 1.0 {
            candidates.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            (kept, count) = (0.0, 0);
            while count < candidates.len() && (count == 0 || kept < total * f64::from(self.top_p)) {
                kept += f64::from(candidates[count].0);
                count += 1;
            }
        }
        let mut left = draw(self.seed, place) * kept;
        for (weight, id) in &candidates[..count] {
            left -= f64::from(*weight);
            if left < 0.0 {
                return *id;
            }
        }
        candidates[count - 1].1
    }
}

/// ln of each token's probability is its logit minus this.
pub(crate) fn log_sum(logits: &[f32]) -> f64 {
    let most = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    most + logits.iter().map(|l| (f64::from(*l) - most).exp()).sum::<f64>().ln()
}

/// The `n` likeliest tokens, likeliest first; of equals the first.
pub(crate) fn top(logits: &[f32], n: usize) -> Vec<u32> {
    let mut best: Vec<u32> = Vec::with_capacity(n + 1);
    for id in 0..logits.len() as u32 {
        let at = best.partition_point(|b| logits[*b as usize] >= logits[id as usize]);
        if at < n {
            best.insert(at, id);
            best.truncate(n);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_follow_the_probabilities() {
        // Probabilities 0.5, 0.3, 0.15, 0.05.
        let logits: Vec<f32> = [0.5f32, 0.05, 0.3, 0.15].iter().map(|p| p.ln()).collect();
        let cases: [(f32, f32, [f64; 4]); 4] = [
            (1.0, 1.0, [0.5, 0.05, 0.3, 0.15]),
            (1.0, 0.75, [0.625, 0.0, 0.375, 0.0]),
            (1.0, 0.1, [1.0, 0.0, 0.0, 0.0]),
            (0.5, 1.0, [0.25 / 0.365, 0.0025 / 0.365, 0.09 / 0.365, 0.0225 / 0.365]),
        ];
        let n = 20_000;
        for (temperature, top_p, want) in cases {
            let sampling = Sampling { temperature, top_p, seed: 7 };
            let mut counts = [0usize; 4];
            for place in 0..n {
                counts[sampling.choose(&logits, place) as usize] += 1;
            }
            for (count, want) in counts.iter().zip(want) {
                let got = *count as f64 / n as f64;
                // Four standard deviations.
                assert!(
                    (got - want).abs() <= 4.0 * (want * (1.0 - want) / n as f64).sqrt(),
                    "{temperature} {top_p}: {counts:?}, wanted {want}"
                );
            }
        }
    }

    #[test]
    fn the_draw_is_frozen() {
        // A change would break the continuation of answers begun by an older version.
        let draws: Vec<u64> =
            [(0, 0), (0, 1), (1, 0), (u64::MAX, 1_000_000)].iter().map(|(s, p)| (draw(*s, *p) * 1e9) as u64).collect();
        assert_eq!(draws, [676_390_507, 747_293_156, 436_243_873, 409_395_331]);
    }

    #[test]
    fn the_likeliest_come_first_and_equals_in_order() {
        let logits = [1.0, 3.0, 2.0, 3.0, -1.0];
        assert_eq!(top(&logits, 3), [1, 3, 2]);
        assert_eq!(top(&logits, 9), [1, 3, 2, 0, 4]);
        assert_eq!(likeliest(&logits, |_| true), Some(1));
        assert_eq!(likeliest(&logits, |id| id != 1 && id != 3), Some(2));
        assert!((log_sum(&[0.0, 0.0]) - 2f64.ln()).abs() < 1e-12);
    }
}
