//! AdamW with decoupled weight decay (Loshchilov & Hutter, 2019; spec 9):
//!
//! `g' = scale g`, `m = b1 m + (1 - b1) g'`, `v = b2 v + (1 - b2) g'^2`,
//! `w -= lr decay w + lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)`.
//!
//! `scale`, the finite flag and the bias corrections come from [`super::grad_norm`], on the device; if the flag is 0
//! nothing changes.
//!
//! Floor: 14n operations, 28n bytes.

use crate::device::threads::{chunks, chunks_mut, each};
use crate::device::{Args, Cost, Form, Grid, Kernel, Launch, Slice, Stream};
use crate::kernels::harness::Harness;
use crate::{bindings, params};
use anyhow::Result;

/// The settings of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    pub lr: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    /// Decoupled: multiplied by `lr`, not added to the gradient. 0 for norms and biases.
    pub weight_decay: f32,
}

params! {
    Params {
        n: u32,
        beta1: f32,
        beta2: f32,
        eps: f32,
        lr: f32,
        decay: f32,
    }
}

pub static ADAMW: Kernel = Kernel {
    name: "adamw",
    source: include_str!("../../shaders/adamw.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[Form::vec4(
        include_str!("../../shaders/adamw_vec4.wgsl"),
        |w| w[0].is_multiple_of(4),
        |w| Grid((w[0] / 4).div_ceil(256)),
    )],
    params: Params::FIELDS,
    bindings: bindings![
        param: Out F32,
        grad: In F32,
        m: Out F32,
        v: Out F32,
        norm: In F32,
    ],
    twin,
    cost,
};

/// Updates `param`, `m` and `v` (all [n]) from `grad` [n] and `norm`, what [`super::grad_norm::finish`] wrote.
pub fn step(
    stream: &mut Stream,
    param: Slice,
    grad: Slice,
    m: Slice,
    v: Slice,
    norm: Slice,
    hyper: Hyper,
    n: usize,
) {
    let params = Params {
        n: n as u32,
        beta1: hyper.beta1,
        beta2: hyper.beta2,
        eps: hyper.eps,
        lr: hyper.lr,
        decay: hyper.lr * hyper.weight_decay,
    };
    let slices = [param, grad, m, v, norm];
    stream.push(&ADAMW, &params, &slices, Grid::cover(n, 256));
}

fn cost(launch: &Launch) -> Cost {
    let n = launch.read_params::<Params>().n as u64;
    Cost {
        operations: 14 * n,
        bytes: 28 * n,
    }
}

fn twin(args: &Args) {
    const CHUNK: usize = 16_384;
    let p: Params = args.params();
    let n = p.n as usize;
    let norm = args.f32(4);
    let (scale, finite) = (norm[1], norm[2]);
    if finite == 0.0 {
        return;
    }
    let (step_size, correction) = (p.lr * norm[4], norm[5]);
    let parts = (
        chunks_mut(&mut args.f32_mut(0)[..n], CHUNK),
        chunks(&args.f32(1)[..n], CHUNK),
        chunks_mut(&mut args.f32_mut(2)[..n], CHUNK),
        chunks_mut(&mut args.f32_mut(3)[..n], CHUNK),
    );
    each(parts, 1, |_, (param, grad, m, v)| {
        for (((w, g), m), v) in param.iter_mut().zip(grad).zip(m).zip(v) {
            let g = scale * g;
            *m = p.beta1 * *m + (1.0 - p.beta1) * g;
            *v = p.beta2 * *v + (1.0 - p.beta2) * g * g;
            let denominator = v.sqrt() * correction + p.eps;
            *w -= p.decay * *w + step_size * *m / denominator;
        }
    });
}

const TYPICAL: Hyper = Hyper {
    lr: 0.1,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    weight_decay: 0.3,
};

pub fn cases(h: &mut Harness) -> Result<()> {
    for (n, finite) in [
        (1, 1.0),
        (255, 1.0),
        (257, 0.0),
        (1028, 1.0),
        (4, 0.0),
        (70_001, 1.0),
    ] {
        let (param, grad, m) = (h.random("param", n), h.random("grad", n), h.random("m", n));
        let squares: Vec<f32> = m.f64().iter().map(|x| (x * x) as f32).collect();
        let (v, norm) = (
            h.f32("v", &squares),
            h.f32("norm", &[2.0, 0.5, finite, 3.0, 3.7, 2.6]),
        );
        let state = (param.slice(), m.slice(), v.slice());
        let g = grad.slice();
        step(
            h.stream(),
            state.0,
            g,
            state.1,
            state.2,
            norm.slice(),
            TYPICAL,
            n,
        );
        h.run()?;
        for buffer in [&param, &m, &v] {
            h.read_f32(buffer)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::grad_norm;
    use crate::kernels::harness::devices;

    #[test]
    fn shader_equals_twin() {
        devices::lockstep(cases);
    }

    #[test]
    fn five_clipped_steps_match_f64() {
        const N: usize = 301;
        const CLIP: f32 = 3.0;
        devices::each(|h| {
            let param = h.random("param", N);
            let (m, v) = (h.f32("m", &[0.0; N]), h.f32("v", &[0.0; N]));
            let (partials, norm) = (h.f32("partials", &[0.0]), h.f32("norm", &grad_norm::START));
            let mut want = param.f64();
            let (mut m64, mut v64) = (vec![0.0; N], vec![0.0; N]);
            for t in 1..=5 {
                let grad = h.random("grad", N);
                let hyper = TYPICAL;
                let (w, g) = (param.slice(), grad.slice());
                let s = h.stream();
                grad_norm::partial(s, g, partials.slice(), 0, N);
                let betas = [hyper.beta1, hyper.beta2];
                grad_norm::finish(s, partials.slice(), 1, CLIP, betas, 0, norm.slice());
                step(s, w, g, m.slice(), v.slice(), norm.slice(), hyper, N);
                h.run().unwrap();

                let [lr, b1, b2] = [hyper.lr, hyper.beta1, hyper.beta2].map(f64::from);
                let g = grad.f64();
                let length = g.iter().map(|x| x * x).sum::<f64>().sqrt();
                let scale = (CLIP as f64 / (length + 1e-6)).min(1.0);
                assert!(scale < 0.5, "the clip is exercised");
                for i in 0..N {
                    let g = scale * g[i];
                    m64[i] = b1 * m64[i] + (1.0 - b1) * g;
                    v64[i] = b2 * v64[i] + (1.0 - b2) * g * g;
                    let m_hat = m64[i] / (1.0 - b1.powi(t));
                    let v_hat: f64 = v64[i] / (1.0 - b2.powi(t));
                    want[i] *= 1.0 - lr * hyper.weight_decay as f64;
                    want[i] -= lr * m_hat / (v_hat.sqrt() + hyper.eps as f64);
                }
            }
            h.expect(&param, &want, 2e-6);
            h.expect(&m, &m64, 2e-6);
            h.expect(&v, &v64, 2e-6);
        });
    }

    #[test]
    fn a_nan_gradient_changes_nothing() {
        devices::each(|h| {
            let mut values = vec![0.1; 300];
            values[7] = f32::NAN;
            let (param, grad) = (h.random("param", 300), h.f32("grad", &values));
            let (m, v) = (h.random("m", 300), h.random("v", 300));
            let (partials, norm) = (h.f32("partials", &[0.0]), h.f32("norm", &grad_norm::START));
            let (w, g) = (param.slice(), grad.slice());
            let s = h.stream();
            grad_norm::partial(s, g, partials.slice(), 0, 300);
            let betas = [TYPICAL.beta1, TYPICAL.beta2];
            grad_norm::finish(s, partials.slice(), 1, 1.0, betas, 0, norm.slice());
            step(s, w, g, m.slice(), v.slice(), norm.slice(), TYPICAL, 300);
            h.run().unwrap();
            for buffer in [&param, &m, &v] {
                h.expect_u32(buffer, &buffer.words);
            }
        });
    }
}
