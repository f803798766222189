//! Random reals: gaps between arrivals, and lengths.
//! Invariant: every draw follows from [`Draws`] through + - * / and the square root, which IEEE 754 fixes to the last bit, and
//! through `libm`, which is the same code everywhere. So a workload is the same on every machine.

use super::error::{SettingError, within};
use crate::draws::Draws;
use serde::Deserialize;

/// The greatest variation of gaps that is drawn: standard deviation over mean. A window of `n` requests with one pause in it
/// has up to the root of `n`; taken as a law for gaps, that would be batches of thousands in one microsecond.
pub const CV_MAX: f64 = 10.0;
/// Tokens of a prompt or an answer.
pub const TOKENS_MAX: u32 = 10_000_000;
/// Cells of a length's quantile function: 0.5 %, so that the median and the 90th and 99th percentile are knots.
const CELLS: usize = 200;

/// A real above 0 and below 1.
pub fn unit(draws: &mut Draws) -> f64 {
    // 52 bits, so that the half fits too and 1 is never reached.
    ((draws.any() >> 12) as f64 + 0.5) / (1_u64 << 52) as f64
}

/// An exponentially distributed real of mean 1.
pub fn exponential(draws: &mut Draws) -> f64 {
    -libm::log(unit(draws))
}

/// A real of the standard normal distribution, by Marsaglia's polar method.
pub fn normal(draws: &mut Draws) -> f64 {
    loop {
        let (x, y) = (2.0 * unit(draws) - 1.0, 2.0 * unit(draws) - 1.0);
        let square = x * x + y * y;
        if square < 1.0 {
            return x * libm::sqrt(-2.0 * libm::log(square) / square);
        }
    }
}

/// The Gamma distribution of scale 1, after Marsaglia and Tsang, "A simple method for generating gamma variables" (2000).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gamma {
    d: f64,
    c: f64,
    /// For shapes below 1, which are drawn as of 1 more and then made smaller.
    inverse_shape: Option<f64>,
}

impl Gamma {
    /// Of that shape, above 0; its mean is the shape.
    #[must_use]
    pub fn new(shape: f64) -> Self {
        let small = shape < 1.0;
        let d = if small { shape + 1.0 } else { shape } - 1.0 / 3.0;
        Self { d, c: 1.0 / libm::sqrt(9.0 * d), inverse_shape: small.then_some(1.0 / shape) }
    }

    /// A draw.
    pub fn draw(&self, draws: &mut Draws) -> f64 {
        let drawn = loop {
            let x = normal(draws);
            let v = 1.0 + self.c * x;
            if v <= 0.0 {
                continue;
            }
            let (v, u, square) = (v * v * v, unit(draws), x * x);
            if u < 1.0 - 0.0331 * square * square || libm::log(u) < 0.5 * square + self.d * (1.0 - v + libm::log(v)) {
                break self.d * v;
            }
        };
        match self.inverse_shape {
            Some(inverse) => drawn * libm::exp(-exponential(draws) * inverse),
            None => drawn,
        }
    }
}

/// The law of the gaps between arrivals, scaled to a mean of 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Gaps {
    /// Gamma.
    Gamma {
        /// The law before it is scaled.
        law: Gamma,
        /// Its shape.
        shape: f64,
    },
    /// Weibull.
    Weibull {
        /// One over the shape.
        inverse_shape: f64,
        /// What makes the mean 1.
        scale: f64,
    },
}

impl Gaps {
    /// Gamma of that shape; a variation above [`CV_MAX`] is taken as that.
    #[must_use]
    pub fn gamma(shape: f64) -> Self {
        // The variation is the inverse root of the shape. Above 10^4 there is nothing left to vary.
        let shape = shape.clamp(1.0 / (CV_MAX * CV_MAX), 1e4);
        Self::Gamma { law: Gamma::new(shape), shape }
    }

    /// Weibull of that shape; a variation above [`CV_MAX`] is taken as that.
    #[must_use]
    pub fn weibull(shape: f64) -> Self {
        // At a shape of 0.2326 the variation is 10.
        let inverse_shape = 1.0 / shape.clamp(0.2326, 50.0);
        Self::Weibull { inverse_shape, scale: 1.0 / libm::tgamma(1.0 + inverse_shape) }
    }

    /// Standard deviation over mean.
    #[must_use]
    pub fn cv(&self) -> f64 {
        match self {
            Self::Gamma { shape, .. } => 1.0 / libm::sqrt(*shape),
            Self::Weibull { inverse_shape, scale } => {
                libm::sqrt(libm::tgamma(1.0 + 2.0 * inverse_shape) * scale * scale - 1.0)
            }
        }
    }

    /// The gap from one arrival to the next.
    pub fn draw(&self, draws: &mut Draws) -> f64 {
        match self {
            Self::Gamma { law, shape } => law.draw(draws) / shape,
            Self::Weibull { inverse_shape, scale } => scale * libm::exp(libm::log(exponential(draws)) * inverse_shape),
        }
    }

    /// The wait for the next arrival of someone who looks at any time, as the first draw must be: with [`Gaps::draw`] there, the
    /// arrivals of a bursty law would outnumber its rate. Equals a random part of a gap that is drawn by its length.
    pub fn rest(&self, draws: &mut Draws) -> f64 {
        let gap = match self {
            Self::Gamma { shape, .. } => Gamma::new(shape + 1.0).draw(draws) / shape,
            Self::Weibull { inverse_shape, scale } => {
                scale * libm::exp(libm::log(Gamma::new(1.0 + inverse_shape).draw(draws)) * inverse_shape)
            }
        };
        gap * unit(draws)
    }
}

/// How long prompts or answers are, as TOML: a number, `{ min, max }`, or `{ mean, p50, p90, p99 }`. All in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Length {
    /// Always the same.
    Fixed(u32),
    /// Evenly between two, both included.
    Even {
        /// The shortest.
        min: u32,
        /// The longest.
        max: u32,
    },
    /// Of that mean and those percentiles.
    Summary {
        /// The mean.
        mean: f64,
        /// The median.
        p50: f64,
        /// The 90th percentile.
        p90: f64,
        /// The 99th percentile.
        p99: f64,
    },
}

impl Length {
    /// Ready to be drawn from.
    pub fn lengths(&self, field: &'static str) -> Result<Lengths, SettingError> {
        let whole = |tokens: u32| within(field, f64::from(tokens), 1.0, f64::from(TOKENS_MAX));
        match *self {
            Self::Fixed(tokens) => whole(tokens).map(|()| Lengths::even(tokens, tokens)),
            Self::Even { min, max } => {
                whole(min)?;
                within(field, f64::from(max), f64::from(min), f64::from(TOKENS_MAX))?;
                Ok(Lengths::even(min, max))
            }
            Self::Summary { mean, p50, p90, p99 } => {
                let tokens = f64::from(TOKENS_MAX);
                for (value, low) in [(mean, 1.0), (p50, 1.0), (p90, p50), (p99, p90)] {
                    within(field, value, low, tokens)?;
                }
                Ok(Lengths::summary(mean, p50, p90, p99))
            }
        }
    }
}

/// How long prompts or answers are, as a quantile function.
#[derive(Clone, Debug, PartialEq)]
pub struct Lengths {
    /// At each 0.5 %, from 0 to 100 %; straight between.
    knots: Box<[f32]>,
}

impl Lengths {
    /// Evenly between two numbers of tokens, both included; `max` is at least `min`.
    #[must_use]
    pub fn even(min: u32, max: u32) -> Self {
        let width = f64::from(max.saturating_sub(min)) + 1.0;
        let knot = |cell: usize| (f64::from(min) - 0.5 + width * cell as f64 / CELLS as f64) as f32;
        Self { knots: (0..=CELLS).map(knot).collect() }
    }

    /// Of that mean and those percentiles, which ascend from 1. The percentiles hold exactly; the mean as well as they allow.
    ///
    /// Between two percentiles `a` and `b`, the quantile is `a + (b - a) * v^s` where `v` runs from 0 to 1: one bend `s` for
    /// all parts, so that the mean fixes it. The shortest is 1; the longest goes on from the 90th to the 99th percentile as a
    /// lognormal would, but is at most twice the latter, unless the mean asks for more.
    #[must_use]
    pub fn summary(mean: f64, p50: f64, p90: f64, p99: f64) -> Self {
        /// Where a lognormal has its last two thousandth, in steps of what lies between the 90th and 99th percentile.
        const TAIL: f64 = 0.92;
        const BENDS: [f64; 2] = [0.125, 16.0];
        let longest = p99 * libm::pow(p99 / p90, TAIL).min(2.0);
        let shape = |bend: f64, longest: f64| Self::bent([1.0, p50, p90, p99, longest], bend);
        // The mean falls as the bend grows.
        let (mut low, mut high) = (BENDS[0], BENDS[1]);
        for _ in 0..26 {
            let middle = libm::sqrt(low * high);
            if shape(middle, longest).mean() > mean { low = middle } else { high = middle }
        }
        let fitted = shape(high, longest);
        if fitted.mean() > mean * 0.999 {
            return fitted;
        }
        // Not even the flattest reaches the mean: the tail is longer than thought.
        let (mut low, mut high) = (longest, f64::from(TOKENS_MAX));
        for _ in 0..40 {
            let middle = libm::sqrt(low * high);
            if shape(BENDS[0], middle).mean() < mean { low = middle } else { high = middle }
        }
        shape(BENDS[0], high)
    }

    fn bent(at: [f64; 5], bend: f64) -> Self {
        const ENDS: [usize; 5] = [0, CELLS / 2, CELLS * 9 / 10, CELLS * 99 / 100, CELLS];
        let mut knots = vec![at[0] as f32];
        for part in 0..4 {
            let cells = ENDS[part + 1] - ENDS[part];
            for cell in 1..=cells {
                let way = if cell == cells { 1.0 } else { libm::pow(cell as f64 / cells as f64, bend) };
                knots.push((at[part] + (at[part + 1] - at[part]) * way) as f32);
            }
        }
        Self { knots: knots.into() }
    }

    /// A draw, at least 1.
    pub fn draw(&self, draws: &mut Draws) -> u32 {
        let place = u128::from(draws.any()) * CELLS as u128;
        let cell = (place >> 64) as usize;
        let part = ((place as u64) >> 11) as f64 / (1_u64 << 53) as f64;
        let (from, to) = (f64::from(self.knots[cell]), f64::from(self.knots[cell + 1]));
        // Rounds to the nearest; a cast of what is too great gives the greatest.
        ((from + (to - from) * part + 0.5) as u32).clamp(1, TOKENS_MAX)
    }

    /// The quantile function, `share` from 0 to 1.
    #[must_use]
    pub fn quantile(&self, share: f64) -> f64 {
        let place = share.clamp(0.0, 1.0) * CELLS as f64;
        let cell = (place as usize).min(CELLS - 1);
        let (from, to) = (f64::from(self.knots[cell]), f64::from(self.knots[cell + 1]));
        from + (to - from) * (place - cell as f64)
    }

    /// The mean.
    #[must_use]
    pub fn mean(&self) -> f64 {
        let middles = self.knots.windows(2).map(|ends| (f64::from(ends[0]) + f64::from(ends[1])) / 2.0);
        middles.sum::<f64>() / CELLS as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWN: usize = 20_000;

    /// Mean and standard deviation.
    fn moments(mut draw: impl FnMut(&mut Draws) -> f64) -> (f64, f64) {
        let mut draws = Draws::new(11, "sampling");
        let drawn: Vec<f64> = (0..DRAWN).map(|_| draw(&mut draws)).collect();
        let mean = drawn.iter().sum::<f64>() / DRAWN as f64;
        let square = drawn.iter().map(|value| (value - mean) * (value - mean)).sum::<f64>() / DRAWN as f64;
        (mean, square.sqrt())
    }

    #[track_caller]
    fn check(name: &str, (mean, deviation): (f64, f64), (mean_expected, deviation_expected): (f64, f64)) {
        // Five standard errors of the mean; the deviation of a heavy tail is itself uncertain.
        let error = 5.0 * deviation_expected / (DRAWN as f64).sqrt() + 1e-9;
        assert!((mean - mean_expected).abs() < error, "{name}: mean {mean}, not {mean_expected}");
        let ratio = deviation / deviation_expected;
        assert!((0.85..1.15).contains(&ratio), "{name}: deviation {deviation}, not {deviation_expected}");
    }

    #[test]
    fn draws_have_the_moments_of_their_law() {
        check("unit", moments(unit), (0.5, (1.0_f64 / 12.0).sqrt()));
        check("exponential", moments(exponential), (1.0, 1.0));
        check("normal", moments(normal), (0.0, 1.0));
        for shape in [0.05, 0.3, 0.9, 1.0, 2.5, 40.0] {
            let gamma = Gamma::new(shape);
            check("gamma", moments(|draws| gamma.draw(draws)), (shape, shape.sqrt()));
            let gaps = Gaps::gamma(shape);
            assert!((gaps.cv() - 1.0 / shape.sqrt()).abs() < 1e-12);
            check("gamma gaps", moments(|draws| gaps.draw(draws)), (1.0, gaps.cv()));
        }
        // Of Weibull with a shape of 1/2 the variation is the root of 5.
        assert!((Gaps::weibull(0.5).cv() - 5.0_f64.sqrt()).abs() < 1e-9);
        for shape in [0.4, 0.5, 1.0, 1.7, 6.0] {
            let gaps = Gaps::weibull(shape);
            check("weibull gaps", moments(|draws| gaps.draw(draws)), (1.0, gaps.cv()));
        }
    }

    #[test]
    fn a_first_wait_is_half_the_mean_square() {
        // Renewal theory: the mean rest of a gap is (1 + cv²) / 2.
        for gaps in [Gaps::gamma(0.2), Gaps::gamma(1.0), Gaps::gamma(9.0), Gaps::weibull(0.7), Gaps::weibull(2.0)] {
            let (mean, deviation) = moments(|draws| gaps.rest(draws));
            let expected = (1.0 + gaps.cv() * gaps.cv()) / 2.0;
            let error = 5.0 * deviation / (DRAWN as f64).sqrt();
            assert!((mean - expected).abs() < error, "{gaps:?}: {mean}, not {expected}");
        }
    }

    #[test]
    fn no_law_varies_without_bound() {
        for gaps in [Gaps::gamma(1e-9), Gaps::weibull(1e-9)] {
            assert!((gaps.cv() / CV_MAX - 1.0).abs() < 0.01, "{}", gaps.cv());
        }
        for gaps in [Gaps::gamma(1e9), Gaps::weibull(1e9)] {
            assert!(gaps.cv() < 0.05);
        }
    }

    #[test]
    fn lengths_keep_percentiles_and_mean() {
        // The greatest clients of ServeGen's m-large, and some odd ones.
        let cases = [
            (1144.5, 822.0, 2372.0, 13050.0),
            (333.7, 290.0, 774.0, 970.0),
            (45.0, 3.0, 107.0, 370.0),
            (666.5, 275.0, 414.0, 6151.0),
            (541.4, 610.0, 855.0, 988.0),
            (3.0, 1.0, 1.0, 15.0),
            (1.0, 1.0, 1.0, 1.0),
        ];
        for (mean, p50, p90, p99) in cases {
            let lengths = Length::Summary { mean, p50, p90, p99 }.lengths("length").unwrap();
            for (share, expected) in [(0.5, p50), (0.9, p90), (0.99, p99)] {
                let quantile = lengths.quantile(share);
                assert!((quantile - expected).abs() <= expected * 1e-4, "{share}: {quantile}, not {expected}");
            }
            assert!((lengths.mean() / mean - 1.0).abs() < 0.002, "mean {}, not {mean}", lengths.mean());
            let mut draws = Draws::new(3, "lengths");
            let mut drawn: Vec<u32> = (0..DRAWN).map(|_| lengths.draw(&mut draws)).collect();
            drawn.sort_unstable();
            let drawn_mean = drawn.iter().map(|tokens| f64::from(*tokens)).sum::<f64>() / DRAWN as f64;
            assert!((drawn_mean - mean).abs() < mean * 0.06 + 0.1, "drew a mean of {drawn_mean}, not {mean}");
            let median = f64::from(drawn[DRAWN / 2]);
            assert!((median - p50).abs() <= p50 * 0.03 + 1.0, "drew a median of {median}, not {p50}");
            assert!(drawn[0] >= 1);
        }
    }

    #[test]
    fn even_lengths_are_even() {
        let mut draws = Draws::new(3, "lengths");
        let lengths = Length::Even { min: 3, max: 6 }.lengths("length").unwrap();
        let mut counts = [0_u32; 8];
        for _ in 0..8000 {
            counts[lengths.draw(&mut draws) as usize] += 1;
        }
        assert!(counts[3..7].iter().all(|count| (1800..2200).contains(count)), "{counts:?}");
        assert_eq!(counts[3..7].iter().sum::<u32>(), 8000);
        let fixed = Length::Fixed(7200).lengths("length").unwrap();
        assert!((0..1000).all(|_| fixed.draw(&mut draws) == 7200));
    }

    #[test]
    fn bad_lengths_are_named() {
        let cases = [
            (Length::Fixed(0), "question: 0 is not from 1 to 10000000"),
            (Length::Even { min: 5, max: 4 }, "question: 4 is not from 5 to 10000000"),
            (Length::Summary { mean: 5.0, p50: 9.0, p90: 8.0, p99: 20.0 }, "question: 8 is not from 9 to 10000000"),
            (
                Length::Summary { mean: f64::NAN, p50: 1.0, p90: 8.0, p99: 20.0 },
                "question: NaN is not from 1 to 10000000",
            ),
        ];
        for (length, error) in cases {
            assert_eq!(length.lengths("question").unwrap_err().to_string(), error);
        }
    }
}
