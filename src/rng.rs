//! The one random generator (spec 8): a counter-based hash, the same integers in WGSL
//! (`shaders/shared/rng.wgsl`) and here. A draw is a pure function of
//! (seed, stream, step, document, index), so it does not depend on threads, order or adapter.
//!
//! Hash: pcg4d of Jarzynski & Olano, "Hash Functions for GPU Rendering" (JCGT 2020).

/// What a draw is for. Each purpose has its own stream, so adding draws to one never moves another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stream {
    Init = 1,
    Data = 2,
    Prompts = 3,
    Decode = 4,
    Bootstrap = 5,
    Shop = 6,
    Test = 7,
    Dropout = 8,
    Embed = 9,
    SemanticIds = 10,
    /// The order of interactions of the same instant.
    Ties = 11,
    Crop = 12,
}

/// pcg4d: four words in, four well-mixed words out.
#[inline]
pub fn pcg4d(v: [u32; 4]) -> [u32; 4] {
    let [mut x, mut y, mut z, mut w] =
        v.map(|a| a.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    for round in 0..2 {
        x = x.wrapping_add(y.wrapping_mul(w));
        y = y.wrapping_add(z.wrapping_mul(x));
        z = z.wrapping_add(x.wrapping_mul(y));
        w = w.wrapping_add(y.wrapping_mul(z));
        if round == 0 {
            [x, y, z, w] = [x, y, z, w].map(|a| a ^ (a >> 16));
        }
    }
    [x, y, z, w]
}

/// The word that stands for (seed, stream) in every draw of that stream.
#[inline]
pub fn key(seed: u64, stream: Stream) -> u32 {
    pcg4d([seed as u32, (seed >> 32) as u32, stream as u32, 0])[0]
}

/// Uniform in the open interval (0, 1), from the top 24 bits; never 0 or 1, so its logarithm is finite.
/// (23 bits of mantissa room: `(k + 0.5) * 2^-23` is exact in f32 for every k below 2^23.)
#[inline]
pub fn unit(word: u32) -> f32 {
    ((word >> 9) as f32 + 0.5) * (1.0 / 8_388_608.0)
}

/// Standard Gumbel noise: `argmax(log p + gumbel)` draws from p.
#[inline]
pub fn gumbel(word: u32) -> f32 {
    -(-unit(word).ln()).ln()
}

/// The draws of one (seed, stream, step, document), by increasing index.
#[derive(Clone, Debug)]
pub struct Rng {
    key: u32,
    step: u32,
    document: u32,
    index: u32,
}

impl Rng {
    pub fn new(seed: u64, stream: Stream, step: u32, document: u32) -> Self {
        Rng {
            key: key(seed, stream),
            step,
            document,
            index: 0,
        }
    }

    /// The four words at the next index.
    #[inline]
    pub fn block(&mut self) -> [u32; 4] {
        let words = pcg4d([self.key, self.step, self.document, self.index]);
        self.index = self.index.wrapping_add(1);
        words
    }

    pub fn word(&mut self) -> u32 {
        self.block()[0]
    }

    /// Uniform in (0, 1).
    pub fn uniform(&mut self) -> f32 {
        unit(self.word())
    }

    /// Uniform in `0..n` (n > 0), by the multiply-shift method.
    pub fn below(&mut self, n: usize) -> usize {
        ((self.word() as u64 * n as u64) >> 32) as usize
    }

    /// Standard normal (Box-Muller).
    pub fn normal(&mut self) -> f32 {
        let [a, b, ..] = self.block();
        (-2.0 * unit(a).ln()).sqrt() * (std::f32::consts::TAU * unit(b)).cos()
    }

    /// Fisher-Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }

    /// An index drawn in proportion to `weights` (non-negative, not all zero).
    pub fn weighted(&mut self, weights: &[f32]) -> usize {
        let total: f64 = weights.iter().map(|&w| w as f64).sum();
        let mut left = self.uniform() as f64 * total;
        for (i, &w) in weights.iter().enumerate() {
            left -= w as f64;
            if left < 0.0 {
                return i;
            }
        }
        weights.iter().rposition(|&w| w > 0.0).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_counters_same_draw_other_counters_other_draw() {
        let draw = |seed, stream, step, doc| Rng::new(seed, stream, step, doc).word();
        let base = draw(1, Stream::Test, 2, 3);
        assert_eq!(base, draw(1, Stream::Test, 2, 3));
        for other in [
            draw(2, Stream::Test, 2, 3),
            draw(1, Stream::Data, 2, 3),
            draw(1, Stream::Test, 3, 3),
            draw(1, Stream::Test, 2, 4),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn uniform_and_normal_have_their_moments() {
        let mut rng = Rng::new(7, Stream::Test, 0, 0);
        let n = 40_000;
        let (mut mean, mut square) = (0.0f64, 0.0f64);
        for _ in 0..n {
            let u = rng.uniform();
            assert!(u > 0.0 && u < 1.0);
            mean += u as f64 / n as f64;
            let z = rng.normal() as f64;
            square += z * z / n as f64;
        }
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        assert!((square - 1.0).abs() < 0.03, "{square}");
    }
}
