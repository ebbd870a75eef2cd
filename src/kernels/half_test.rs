//! Whether a device computes with f16 what it should: asked before a run trusts it, since some drivers get it wrong.

use super::copy::copy;
use super::matmul::{Dims, Form, matmul};
use crate::device::{Buffer, DeviceRef, Precision, Stream};
use crate::rng::{self, Rng};
use anyhow::{Result, ensure};
use half::f16;

/// Sums are f32, and the numbers are ones that f16 holds exactly.
const TOLERANCE: f64 = 1e-5;

const DIMS: Dims = Dims {
    m: 68,
    n: 132,
    k: 100,
};

/// Stores random numbers as f16 and multiplies them in each way that passes do. Errors: the device is off, by how much and
/// in what.
pub fn half_test(device: &DeviceRef) -> Result<()> {
    let Dims { m, n, k } = DIMS;
    let mut draws = Rng::new(1, rng::Stream::Test, 0, 0);
    let mut operand = |count: usize| -> Result<_> {
        let exact = |v: f32| f16::from_f32(v).to_f32();
        let values: Vec<f32> = (0..count).map(|_| exact(draws.normal())).collect();
        let whole = Buffer::with_f32(device, "f16 test", &values)?;
        let halves = Buffer::new(device, "f16 test", Precision::F16.words(count))?;
        Ok((values, whole, halves))
    };
    let (a, a_whole, a_halves) = operand(m * k)?;
    let (b, b_whole, b_halves) = operand(n * k)?;
    let c = Buffer::new(device, "f16 test", m * n)?;
    for form in [Form::NT, Form::NN, Form::TN] {
        let mut s = Stream::new();
        let [x, y] = [&a_halves, &b_halves].map(|halves| halves.all().halves());
        copy(&mut s, a_whole.all(), x, m * k);
        copy(&mut s, b_whole.all(), y, n * k);
        matmul(&mut s, form, x, y, c.all(), DIMS, false);
        device.run(&s)?;
        let error = worst(form, &a, &b, &c.read_f32()?);
        ensure!(
            error < TOLERANCE,
            "{}: f16 products ({form:?}) are off by {error:.0e} of what they should be, so this device cannot be trusted \
             with f16: use precision=f32",
            device.info()
        );
    }
    Ok(())
}

/// The largest error, in units of the largest sum.
fn worst(form: Form, a: &[f32], b: &[f32], c: &[f32]) -> f64 {
    let Dims { m, n, k } = DIMS;
    let at = |i: usize, j: usize, l: usize| match form {
        Form::NT => a[i * k + l] as f64 * b[j * k + l] as f64,
        Form::NN => a[i * k + l] as f64 * b[l * n + j] as f64,
        Form::TN => a[l * m + i] as f64 * b[l * n + j] as f64,
    };
    let (mut error, mut largest) = (0.0f64, 0.0f64);
    for (index, &got) in c.iter().enumerate() {
        let want: f64 = (0..k).map(|l| at(index / n, index % n, l)).sum();
        let off = (want - got as f64).abs();
        error = error.max(if off.is_nan() { f64::INFINITY } else { off });
        largest = largest.max(want.abs());
    }
    error / largest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::Cpu;
    use crate::kernels::harness::devices;
    use std::sync::Arc;

    #[test]
    fn right_devices_pass() {
        half_test(&(Arc::new(Cpu::new()) as DeviceRef)).unwrap();
        let gpu = devices::unchecked_gpu();
        match gpu.has_halves() {
            true => half_test(&gpu).unwrap(),
            false => println!("not tested: {} has no f16", gpu.info()),
        }
    }

    #[test]
    fn a_wrong_element_is_noticed() {
        let Dims { m, n, k } = DIMS;
        let ones = |count: usize| vec![1.0; count];
        let (a, b, mut c) = (ones(m * k), ones(n * k), vec![k as f32; m * n]);
        assert_eq!(worst(Form::NT, &a, &b, &c), 0.0);
        for wrong in [k as f32 - 0.5, f32::NAN, 0.0] {
            c[7] = wrong;
            assert!(worst(Form::NT, &a, &b, &c) > TOLERANCE);
        }
    }
}
