//! The norm and its gradients on the CPU.

use super::{BackwardParams, ForwardParams, InPlaceParams, PartialParams, SumParams};
use crate::device::Args;
use crate::device::threads::{chunks, chunks_mut, each};
use crate::kernels::math::{dot, fold};

pub fn forward(args: &Args) {
    let p: ForwardParams = args.params();
    let (x, w) = (args.f32(0), &args.f32(1)[..p.dim as usize]);
    let heads = p.heads();
    let (span, stride) = (heads.span(), heads.stride);
    let parts = (
        chunks_mut(&mut args.f32_mut(2)[..span], stride),
        chunks_mut(&mut args.f32_mut(3)[..heads.vectors()], heads.per_row),
        chunks(&x[..span], stride),
    );
    each(parts, heads.rows_per_task(), |_, (y, rstd, x)| {
        for (v, rstd) in rstd.iter_mut().enumerate() {
            let range = heads.vector(v);
            let x = &x[range.clone()];
            let r = 1.0 / (dot(x, x) / heads.dim as f32 + p.eps).sqrt();
            for ((y, x), w) in y[range].iter_mut().zip(x).zip(w) {
                *y = x * r * w;
            }
            *rstd = r;
        }
    });
}

/// `sum(g * w * x)`: sixteen partial sums in a fixed order.
fn dot3(g: &[f32], w: &[f32], x: &[f32]) -> f32 {
    const W: usize = 16;
    let mut lanes = [0.0f32; W];
    let (cg, cw, cx) = (g.chunks_exact(W), w.chunks_exact(W), x.chunks_exact(W));
    let tails = cg
        .remainder()
        .iter()
        .zip(cw.remainder())
        .zip(cx.remainder());
    for ((g, w), x) in cg.zip(cw).zip(cx) {
        for i in 0..W {
            lanes[i] = (g[i] * w[i]).mul_add(x[i], lanes[i]);
        }
    }
    let mut total = fold(lanes, |a, b| a + b);
    for ((g, w), x) in tails {
        total = (g * w).mul_add(*x, total);
    }
    total
}

pub fn backward(args: &Args) {
    let p: BackwardParams = args.params();
    let heads = p.heads();
    let (w, rstd) = (&args.f32(1)[..heads.dim], args.f32(2));
    let (span, stride) = (heads.span(), heads.stride);
    let parts = (
        chunks_mut(&mut args.f32_mut(4)[..span], stride),
        chunks(&args.f32(0)[..span], stride),
        chunks(&args.f32(3)[..span], stride),
        chunks(&rstd[..heads.vectors()], heads.per_row),
    );
    each(parts, heads.rows_per_task(), |_, (dx, x, dy, rstd)| {
        for (v, &r) in rstd.iter().enumerate() {
            let range = heads.vector(v);
            let (x, dy) = (&x[range.clone()], &dy[range.clone()]);
            let pull = r * r * dot3(dy, w, x) / heads.dim as f32;
            let terms = x.iter().zip(dy).zip(w);
            let gradient = terms.map(|((x, dy), w)| r * (w * dy - x * pull));
            if p.accumulate != 0 {
                dx[range]
                    .iter_mut()
                    .zip(gradient)
                    .for_each(|(d, g)| *d += g);
            } else {
                dx[range].iter_mut().zip(gradient).for_each(|(d, g)| *d = g);
            }
        }
    });
}

pub fn backward_in_place(args: &Args) {
    let p: InPlaceParams = args.params();
    let heads = p.heads();
    let (w, rstd) = (&args.f32(1)[..heads.dim], args.f32(2));
    let (span, stride) = (heads.span(), heads.stride);
    let parts = (
        chunks_mut(&mut args.f32_mut(3)[..span], stride),
        chunks(&args.f32(0)[..span], stride),
        chunks(&rstd[..heads.vectors()], heads.per_row),
    );
    each(parts, heads.rows_per_task(), |_, (g, x, rstd)| {
        for (v, &r) in rstd.iter().enumerate() {
            let range = heads.vector(v);
            let (x, g) = (&x[range.clone()], &mut g[range]);
            let pull = r * r * dot3(g, w, x) / heads.dim as f32;
            for ((g, x), w) in g.iter_mut().zip(x).zip(w) {
                *g = r * (w * *g - x * pull);
            }
        }
    });
}

pub fn weight_partial(args: &Args) {
    let p: PartialParams = args.params();
    let heads = p.heads();
    let (x, rstd, dy) = (args.f32(0), args.f32(1), args.f32(2));
    let chunk = p.chunk as usize;
    let count = heads.vectors().div_ceil(chunk);
    let partials = chunks_mut(&mut args.f32_mut(3)[..count * heads.dim], heads.dim);
    let per_task = (16_384 / (chunk * heads.dim)).max(1);
    each(partials, per_task, |c, partial| {
        partial.fill(0.0);
        let vectors = c * chunk..((c + 1) * chunk).min(heads.vectors());
        for (v, rstd) in vectors.clone().zip(&rstd[vectors]) {
            let range = heads.vector(v);
            let terms = x[range.clone()].iter().zip(&dy[range]);
            for (sum, (x, dy)) in partial.iter_mut().zip(terms) {
                *sum = (dy * rstd).mul_add(*x, *sum);
            }
        }
    });
}

pub fn weight_sum(args: &Args) {
    let p: SumParams = args.params();
    let (partial, dim) = (args.f32(0), p.dim as usize);
    let dw = &mut args.f32_mut(1)[..dim];
    const W: usize = 64;
    for (block, dw) in dw.chunks_mut(W).enumerate() {
        let mut sums = [0.0f32; W];
        for chunk in partial.chunks_exact(dim).take(p.chunks as usize) {
            let part = &chunk[block * W..][..dw.len()];
            sums.iter_mut().zip(part).for_each(|(s, p)| *s += p);
        }
        dw.iter_mut().zip(sums).for_each(|(d, s)| *d += s);
    }
}
