//! Matrix products: `C[m, n] (+)= op(A, B)`.
//!
//! | form | A      | B      | used for                       |
//! |------|--------|--------|--------------------------------|
//! | NT   | [m, k] | [n, k] | `y = x W^T` ([`linear`])       |
//! | NN   | [m, k] | [k, n] | `dX = dY W`                    |
//! | TN   | [k, m] | [k, n] | `dW += dY^T X`                 |
//!
//! Floor: 2 m n k operations; 4 (m k + n k + m n) bytes, and 4 m n more to add to C or 4 n for a bias. Besides the
//! portable text (`shaders/matmul.wgsl`, 8 x 4 outputs per invocation in registers, no workgroup memory) there are forms for
//!
//! - hardware: `tiled` and `tiled_small` pass 64 x 64 or 32 x 32 tiles through workgroup memory, each operand being
//!   read once per tile row; `thin` shares one sum between invocations where there are few rows or columns;
//! - SIMD on the host's processor: `subgroup` and `subgroup_thin` load each element of A once per subgroup.
//!
//! All but `thin` add a sum's terms in the order of k, one fused multiply-add each. The twin is [`matmul_cpu`]'s.

use super::matmul_forms::{self as forms, PLAIN, grid, transposed};
use crate::device::{self, Args, Cost, Kernel, Launch, Size, Slice, Stream};
use crate::kernels::harness::Harness;
use crate::kernels::matmul_cpu;
use crate::{bindings, params};
use anyhow::Result;

/// Which operand is transposed (T) and which is not (N).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    NT,
    NN,
    TN,
}

/// C is `[m, n]`; `k` is the length of the sums. `S` is [`Size`] where the device knows how many rows there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims<S = usize> {
    pub m: S,
    pub n: usize,
    pub k: S,
}

impl From<Dims> for Dims<Size> {
    fn from(Dims { m, n, k }: Dims) -> Self {
        Dims {
            m: m.into(),
            n,
            k: k.into(),
        }
    }
}

/// Iterations of an invocation's loops for each term of the sums, at most; but for tiles, which take more and are left out
/// where that is too many.
pub const ITERATIONS: u64 = 2;

params! {
    /// `start` is a [`Start`]. `first`: the row of the log-sums that A's first row belongs to, where A is a softmax.
    Params { m: u32, n: u32, k: u32, start: u32, first: u32 }
}

/// What the sums are added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Start {
    Zero = 0,
    /// C itself.
    Accumulate = 1,
    /// The same bias `[n]` in every row.
    Bias = 2,
    /// Another matrix `[m, n]`, in the place of the bias.
    Matrix = 3,
}

impl Start {
    pub(super) fn of(accumulate: bool) -> Start {
        if accumulate {
            Start::Accumulate
        } else {
            Start::Zero
        }
    }
}

const fn kernel(
    name: &'static str,
    form: Form,
    forms: &'static [device::Form],
    twin: fn(&Args),
) -> Kernel {
    Kernel {
        name,
        source: PLAIN.portable,
        entry: "main",
        constants: transposed(form),
        forms,
        params: Params::FIELDS,
        bindings: bindings![a: In Real, b: In Real, bias: In Real, c: Out Real],
        twin,
        cost,
    }
}

pub static NT: Kernel = kernel("matmul_nt", Form::NT, &forms::NT, |args| {
    twin(Form::NT, args)
});
pub static NN: Kernel = kernel("matmul_nn", Form::NN, &forms::NN, |args| {
    twin(Form::NN, args)
});
pub static TN: Kernel = kernel("matmul_tn", Form::TN, &forms::TN, |args| {
    twin(Form::TN, args)
});

/// `C[m, n] = op(A, B)`, added to what C holds if `accumulate`. Row-major; shapes as in the module's table.
pub fn matmul(
    s: &mut Stream,
    form: Form,
    a: Slice,
    b: Slice,
    c: Slice,
    dims: impl Into<Dims<Size>>,
    accumulate: bool,
) {
    push(s, form, [a, b, b, c], dims.into(), Start::of(accumulate));
}

/// `y[m, n] = x[m, k] W[n, k]^T + bias[n]`.
pub fn linear(
    s: &mut Stream,
    x: Slice,
    w: Slice,
    bias: Option<Slice>,
    y: Slice,
    dims: impl Into<Dims<Size>>,
) {
    match bias {
        Some(bias) => push(s, Form::NT, [x, w, bias, y], dims.into(), Start::Bias),
        None => matmul(s, Form::NT, x, w, y, dims, false),
    }
}

/// `y[m, n] = residual[m, n] + x[m, k] W[n, k]^T`.
pub fn linear_onto(
    s: &mut Stream,
    x: Slice,
    w: Slice,
    residual: Slice,
    y: Slice,
    dims: impl Into<Dims<Size>>,
) {
    let slices = [x, w, residual, y];
    push(s, Form::NT, slices, dims.into(), Start::Matrix);
}

/// Without a bias, the slot of the bias holds some other input, which is not read.
fn push(s: &mut Stream, form: Form, slices: [Slice; 4], dims: Dims<Size>, start: Start) {
    let kernel = match form {
        Form::NT => &NT,
        Form::NN => &NN,
        Form::TN => &TN,
    };
    let params = params_of(dims, start, 0);
    let grid = grid(&[params.m, params.n], 8, 128);
    s.push(kernel, &params, &slices, grid)
        .size("m", dims.m)
        .size("k", dims.k);
}

pub(super) fn params_of(dims: Dims<Size>, start: Start, first: usize) -> Params {
    Params {
        m: dims.m.max as u32,
        n: dims.n as u32,
        k: dims.k.max as u32,
        start: start as u32,
        first: first as u32,
    }
}

pub(super) fn cost(launch: &Launch) -> Cost {
    let p: Params = launch.read_params();
    let [m, n, k] = [p.m, p.n, p.k].map(u64::from);
    let [a, b, bias, c] = [0, 1, 2, 3].map(|i| launch.width(i));
    let start = match p.start {
        start if start == Start::Zero as u32 => 0,
        start if start == Start::Accumulate as u32 => c * m * n,
        start if start == Start::Bias as u32 => bias * n,
        _ => bias * m * n,
    };
    Cost {
        operations: 2 * m * n * k,
        bytes: a * m * k + b * n * k + c * m * n + start,
    }
}

fn twin(form: Form, args: &Args) {
    let p: Params = args.params();
    if p.m == 0 {
        return;
    }
    let (bias, (a, b, c, dims)) = (args.f32(2), operands(args));
    let Dims { m, n, .. } = dims;
    if p.start == Start::Bias as u32 {
        for row in c.chunks_exact_mut(n) {
            row.copy_from_slice(&bias[..n]);
        }
    }
    if p.start == Start::Matrix as u32 {
        c.copy_from_slice(&bias[..m * n]);
    }
    let accumulate = p.start != Start::Zero as u32;
    matmul_cpu::product(form, a, b, c, dims, accumulate);
}

/// A, B and C of a launch, and their sizes.
pub(super) fn operands<'a>(args: &Args<'a>) -> (&'a [f32], &'a [f32], &'a mut [f32], Dims) {
    let p: Params = args.params();
    let (m, n, k) = (p.m as usize, p.n as usize, p.k as usize);
    let (a, b) = (&args.f32(0)[..m * k], &args.f32(1)[..n * k]);
    (a, b, &mut args.f32_mut(3)[..m * n], dims(m, n, k))
}

const fn dims(m: usize, n: usize, k: usize) -> Dims {
    Dims { m, n, k }
}

/// One, primes, one past a tile (8 rows, 128 columns), multiples of 4, and products worth several threads.
const SHAPES: [Dims; 11] = [
    dims(1, 1, 1),
    dims(1, 68, 12),
    dims(3, 5, 7),
    dims(9, 129, 17),
    dims(8, 128, 16),
    dims(12, 132, 20),
    dims(37, 4, 31),
    dims(16, 260, 2),
    dims(67, 1, 36),
    dims(68, 92, 52),
    dims(100, 36, 76),
];

pub fn cases(h: &mut Harness) -> Result<()> {
    for dims in SHAPES {
        let Dims { m, n, k } = dims;
        let (a, b) = (h.real("a", m * k), h.real("b", n * k));
        let (bias, c) = (h.real("bias", n), h.real("c", m * n));
        for form in [Form::NT, Form::NN, Form::TN] {
            for accumulate in [false, true] {
                matmul(
                    h.stream(),
                    form,
                    a.slice(),
                    b.slice(),
                    c.slice(),
                    dims,
                    accumulate,
                );
            }
        }
        linear(
            h.stream(),
            a.slice(),
            b.slice(),
            Some(bias.slice()),
            c.slice(),
            dims,
        );
        let residual = h.real("residual", m * n);
        let (x, w, r) = (a.slice(), b.slice(), residual.slice());
        linear_onto(h.stream(), x, w, r, c.slice(), dims);
        h.run()?;
        h.read_u32(&c)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::harness::devices;

    /// The product by definition.
    fn product64(form: Form, a: &[f64], b: &[f64], Dims { m, n, k }: Dims) -> Vec<f64> {
        let a_at = |i: usize, l: usize| match form {
            Form::NT | Form::NN => a[i * k + l],
            Form::TN => a[l * m + i],
        };
        let b_at = |j: usize, l: usize| match form {
            Form::NT => b[j * k + l],
            Form::NN | Form::TN => b[l * n + j],
        };
        (0..m * n)
            .map(|at| (0..k).map(|l| a_at(at / n, l) * b_at(at % n, l)).sum())
            .collect()
    }

    #[test]
    fn shader_equals_twin() {
        devices::lockstep(cases);
    }

    #[test]
    fn equals_f64() {
        devices::each(|h| {
            for dims in SHAPES {
                let Dims { m, n, k } = dims;
                let (a, b) = (h.real("a", m * k), h.real("b", n * k));
                let bias = h.real("bias", n);
                for form in [Form::NT, Form::NN, Form::TN] {
                    let [fresh, grown] = [h.real("fresh", m * n), h.real("grown", m * n)];
                    matmul(
                        h.stream(),
                        form,
                        a.slice(),
                        b.slice(),
                        fresh.slice(),
                        dims,
                        false,
                    );
                    matmul(
                        h.stream(),
                        form,
                        a.slice(),
                        b.slice(),
                        grown.slice(),
                        dims,
                        true,
                    );
                    h.run().unwrap();
                    let want = product64(form, &a.f64(), &b.f64(), dims);
                    h.expect(&fresh, &want, 2e-6);
                    let sum: Vec<f64> = want.iter().zip(grown.f64()).map(|(x, y)| x + y).collect();
                    h.expect(&grown, &sum, 2e-6);
                }
                let [with, without] = [h.real("with", m * n), h.real("without", m * n)];
                let (x, w) = (a.slice(), b.slice());
                linear(h.stream(), x, w, Some(bias.slice()), with.slice(), dims);
                linear(h.stream(), x, w, None, without.slice(), dims);
                let residual = h.real("residual", m * n);
                let onto = h.real("onto", m * n);
                let (r, y) = (residual.slice(), onto.slice());
                linear_onto(h.stream(), x, w, r, y, dims);
                h.run().unwrap();
                let want = product64(Form::NT, &a.f64(), &b.f64(), dims);
                h.expect(&without, &want, 2e-6);
                let sum = want.iter().zip(residual.f64()).map(|(x, r)| x + r);
                h.expect(&onto, &sum.collect::<Vec<f64>>(), 2e-6);
                let bias = bias.f64();
                let sum: Vec<f64> = want
                    .iter()
                    .enumerate()
                    .map(|(i, y)| y + bias[i % n])
                    .collect();
                h.expect(&with, &sum, 2e-6);
            }
        });
    }
}
