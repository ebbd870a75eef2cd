//! Launches that are timed although no whole step of the benches has them.

use super::workload::SEED;
use crate::device::{Buffer, DeviceRef, Stream};
use crate::forest;
use crate::kernels::centroids::{Members, centroids};
use crate::kernels::columns::{Columns, copy_columns};
use crate::kernels::lerp::lerp;
use crate::kernels::matmul::{Dims, Form, matmul};
use crate::kernels::nearest::nearest;
use crate::kernels::residual::{Lookup, residual};
use crate::kernels::rng;
use crate::kernels::scale::scale;
use crate::kernels::shares::{self, Shares, shares};
use crate::rng::Rng;
use anyhow::Result;

/// A side of the product that other programs report too.
const SQUARE: usize = 512;

/// Launches of the generator, of a reference that follows the policy, of a loss scale, and of a part of logits on its way to
/// those of all tokens, which these steps do not have.
pub(super) fn draws(device: &DeviceRef) -> Result<Vec<Buffer>> {
    let n = 1 << 16;
    let buffers = [4 * n, n, n, n].map(|words| Buffer::new(device, "draws", words));
    let buffers: Vec<_> = buffers.into_iter().collect::<Result<_>>()?;
    let params = rng::Params {
        n: n as u32,
        key: SEED as u32,
        step: 0,
        document: 0,
    };
    let mut stream = Stream::new();
    let [words, units, gumbels, scaled] = [0, 1, 2, 3].map(|i| buffers[i].all());
    rng::draw(&mut stream, params, words, units, gumbels);
    lerp(&mut stream, units, gumbels, 0.5, n);
    scale(&mut stream, units, gumbels, 0, scaled, n);
    let all = Columns {
        matrix: words,
        stride: 4 * n / 64,
        first: n / 64,
    };
    let part = Columns::all(units, n / 64);
    copy_columns(&mut stream, part, all, 64.into(), n / 64);
    device.run(&stream)?;
    Ok(buffers)
}

/// A round of k-means: 4096 points of 64 numbers in 256 clusters, as they come.
pub(super) fn clustering(device: &DeviceRef) -> Result<Vec<Buffer>> {
    const ROWS: usize = 4096;
    const WIDTH: usize = 64;
    const CLUSTERS: usize = 256;
    let mut random = Rng::new(SEED, crate::rng::Stream::Test, 4, 0);
    let mut matrix = |rows: usize, width: usize| {
        let values: Vec<f32> = (0..rows * width).map(|_| random.normal()).collect();
        Buffer::with_f32(device, "clustering", &values)
    };
    let (points, means) = (matrix(ROWS, WIDTH)?, matrix(CLUSTERS, WIDTH)?);
    let (products, norms) = (matrix(ROWS, CLUSTERS)?, matrix(CLUSTERS, 1)?);
    let (left, square) = (matrix(ROWS, WIDTH)?, matrix(ROWS, 1)?);
    let code = Buffer::new(device, "codes", ROWS)?;
    let all: Vec<u32> = (0..ROWS as u32).collect();
    let rows = Buffer::with_u32(device, "members", &all)?;
    let begins: Vec<u32> = (0..=CLUSTERS)
        .map(|k| (k * ROWS / CLUSTERS) as u32)
        .collect();
    let begins = Buffer::with_u32(device, "begins", &begins)?;
    let mut stream = Stream::new();
    nearest(
        &mut stream,
        products.all(),
        norms.all(),
        code.all(),
        ROWS,
        CLUSTERS,
    );
    let of = Lookup {
        table: means.all(),
        index: code.all(),
    };
    residual(
        &mut stream,
        points.all(),
        of,
        left.all(),
        square.all(),
        ROWS,
        WIDTH,
    );
    let members = Members {
        rows: rows.all(),
        begins: begins.all(),
    };
    centroids(
        &mut stream,
        points.all(),
        members,
        means.all(),
        CLUSTERS,
        WIDTH,
    );
    device.run(&stream)?;
    Ok(vec![
        points, means, products, norms, left, square, code, rows, begins,
    ])
}

/// What a teacher of width 128 says of 128 prompts with 16 candidates each, of 4096 SIDs.
pub(super) fn teaching(device: &DeviceRef) -> Result<Vec<Buffer>> {
    const SIDS: usize = 4096;
    let params = shares::Params {
        prompts: 128,
        group: 16,
        levels: 3,
        dim: 128,
        skip_held: 1,
    };
    let [prompts, group, dim] = [params.prompts, params.group, params.dim].map(|n| n as usize);
    let mut random = Rng::new(SEED, crate::rng::Stream::Test, 5, 0);
    let mut picked = Vec::new();
    for _ in 0..prompts {
        picked.extend([params.group, params.group, 0, 0]);
        picked.extend([1; 4]);
        for _ in 0..group {
            let sid = random.below(SIDS) as u32;
            picked.extend([sid, sid / 256, 16 + sid / 16 % 16, 32 + sid % 16]);
        }
    }
    let mut floats = |label, n: usize| {
        let values: Vec<f32> = (0..n).map(|_| random.normal()).collect();
        Buffer::with_f32(device, label, &values)
    };
    let picked = Buffer::with_u32(device, "candidates", &picked)?;
    let scores = floats("scores", prompts * group * 5)?;
    let asked = Buffer::new(device, "questions", prompts * 7)?;
    let rows = Buffer::new(device, "prompt rows", forest::Row::WORDS)?;
    let (queries, keys) = (
        floats("queries", prompts * dim)?,
        floats("keys", SIDS * dim)?,
    );
    let out = Buffer::new(device, "shares", prompts * group)?;
    let steps = Buffer::new(device, "step rewards", prompts * group * 3)?;
    let on = Shares {
        picked: picked.all(),
        scores: scores.all(),
        asked: asked.all(),
        rows: rows.all(),
        queries: queries.all(),
        keys: keys.all(),
        shares: out.all(),
        steps: steps.all(),
    };
    let mut stream = Stream::new();
    shares(&mut stream, on, params);
    device.run(&stream)?;
    Ok(vec![picked, scores, asked, rows, queries, keys, out, steps])
}

/// The square product, in its three transpositions.
pub(super) fn square(device: &DeviceRef) -> Result<Vec<Buffer>> {
    let mut random = Rng::new(SEED, crate::rng::Stream::Test, 3, 0);
    let mut matrix = |name| {
        let values: Vec<f32> = (0..SQUARE * SQUARE).map(|_| random.normal()).collect();
        Buffer::with_f32(device, name, &values)
    };
    let (a, b, c) = (matrix("a")?, matrix("b")?, matrix("c")?);
    let mut stream = Stream::new();
    let dims = Dims {
        m: SQUARE,
        n: SQUARE,
        k: SQUARE,
    };
    for form in [Form::NT, Form::NN, Form::TN] {
        matmul(&mut stream, form, a.all(), b.all(), c.all(), dims, false);
    }
    device.run(&stream)?;
    Ok(vec![a, b, c])
}
