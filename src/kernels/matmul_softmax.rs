//! Matrix products with a softmax: those of [`super::matmul`] in which A is `exp(logits - lse)`, taken as logits are loaded.
//!
//! | form | logits | lse | B      | C      | used for                         |
//! |------|--------|-----|--------|--------|----------------------------------|
//! | NN   | [m, k] | [m] | [k, n] | [m, n] | the gradient of hidden states    |
//! | TN   | [k, m] | [k] | [k, n] | [m, n] | that of the output projection    |
//!
//! So the gradient of the logits, which is as large as they are, is neither written nor read ([`super::target_gradient`]
//! has the rest of it). Forms and twin are the product's; a form that passes A through tiles takes each exponential once
//! for every tile of columns, the twin once.
//!
//! Floor: 2 m n k operations and 2 for each logit; the product's bytes and 4 per row of logits.

use super::matmul::{Dims, Form, Params, Start, operands, params_of};
use super::matmul_cpu;
use super::matmul_forms::{self as forms, SOFTMAX, grid, transposed};
use crate::bindings;
use crate::device::{self, Args, Cost, Kernel, Launch, Size, Slice, Stream};
use crate::kernels::harness::Harness;
use anyhow::Result;

const fn kernel(
    name: &'static str,
    form: Form,
    forms: &'static [device::Form],
    twin: fn(&Args),
) -> Kernel {
    Kernel {
        name,
        source: SOFTMAX.portable,
        entry: "main",
        constants: transposed(form),
        forms,
        params: Params::FIELDS,
        bindings: bindings![a: In F32, b: In Real, bias: In Real, c: Out Real, lse: In F32],
        twin,
        cost,
    }
}

pub static NN: Kernel = kernel("matmul_nn_softmax", Form::NN, &forms::NN_SOFTMAX, |args| {
    twin(Form::NN, args)
});
pub static TN: Kernel = kernel("matmul_tn_softmax", Form::TN, &forms::TN_SOFTMAX, |args| {
    twin(Form::TN, args)
});

/// `C[m, n] = op(softmax(logits), B)`, added to what C holds if `accumulate`; `lse` are the logs of the sums of the
/// logits' exponentials, by row: from row `first` on. Shapes as in the module's table.
pub fn matmul_softmax(
    s: &mut Stream,
    form: Form,
    logits: Slice,
    (lse, first): (Slice, usize),
    b: Slice,
    c: Slice,
    dims: impl Into<Dims<Size>>,
    accumulate: bool,
) {
    let kernel = match form {
        Form::NN => &NN,
        Form::TN => &TN,
        Form::NT => panic!("no product needs it"),
    };
    let dims: Dims<Size> = dims.into();
    let params = params_of(dims, Start::of(accumulate), first);
    // There is no bias, and what is bound in its place is not read.
    let slices = [logits, b, b, c, lse];
    s.push(
        kernel,
        &params,
        &slices,
        grid(&[params.m, params.n], 8, 128),
    )
    .size("m", dims.m)
    .size("k", dims.k);
}

fn cost(launch: &Launch) -> Cost {
    let p: Params = launch.read_params();
    let rows = match launch.kernel.name == NN.name {
        true => p.m,
        false => p.k,
    };
    let softmax = Cost {
        operations: 2 * p.m as u64 * p.k as u64,
        bytes: 4 * rows as u64,
    };
    super::matmul::cost(launch) + softmax
}

fn twin(form: Form, args: &Args) {
    let p: Params = args.params();
    if p.m == 0 {
        return;
    }
    let (a, b, c, dims) = operands(args);
    let accumulate = p.start != Start::Zero as u32;
    let lse = &args.f32(4)[p.first as usize..];
    matmul_cpu::softmax_product(form, a, lse, b, c, dims, accumulate);
}

const fn dims(m: usize, n: usize, k: usize) -> Dims {
    Dims { m, n, k }
}

/// One, primes, one past a tile, multiples of 4; sums cut into parts, rows into strips; products worth several threads.
const SHAPES: [Dims; 11] = [
    dims(1, 1, 1),
    dims(1, 68, 12),
    dims(37, 5, 1),
    dims(3, 5, 7),
    dims(8, 128, 16),
    dims(9, 129, 17),
    dims(12, 132, 20),
    dims(37, 4, 31),
    dims(67, 36, 300),
    dims(133, 52, 76),
    dims(300, 68, 67),
];

/// Log-sums of rows before the first.
const BEFORE: [f32; 3] = [7.0, -30.0, 0.5];

/// Logits whose largest are far from 0, and the logs of their rows' sums, after [`BEFORE`].
fn logits(h: &mut Harness, form: Form, Dims { m, k, .. }: Dims) -> (Vec<f32>, Vec<f32>) {
    let width = if form == Form::NN { k } else { m };
    let logits: Vec<f32> = (0..m * k)
        .map(|_| 40.0 + 3.0 * h.draws().normal())
        .collect();
    let lse = |row: &[f32]| row.iter().map(|&x| (x as f64).exp()).sum::<f64>().ln() as f32;
    let lse = BEFORE
        .into_iter()
        .chain(logits.chunks(width).map(lse))
        .collect();
    (logits, lse)
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for dims in SHAPES {
        let Dims { m, n, k } = dims;
        let b = h.real("b", n * k);
        for form in [Form::NN, Form::TN] {
            let (logits, lse) = logits(h, form, dims);
            let (logits, lse) = (h.f32("logits", &logits), h.f32("lse", &lse));
            for accumulate in [false, true] {
                let c = h.real("c", m * n);
                let (x, l, b) = (logits.slice(), (lse.slice(), BEFORE.len()), b.slice());
                matmul_softmax(h.stream(), form, x, l, b, c.slice(), dims, accumulate);
                h.run()?;
                h.read_u32(&c)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::harness::devices;

    #[test]
    fn shader_equals_twin() {
        devices::lockstep(cases);
    }

    /// The product by definition.
    fn product64(form: Form, x: &[f64], lse: &[f64], b: &[f64], dims: Dims) -> Vec<f64> {
        let Dims { m, n, k } = dims;
        let softmax = |i: usize, l: usize| match form {
            Form::NN => (x[i * k + l] - lse[i]).exp(),
            _ => (x[l * m + i] - lse[l]).exp(),
        };
        (0..m * n)
            .map(|at| (0..k).map(|l| softmax(at / n, l) * b[l * n + at % n]).sum())
            .collect()
    }

    #[test]
    fn equals_f64() {
        devices::each(|h| {
            for dims in SHAPES {
                let Dims { m, n, k } = dims;
                let b = h.real("b", n * k);
                for form in [Form::NN, Form::TN] {
                    let (logits, lse) = logits(h, form, dims);
                    let (logits, lse) = (h.f32("logits", &logits), h.f32("lse", &lse));
                    let [fresh, grown] = [h.real("fresh", m * n), h.real("grown", m * n)];
                    let (x, l, f) = (logits.slice(), (lse.slice(), BEFORE.len()), b.slice());
                    let s = h.stream();
                    matmul_softmax(s, form, x, l, f, fresh.slice(), dims, false);
                    matmul_softmax(s, form, x, l, f, grown.slice(), dims, true);
                    h.run().unwrap();
                    let want = product64(
                        form,
                        &logits.f64(),
                        &lse.f64()[BEFORE.len()..],
                        &b.f64(),
                        dims,
                    );
                    h.expect(&fresh, &want, 1e-5);
                    let sum: Vec<f64> = want.iter().zip(grown.f64()).map(|(x, y)| x + y).collect();
                    h.expect(&grown, &sum, 1e-5);
                }
            }
        });
    }
}
