//! Scalar helpers shared by the twins, written so that loops over them vectorise.

/// Stands for minus infinity in masks and running maxima: finite, so WGSL may hold it as a literal.
pub const MASKED: f32 = -1e30;

/// `exp(x)` within 2 ulp for x in [-87, 88]; 0 below, saturating above. Branch-free (range reduction by ln 2, then a
/// degree-6 polynomial), because the standard library's is a call per element that stops vectorisation. So would a
/// conversion to an integer, which saturates: the exponent is rounded by adding 1.5 x 2^23, which leaves it in the low
/// bits of the sum.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOG2E: f32 = std::f32::consts::LOG2_E;
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.0, 88.0);
    let shifted = clamped.mul_add(LOG2E, ROUND);
    let k = shifted - ROUND;
    let r = (-k).mul_add(LN2_LO, (-k).mul_add(LN2_HI, clamped));
    let mut p = 1.0 / 720.0;
    p = f32::mul_add(p, r, 1.0 / 120.0);
    p = f32::mul_add(p, r, 1.0 / 24.0);
    p = f32::mul_add(p, r, 1.0 / 6.0);
    p = f32::mul_add(p, r, 0.5);
    p = f32::mul_add(p, r, 1.0);
    p = f32::mul_add(p, r, 1.0);
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if x < -87.0 { 0.0 } else { p * scale }
}

/// `1 / (1 + exp(-x))`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Sum in a fixed order, eight partial sums wide, so that it vectorises and does not depend on threads.
#[inline]
pub fn sum(x: impl ExactSizeIterator<Item = f32> + Clone) -> f32 {
    let mut lanes = [0.0f32; 8];
    for (i, v) in x.enumerate() {
        lanes[i % 8] += v;
    }
    lanes.iter().sum()
}

/// Sixteen values folded in halves: four steps, each of which waits for one operation; in turn, each would wait for the
/// one before.
#[inline(always)]
pub fn fold(mut lanes: [f32; 16], f: impl Fn(f32, f32) -> f32) -> f32 {
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
    }
    lanes[0]
}

/// Dot product: sixteen partial sums in a fixed order.
#[inline]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    const W: usize = 16;
    let mut lanes = [0.0f32; W];
    let (ca, cb) = (a.chunks_exact(W), b.chunks_exact(W));
    let (ra, rb) = (ca.remainder(), cb.remainder());
    for (x, y) in ca.zip(cb) {
        for i in 0..W {
            lanes[i] = x[i].mul_add(y[i], lanes[i]);
        }
    }
    let mut total = fold(lanes, |a, b| a + b);
    for (x, y) in ra.iter().zip(rb) {
        total = x.mul_add(*y, total);
    }
    total
}

/// `y += a x`.
#[inline]
pub fn axpy(y: &mut [f32], a: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = a.mul_add(*x, *y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp() {
        for i in -8_600..8_700 {
            let x = i as f32 * 0.01;
            let want = (x as f64).exp();
            let error = (exp(x) as f64 - want).abs() / want;
            assert!(error < 2.5e-7, "exp({x}) is off by {error:e}");
        }
        assert_eq!(exp(MASKED), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(1e3), exp(88.0));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn dot_matches_f64() {
        let a: Vec<f32> = (0..77).map(|i| (i as f32).sin()).collect();
        let b: Vec<f32> = (0..77).map(|i| (i as f32 * 0.7).cos()).collect();
        let want: f64 = a.iter().zip(&b).map(|(x, y)| *x as f64 * *y as f64).sum();
        assert!((dot(&a, &b) as f64 - want).abs() < 1e-5);
        assert!(
            (sum(a.iter().copied()) as f64 - a.iter().map(|x| *x as f64).sum::<f64>()).abs() < 1e-5
        );
    }
}
