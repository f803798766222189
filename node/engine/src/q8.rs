//! Products of matrices in Q8_0: blocks of 32 whole numbers from -127 to 127 with one scale each.
//! Invariant: a result has the same bits on every processor, with any number of threads and any other rows in the batch:
//! products within a block are whole numbers, and blocks are summed in one fixed order. Two providers that serve the same
//! file therefore say the same, and one can continue what the other began.
//!
//! Candle's own kernels quantise the vectors in another way on each kind of processor, and wait for each other in a pool that
//! spins, which on a busy machine costs a time slice per product.

use rayon::prelude::*;

/// Numbers in a block.
pub(crate) const BLOCK: usize = 32;
/// Bytes of a block in a file: the scale as a half float, then the numbers.
const BLOCK_BYTES: usize = 2 + BLOCK;
/// Sums that run side by side in a dot product.
const LANES: usize = 8;
/// Products of whole numbers from which on other threads are asked to help.
const WORK_PARALLEL: usize = 1 << 21;
/// Rows of the matrix that a thread takes at a time.
const ROWS_PER_TASK: usize = 64;

/// A matrix of [rows, columns].
pub(crate) struct Matrix {
    rows: usize,
    columns: usize,
    numbers: Vec<[i8; BLOCK]>,
    scales: Vec<f32>,
    kernel: Kernel,
}

/// Vectors as they are multiplied: quantised like the matrix, and their absolute values beside them.
struct Vectors {
    numbers: Vec<[i8; BLOCK]>,
    absolute: Vec<[u8; BLOCK]>,
    scales: Vec<f32>,
}

#[derive(Clone, Copy)]
enum Kernel {
    #[cfg(target_arch = "x86_64")]
    Avx2(pulp::x86::V3),
    Portable,
}

impl Kernel {
    fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = pulp::x86::V3::try_new() {
            return Self::Avx2(simd);
        }
        Self::Portable
    }
}

fn from_half(bits: u16) -> f32 {
    let (sign, exponent, fraction) = (bits >> 15, (bits >> 10) & 31, bits & 1023);
    let size = match exponent {
        0 => f32::from(fraction) * 2f32.powi(-24),
        31 if fraction == 0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1.0 + f32::from(fraction) / 1024.0) * 2f32.powi(i32::from(exponent) - 15),
    };
    if sign == 1 { -size } else { size }
}

impl Matrix {
    /// Takes the blocks of a file; `raw` has `rows` rows of `columns` numbers, which fill their blocks.
    pub(crate) fn new(raw: &[u8], rows: usize, columns: usize) -> Self {
        assert_eq!(raw.len(), rows * columns / BLOCK * BLOCK_BYTES, "the shape was checked against the file");
        let (mut numbers, mut scales) =
            (Vec::with_capacity(raw.len() / BLOCK_BYTES), Vec::with_capacity(raw.len() / BLOCK_BYTES));
        for block in raw.chunks_exact(BLOCK_BYTES) {
            scales.push(from_half(u16::from_le_bytes([block[0], block[1]])));
            // No quantiser writes -128; the kernels rely on its absence.
            numbers.push(std::array::from_fn(|i| (block[2 + i] as i8).max(-127)));
        }
        Self { rows, columns, numbers, scales, kernel: Kernel::best() }
    }

    /// The numbers of row `row`.
    pub(crate) fn row(&self, row: usize) -> impl Iterator<Item = f32> {
        let blocks = self.columns / BLOCK;
        let range = row * blocks..(row + 1) * blocks;
        self.numbers[range.clone()]
            .iter()
            .zip(&self.scales[range])
            .flat_map(|(numbers, scale)| numbers.iter().map(move |n| f32::from(*n) * scale))
    }

    /// For each vector in `x`, of `columns` numbers, its products with all rows. Uses the rayon pool it is called in.
    pub(crate) fn multiply(&self, x: &[f32]) -> Vec<f32> {
        let n = x.len() / self.columns;
        let vectors = self.quantised(x);
        // By rows of the matrix first, so that threads write side by side.
        let mut by_row = vec![0.0; self.rows * n];
        let task = |(i, out): (usize, &mut [f32])| self.some_rows(i * ROWS_PER_TASK, &vectors, n, out);
        if self.rows * self.columns * n >= WORK_PARALLEL && rayon::current_num_threads() > 1 {
            by_row.par_chunks_mut(ROWS_PER_TASK * n).enumerate().for_each(task);
        } else {
            by_row.chunks_mut(ROWS_PER_TASK * n).enumerate().for_each(task);
        }
        if n == 1 {
            return by_row;
        }
        let mut out = vec![0.0; by_row.len()];
        for (row, values) in by_row.chunks_exact(n).enumerate() {
            for (vector, value) in values.iter().enumerate() {
                out[vector * self.rows + row] = *value;
            }
        }
        out
    }

    fn quantised(&self, x: &[f32]) -> Vectors {
        let blocks = x.len() / BLOCK;
        let mut vectors = Vectors {
            numbers: vec![[0; BLOCK]; blocks],
            absolute: vec![[0; BLOCK]; blocks],
            scales: vec![0.0; blocks],
        };
        match self.kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2(simd) => pulp::Simd::vectorize(simd, Quantise { x, vectors: &mut vectors }),
            Kernel::Portable => pulp::NullaryFnOnce::call(Quantise { x, vectors: &mut vectors }),
        }
        vectors
    }

    /// The products of the matrix's rows from `from` on with all `n` vectors, as many as `out` takes.
    fn some_rows(&self, from: usize, vectors: &Vectors, n: usize, out: &mut [f32]) {
        let blocks = self.columns / BLOCK;
        let rows = from * blocks..(from + out.len() / n) * blocks;
        let (numbers, scales) = (&self.numbers[rows.clone()], &self.scales[rows]);
        match self.kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2(simd) => {
                pulp::Simd::vectorize(simd, avx2::Products { simd, blocks, numbers, scales, vectors, n, out })
            }
            Kernel::Portable => portable(blocks, numbers, scales, vectors, n, out),
        }
    }
}

/// What [`quantise`] takes. A closure would not be compiled for the processor that was found, since it need not be inlined.
struct Quantise<'a> {
    x: &'a [f32],
    vectors: &'a mut Vectors,
}

impl pulp::NullaryFnOnce for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        quantise(self.x, self.vectors);
    }
}

#[inline(always)]
fn quantise(x: &[f32], vectors: &mut Vectors) {
    for (i, block) in x.chunks_exact(BLOCK).enumerate() {
        let mut most = 0.0f32;
        for x in block {
            most = if x.abs() > most { x.abs() } else { most };
        }
        let scale = most / 127.0;
        let inverse = if scale > 0.0 { scale.recip() } else { 0.0 };
        vectors.scales[i] = if block.iter().all(|x| x.is_finite()) { scale } else { f32::NAN };
        // Adding and taking away 1.5 * 2^23 rounds to the nearest whole number, half to even.
        const ROUND: f32 = 12_582_912.0;
        for (j, x) in block.iter().enumerate() {
            let rounded = (x * inverse + ROUND) - ROUND;
            vectors.numbers[i][j] = rounded as i8;
            vectors.absolute[i][j] = rounded.abs() as u8;
        }
    }
}

/// One fixed order for all kernels.
#[inline(always)]
fn total(lanes: [f32; LANES]) -> f32 {
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

fn portable(blocks: usize, numbers: &[[i8; BLOCK]], scales: &[f32], vectors: &Vectors, n: usize, out: &mut [f32]) {
    for (row, out) in out.chunks_exact_mut(n).enumerate() {
        for (vector, out) in out.iter_mut().enumerate() {
            let mut lanes = [0.0f32; LANES];
            for block in 0..blocks {
                let (r, v) = (row * blocks + block, vector * blocks + block);
                let scale = scales[r] * vectors.scales[v];
                for (lane, sum) in lanes.iter_mut().enumerate() {
                    let four = 4 * lane..4 * lane + 4;
                    let whole: i32 = numbers[r][four.clone()]
                        .iter()
                        .zip(&vectors.numbers[v][four])
                        .map(|(a, b)| i32::from(*a) * i32::from(*b))
                        .sum();
                    *sum = (whole as f32).mul_add(scale, *sum);
                }
            }
            *out = total(lanes);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use pulp::{bytemuck::cast, f32x8, i8x32, i16x16, u8x32, x86::V3};

    use super::{BLOCK, Vectors, total};

    /// `R` rows with `V` vectors, from the first of each slice on.
    #[inline(always)]
    fn tile<const R: usize, const V: usize>(
        simd: V3,
        blocks: usize,
        rows: (&[[i8; BLOCK]], &[f32]),
        vectors: (&[[i8; BLOCK]], &[[u8; BLOCK]], &[f32]),
    ) -> [[f32; V]; R] {
        let ones: i16x16 = simd.splat_i16x16(1);
        let mut sums = [[simd.splat_f32x8(0.0); V]; R];
        let row_numbers: [&[[i8; BLOCK]]; R] = std::array::from_fn(|r| &rows.0[r * blocks..][..blocks]);
        let row_scales: [&[f32]; R] = std::array::from_fn(|r| &rows.1[r * blocks..][..blocks]);
        let numbers: [&[[i8; BLOCK]]; V] = std::array::from_fn(|v| &vectors.0[v * blocks..][..blocks]);
        let absolute: [&[[u8; BLOCK]]; V] = std::array::from_fn(|v| &vectors.1[v * blocks..][..blocks]);
        let scales: [&[f32]; V] = std::array::from_fn(|v| &vectors.2[v * blocks..][..blocks]);
        for block in 0..blocks {
            // Spread once, and multiplied where they meet: that is cheaper than spreading each product.
            let row_scale: [f32x8; R] = std::array::from_fn(|r| simd.splat_f32x8(row_scales[r][block]));
            for v in 0..V {
                let x: i8x32 = cast(numbers[v][block]);
                let size: u8x32 = cast(absolute[v][block]);
                let scale = simd.splat_f32x8(scales[v][block]);
                for r in 0..R {
                    let w: i8x32 = cast(row_numbers[r][block]);
                    // The sign moves from the vector to the row: one factor has to be unsigned. No sum of two overflows.
                    let signed: i8x32 = cast(simd.avx2._mm256_sign_epi8(cast(w), cast(x)));
                    let pairs: i16x16 = cast(simd.avx2._mm256_maddubs_epi16(cast(size), cast(signed)));
                    let fours = simd.multiply_wrapping_add_adjacent_i16x16(pairs, ones);
                    sums[r][v] = simd.mul_add_f32x8(
                        simd.convert_i32x8_to_f32x8(fours),
                        simd.mul_f32x8(row_scale[r], scale),
                        sums[r][v],
                    );
                }
            }
        }
        sums.map(|row| row.map(|sum: f32x8| total(cast(sum))))
    }

    /// All rows with all `n` vectors.
    pub(super) struct Products<'a> {
        pub(super) simd: V3,
        pub(super) blocks: usize,
        pub(super) numbers: &'a [[i8; BLOCK]],
        pub(super) scales: &'a [f32],
        pub(super) vectors: &'a Vectors,
        pub(super) n: usize,
        pub(super) out: &'a mut [f32],
    }

    impl pulp::NullaryFnOnce for Products<'_> {
        type Output = ();

        #[inline(always)]
        fn call(self) {
            products(self);
        }
    }

    #[inline(always)]
    fn products(Products { simd, blocks, numbers, scales, vectors, n, out }: Products<'_>) {
        let rows = out.len() / n;
        let from_row = |row: usize| (&numbers[row * blocks..], &scales[row * blocks..]);
        let from_vector =
            |v: usize| (&vectors.numbers[v * blocks..], &vectors.absolute[v * blocks..], &vectors.scales[v * blocks..]);
        let mut row = 0;
        while row < rows {
            let four = row + 4 <= rows;
            let mut v = 0;
            while v < n {
                let two = four && v + 2 <= n;
                if two {
                    write(out, n, row, v, tile::<4, 2>(simd, blocks, from_row(row), from_vector(v)));
                } else if four {
                    write(out, n, row, v, tile::<4, 1>(simd, blocks, from_row(row), from_vector(v)));
                } else {
                    write(out, n, row, v, tile::<1, 1>(simd, blocks, from_row(row), from_vector(v)));
                }
                v += if two { 2 } else { 1 };
            }
            row += if four { 4 } else { 1 };
        }
    }

    #[inline(always)]
    fn write<const R: usize, const V: usize>(
        out: &mut [f32],
        n: usize,
        row: usize,
        vector: usize,
        tile: [[f32; V]; R],
    ) {
        for (r, values) in tile.iter().enumerate() {
            out[(row + r) * n + vector..][..V].copy_from_slice(values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, salt: u64) -> Vec<u8> {
        let mut bytes = vec![0; n];
        blake3::Hasher::new().update(&salt.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn matrix(rows: usize, columns: usize) -> Matrix {
        let mut raw = noise(rows * columns / BLOCK * BLOCK_BYTES, 1);
        for block in raw.chunks_exact_mut(BLOCK_BYTES) {
            // Scales from 2^-7 up to 2^-5.
            block[1] = 0x20 | (block[1] & 0x07);
        }
        Matrix::new(&raw, rows, columns)
    }

    fn vectors(n: usize) -> Vec<f32> {
        noise(n, 2).iter().map(|b| (f32::from(*b) - 127.5) / 32.0).collect()
    }

    /// Against sums in double precision: as near as quantising the vectors allows. And the same bits from every kernel, for
    /// every number of vectors, with and without threads.
    #[test]
    fn products_are_right_and_alike_everywhere() {
        for (rows, columns, n) in [(1, 32, 1), (70, 64, 1), (70, 96, 3), (512, 256, 17), (131, 512, 64)] {
            let (mut matrix, x) = (matrix(rows, columns), vectors(n * columns));
            let got = matrix.multiply(&x);
            for (vector, x) in x.chunks(columns).enumerate() {
                for row in 0..rows {
                    let want: f64 = matrix.row(row).zip(x).map(|(a, b)| f64::from(a) * f64::from(*b)).sum();
                    let size: f64 =
                        matrix.row(row).zip(x).map(|(a, b)| (f64::from(a) * f64::from(*b)).powi(2)).sum::<f64>().sqrt();
                    let got = f64::from(got[vector * rows + row]);
                    assert!(
                        (got - want).abs() < 0.03 * size,
                        "{rows}x{columns}, vector {vector}, row {row}: {got}, not {want}"
                    );
                }
            }
            let one_by_one: Vec<f32> = x.chunks(columns).flat_map(|x| matrix.multiply(x)).collect();
            assert!(got == one_by_one, "{rows}x{columns}: the vectors of a batch see each other");
            let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("threads");
            assert!(got == pool.install(|| matrix.multiply(&x)), "{rows}x{columns}: threads matter");
            matrix.kernel = Kernel::Portable;
            assert!(got == matrix.multiply(&x), "{rows}x{columns}: the processor matters");
        }
    }

    #[test]
    fn halves_are_exact() {
        for (bits, want) in [
            (0, 0.0),
            (0x3C00, 1.0),
            (0xC000, -2.0),
            (0x7BFF, 65504.0),
            (1, 2f32.powi(-24)),
            (0x0400, 2f32.powi(-14)),
            (0x7C00, f32::INFINITY),
        ] {
            assert_eq!(from_half(bits), want, "{bits:#x}");
        }
        assert!(from_half(0x7E00).is_nan());
    }

    #[test]
    fn what_is_not_finite_stays_visible() {
        let matrix = matrix(4, 32);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = vectors(32);
            x[5] = bad;
            assert!(matrix.multiply(&x).iter().all(|y| y.is_nan()));
        }
    }
}
