//! The norm and its gradients against f64.

use super::*;
use crate::kernels::harness::{devices, finite_difference, relative_error};

const EPS: f64 = 1e-5;

/// `(y, rstd)` in f64; `y` starts as `before`.
fn norm(x: &[f64], w: &[f64], before: &[f64], heads: &Heads) -> (Vec<f64>, Vec<f64>) {
    let (mut y, mut rstd) = (before.to_vec(), Vec::new());
    for v in 0..heads.vectors() {
        let range = heads.vector(v);
        let mean = x[range.clone()].iter().map(|x| x * x).sum::<f64>() / heads.dim as f64;
        let r = 1.0 / (mean + EPS).sqrt();
        for (j, i) in range.enumerate() {
            y[i] = x[i] * r * w[j];
        }
        rstd.push(r);
    }
    (y, rstd)
}

/// `(dx, dw)` in f64, `dx` zero outside the vectors.
fn gradients(x: &[f64], w: &[f64], dy: &[f64], heads: &Heads) -> (Vec<f64>, Vec<f64>) {
    let (_, rstd) = norm(x, w, x, heads);
    let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; heads.dim]);
    for (v, r) in rstd.iter().enumerate() {
        let range = heads.vector(v);
        let mut product = 0.0;
        for (j, i) in range.clone().enumerate() {
            product += dy[i] * w[j] * x[i];
            dw[j] += dy[i] * x[i] * r;
        }
        for (j, i) in range.enumerate() {
            dx[i] = r * (w[j] * dy[i] - x[i] * r * r * product / heads.dim as f64);
        }
    }
    (dx, dw)
}

fn add(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

#[test]
fn shader_equals_twin() {
    devices::lockstep(cases);
}

#[test]
fn values_and_gradients_match_f64() {
    devices::each(|h| {
        for heads in shapes() {
            let n = heads.rows * heads.stride;
            let (x, w, dy) = (h.random("x", n), h.random("w", heads.dim), h.real("dy", n));
            let (y, rstd) = (h.real("y", n), h.random("rstd", heads.vectors()));
            let (dx, dw) = (h.random("dx", n), h.random("dw", heads.dim));
            let same: Vec<f32> = dy.f64().iter().map(|&v| v as f32).collect();
            let (sum, g) = (h.random("sum", n), h.stored("g", &same));
            let scratch = h.random("scratch", scratch_words(heads));
            let [xs, ws, rs, dys] = [&x, &w, &rstd, &dy].map(|b| b.slice());
            let s = h.stream();
            forward(s, xs, ws, y.slice(), rs, heads, EPS as f32);
            backward(s, xs, ws, rs, dys, dx.slice(), heads, false);
            backward(s, xs, ws, rs, dys, sum.slice(), heads, true);
            weight_gradient(s, xs, rs, dys, dw.slice(), scratch.slice(), heads);
            backward_in_place(s, xs, ws, rs, g.slice(), heads);
            h.run().unwrap();
            let (want_y, want_rstd) = norm(&x.f64(), &w.f64(), &y.f64(), &heads);
            let (gx, gw) = gradients(&x.f64(), &w.f64(), &dy.f64(), &heads);
            h.expect(&y, &want_y, 1e-6);
            h.expect(&rstd, &want_rstd, 1e-6);
            h.expect(&sum, &add(&sum.f64(), &gx), 2e-6);
            h.expect(&dw, &add(&dw.f64(), &gw), 2e-6);
            let (mut want_dx, mut want_g) = (dx.f64(), g.f64());
            for i in (0..heads.vectors()).flat_map(|v| heads.vector(v)) {
                (want_dx[i], want_g[i]) = (gx[i], gx[i]);
            }
            h.expect(&dx, &want_dx, 2e-6);
            h.expect(&g, &want_g, 2e-6);
        }
    });
}

#[test]
fn reference_gradients_match_finite_differences() {
    let heads = shapes()[6];
    let draw = |n: usize, k: f64| (0..n).map(|i| (i as f64 * k).sin()).collect::<Vec<_>>();
    let n = heads.rows * heads.stride;
    let (x, w, dy) = (draw(n, 1.3), draw(heads.dim, 0.7), draw(n, 2.1));
    let zero = vec![0.0; n];
    let loss = |x: &[f64], w: &[f64]| -> f64 {
        let (y, _) = norm(x, w, &zero, &heads);
        y.iter().zip(&dy).map(|(y, d)| y * d).sum()
    };
    let (dx, dw) = gradients(&x, &w, &dy, &heads);
    let close = |want: Vec<f64>, got: &[f64]| {
        let got: Vec<f32> = got.iter().map(|&g| g as f32).collect();
        assert!(relative_error(&want, &got) < 1e-6);
    };
    close(finite_difference(|x| loss(x, &w), &x), &dx);
    close(finite_difference(|w| loss(&x, w), &w), &dw);
}
