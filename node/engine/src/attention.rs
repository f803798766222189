//! Attention of one row over one sequence's keys and values, on plain slices.
//! Invariant: a result depends on the row's own sequence alone, and is summed in an order that no batch changes.

use pulp::Arch;
use rayon::prelude::*;

/// Multiplications from which on other threads are asked to help.
const WORK_PARALLEL: usize = 1 << 19;
/// Running sums of a dot product: enough for the widest registers, and fixed, so that sums are the same on all of them.
const LANES: usize = 16;

/// Sizes that attention needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    /// Query heads.
    pub(crate) query: usize,
    /// Key and value heads; a divisor of `query`.
    pub(crate) key: usize,
    /// Length of one head's vector.
    pub(crate) length: usize,
}

/// Keys and values of one sequence: for each layer and key head, one vector after another by position.
pub(crate) struct Cache {
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    positions: usize,
}

impl Cache {
    pub(crate) fn new(layers: usize, heads: Heads) -> Self {
        let empty = || vec![Vec::new(); layers * heads.key];
        Self { keys: empty(), values: empty(), positions: 0 }
    }

    /// Positions that are filled in every layer.
    pub(crate) fn positions(&self) -> usize {
        self.positions
    }

    /// Says that `n` further positions are filled in every layer.
    pub(crate) fn advance(&mut self, n: usize) {
        self.positions += n;
    }

    /// Appends one position's keys and values to `layer`.
    pub(crate) fn push(&mut self, layer: usize, heads: Heads, keys: &[f32], values: &[f32]) {
        for h in 0..heads.key {
            let part = h * heads.length..(h + 1) * heads.length;
            self.keys[layer * heads.key + h].extend_from_slice(&keys[part.clone()]);
            self.values[layer * heads.key + h].extend_from_slice(&values[part]);
        }
    }
}

/// One row: where its query begins is given by its place, here is what it looks at.
pub(crate) struct View<'a> {
    /// The sequence it belongs to.
    pub(crate) cache: &'a Cache,
    /// Its position; it sees the positions up to and including it.
    pub(crate) position: usize,
}

/// For each row of `queries` (all query heads one after another) the mix of values it attends to.
pub(crate) fn attend(arch: Arch, layer: usize, heads: Heads, queries: &[f32], rows: &[View<'_>]) -> Vec<f32> {
    let group = heads.query / heads.key;
    let unit = group * heads.length;
    let mut out = vec![0.0; queries.len()];
    let one = |(i, out): (usize, &mut [f32])| {
        let row = &rows[i / heads.key];
        let at = layer * heads.key + i % heads.key;
        let seen = (row.position + 1) * heads.length;
        let (keys, values) = (&row.cache.keys[at][..seen], &row.cache.values[at][..seen]);
        arch.dispatch(Mix { length: heads.length, queries: &queries[i * unit..(i + 1) * unit], keys, values, out });
    };
    let work: usize = rows.iter().map(|r| (r.position + 1) * heads.query * heads.length).sum();
    if work >= WORK_PARALLEL && rayon::current_num_threads() > 1 {
        out.par_chunks_mut(unit).enumerate().for_each(one);
    } else {
        out.chunks_mut(unit).enumerate().for_each(one);
    }
    out
}

#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        for i in 0..LANES {
            sums[i] += a[i] * b[i];
        }
    }
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
    }
    sums[0] + rest
}

/// What [`mix`] takes. A closure would not be compiled for the processor that was found, since it need not be inlined.
struct Mix<'a> {
    length: usize,
    queries: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
    out: &'a mut [f32],
}

impl pulp::NullaryFnOnce for Mix<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        mix(self.length, self.queries, self.keys, self.values, self.out);
    }
}

/// Softmax of the scaled products with `keys`, over `values`; for each query in `queries`, into `out`.
#[inline(always)]
fn mix(length: usize, queries: &[f32], keys: &[f32], values: &[f32], out: &mut [f32]) {
    let scale = (length as f32).sqrt().recip();
    let mut weights = vec![0.0f32; keys.len() / length];
    for (query, out) in queries.chunks_exact(length).zip(out.chunks_exact_mut(length)) {
        let mut most = f32::NEG_INFINITY;
        for (weight, key) in weights.iter_mut().zip(keys.chunks_exact(length)) {
            *weight = dot(query, key) * scale;
            most = most.max(*weight);
        }
        for weight in &mut weights {
            *weight = exp(*weight - most);
        }
        let sum: f32 = weights.iter().sum();
        for (weight, value) in weights.iter().zip(values.chunks_exact(length)) {
            for (out, value) in out.iter_mut().zip(value) {
                *out += weight * value;
            }
        }
        for out in out {
            *out /= sum;
        }
    }
}

/// e^x to about 2 units in the last place, without a call, so that a loop of it runs in vector registers.
///
/// Below -87 it is e^-87 (about 1e-38), above 88 it is e^88; a NaN stays one.
/// Source: Cody and Waite's reduction by ln 2 in two parts, and Cephes' polynomial for `expf`.
#[inline(always)]
#[expect(clippy::excessive_precision, reason = "the coefficients as published")]
pub(crate) fn exp(x: f32) -> f32 {
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    // Adding and taking away 1.5 * 2^23 rounds to a whole number.
    let magic = 12_582_912.0f32;
    let n = (x * std::f32::consts::LOG2_E + magic) - magic;
    let r = x - n * 0.693_359_375 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_150_0e-4f32;
    for c in [1.398_199_950_7e-3, 8.333_451_907_3e-3, 4.166_579_589_4e-2, 1.666_666_545_9e-1, 5.000_000_120_1e-1] {
        p = p * r + c;
    }
    let power = f32::from_bits(
        (((n + magic).to_bits() as i32).wrapping_sub(magic.to_bits() as i32).wrapping_add(127) << 23) as u32,
    );
    (p * r * r + r + 1.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_everywhere() {
        for i in -87_000..88_000 {
            let x = i as f32 / 1000.0;
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((ours / exact - 1.0).abs() < 3e-7, "exp({x}) = {ours}, not {exact}");
        }
        assert!(exp(f32::NEG_INFINITY) < 2e-38 && exp(f32::NAN).is_nan() && exp(1e9).is_finite());
        assert_eq!(exp(0.0), 1.0);
    }

    /// Against the formula in double precision, for head lengths that fill vectors and that do not.
    #[test]
    fn attention_is_the_formula() {
        for (query, key, length) in [(4, 2, 32), (6, 2, 20), (1, 1, 2)] {
            let heads = Heads { query, key, length };
            let number = |i: usize| ((i * 7919) % 113) as f32 / 56.0 - 1.0;
            let mut cache = Cache::new(1, heads);
            let positions = 37;
            for p in 0..positions {
                let at = |salt: usize| (0..key * length).map(|i| number(p * 1000 + i + salt)).collect::<Vec<_>>();
                cache.push(0, heads, &at(0), &at(500));
            }
            cache.advance(positions);
            let queries: Vec<f32> = (0..query * length).map(|i| number(i + 77)).collect();
            for threads in [1, 2] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
                let got = pool.install(|| {
                    attend(Arch::new(), 0, heads, &queries, &[View { cache: &cache, position: positions - 1 }])
                });
                for h in 0..query {
                    let (k, v) = (&cache.keys[h / (query / key)], &cache.values[h / (query / key)]);
                    let weights: Vec<f64> = k
                        .chunks(length)
                        .map(|k| {
                            (k.iter()
                                .zip(&queries[h * length..])
                                .map(|(a, b)| f64::from(*a) * f64::from(*b))
                                .sum::<f64>()
                                / (length as f64).sqrt())
                            .exp()
                        })
                        .collect();
                    let sum: f64 = weights.iter().sum();
                    for i in 0..length {
                        let want: f64 =
                            weights.iter().zip(v.chunks(length)).map(|(w, v)| w * f64::from(v[i])).sum::<f64>() / sum;
                        assert!((f64::from(got[h * length + i]) - want).abs() < 1e-5, "{heads:?}, head {h}, {i}");
                    }
                }
            }
        }
    }
}
