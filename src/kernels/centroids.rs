//! Centroids of clusters: `means[k, :] = mean of x[member, :]` over the members of cluster k; an empty cluster keeps what
//! it has. Every element has one owner, which adds the members in the order of their list.
//!
//! Floor: 1 operation and 4 bytes per element of a member, 1 and 4 per element of a mean.

use crate::device::threads::{chunks_mut, each};
use crate::device::{Args, Cost, Grid, Kernel, Launch, Slice, Stream};
use crate::kernels::harness::{Harness, TestBuffer};
use crate::kernels::math::axpy;
use crate::{bindings, params};
use anyhow::Result;

params! {
    Params { clusters: u32, width: u32, members: u32 }
}

pub static CENTROIDS: Kernel = Kernel {
    name: "centroids",
    source: include_str!("../../shaders/centroids.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: Params::FIELDS,
    bindings: bindings![x: In F32, members: In U32, begins: In U32, means: Out F32],
    twin,
    cost,
};

/// Which rows make up each cluster.
#[derive(Clone, Copy, Debug)]
pub struct Members {
    /// Rows, those of cluster 0 first.
    pub rows: Slice,
    /// [clusters + 1]: where the rows of a cluster begin; the last is their number.
    pub begins: Slice,
}

/// `means` [clusters, width] from `x` [.., width].
pub fn centroids(
    s: &mut Stream,
    x: Slice,
    members: Members,
    means: Slice,
    clusters: usize,
    width: usize,
) {
    let params = Params {
        clusters: clusters as u32,
        width: width as u32,
        members: members.rows.len,
    };
    let slices = [x, members.rows, members.begins, means];
    let grid = Grid::cover(clusters * width, 64);
    s.push(&CENTROIDS, &params, &slices, grid);
}

fn cost(launch: &Launch) -> Cost {
    let p: Params = launch.read_params();
    let [clusters, width, members] = [p.clusters, p.width, p.members].map(u64::from);
    Cost {
        operations: (members + clusters) * width,
        bytes: 4 * ((members + clusters) * width + members + clusters + 1),
    }
}

fn twin(args: &Args) {
    let p: Params = args.params();
    let (clusters, width) = (p.clusters as usize, p.width as usize);
    let (x, members, begins) = (args.f32(0), args.u32(1), args.u32(2));
    let means = &mut args.f32_mut(3)[..clusters * width];
    each(chunks_mut(means, width), 1, |cluster, mean| {
        let [begin, end] = [cluster, cluster + 1].map(|k| begins[k] as usize);
        if begin == end {
            return;
        }
        mean.fill(0.0);
        for &member in &members[begin..end] {
            axpy(mean, 1.0, &x[member as usize * width..][..width]);
        }
        for sum in mean {
            *sum /= (end - begin) as f32;
        }
    });
}

/// (rows, clusters, width).
const SHAPES: [(usize, usize, usize); 5] = [
    (1, 1, 1),
    (67, 3, 5),
    (64, 64, 64),
    (300, 7, 65),
    (20, 131, 33),
];

/// Runs one shape, whose rows are dealt at random in a random order, so that clusters differ in size and some are empty:
/// means, x, members and begins.
fn case(
    h: &mut Harness,
    (rows, clusters, width): (usize, usize, usize),
) -> Result<(TestBuffer, TestBuffer, Vec<u32>, Vec<u32>)> {
    let mut members: Vec<u32> = (0..rows as u32).collect();
    h.draws().shuffle(&mut members);
    let mut begins: Vec<u32> = (1..clusters)
        .map(|_| h.draws().below(rows + 1) as u32)
        .collect();
    begins.sort_unstable();
    begins.insert(0, 0);
    begins.push(rows as u32);
    let (x, means) = (
        h.random("x", rows * width),
        h.random("means", clusters * width),
    );
    let (m, b) = (h.u32("members", &members), h.u32("begins", &begins));
    let lists = Members {
        rows: m.slice(),
        begins: b.slice(),
    };
    let (from, to) = (x.slice(), means.slice());
    centroids(h.stream(), from, lists, to, clusters, width);
    h.run()?;
    Ok((means, x, members, begins))
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for shape in SHAPES {
        let (means, ..) = case(h, shape)?;
        h.read_f32(&means)?;
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

    #[test]
    fn equals_f64() {
        devices::each(|h| {
            let mut empty = 0;
            for shape @ (_, clusters, width) in SHAPES {
                let (means, x, members, begins) = case(h, shape).unwrap();
                let (x, mut want) = (x.f64(), means.f64());
                for k in 0..clusters {
                    let list = &members[begins[k] as usize..begins[k + 1] as usize];
                    empty += list.is_empty() as usize;
                    for j in 0..width {
                        let sum: f64 = list.iter().map(|&m| x[m as usize * width + j]).sum();
                        if !list.is_empty() {
                            want[k * width + j] = sum / list.len() as f64;
                        }
                    }
                }
                h.expect(&means, &want, 1e-6);
            }
            assert!(empty > 0, "some cluster is empty");
        });
    }
}
