//! k-means on a device (Lloyd, "Least squares quantization in PCM", 1982), from seeds far apart (greedy k-means++: Arthur and
//! Vassilvitskii, 2007), and residual k-means, whose every level clusters what the level before left.

use anyhow::{Result, ensure};

use super::balance;
use super::search::Search;
use crate::device::threads::{chunks, chunks_mut, each};
use crate::device::{Buffer, DeviceRef, MAX_BUFFER_WORDS, Stream, admit_loop};
use crate::kernels::centroids::{Members, centroids};
use crate::kernels::residual::{Lookup, residual};
use crate::rng::{self, Rng};

/// Seeds are drawn from so many points per cluster; from all where there are fewer.
const SAMPLE_PER_CLUSTER: usize = 32;

/// Points on a device, and room to cluster them.
pub struct KMeans {
    device: DeviceRef,
    rows: usize,
    width: usize,
    points: Buffer,
    search: Search,
    centroids: Buffer,
    code: Buffer,
    residual: Buffer,
    square: Buffer,
    members: Buffer,
    begins: Buffer,
}

/// How one level is clustered.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    pub clusters: usize,
    /// Most points of a cluster, as a share above the mean; `None`: any number.
    pub slack: Option<f64>,
    pub most_rounds: usize,
    pub seed: u64,
    /// Tells the draws of one level from those of another.
    pub level: u32,
}

/// One level.
#[derive(Clone, Debug)]
pub struct Clustering {
    /// [rows]: the cluster of each point.
    pub code: Vec<u32>,
    /// [clusters, width]: the mean of each cluster.
    pub centroids: Vec<f32>,
    /// [rows]: squared distance of each point to its centroid.
    pub square: Vec<f32>,
}

impl Clustering {
    /// Sum of squared distances.
    pub fn error(&self) -> f64 {
        total(&self.square)
    }
}

impl KMeans {
    /// For `points` [rows, width] and up to `clusters` clusters.
    ///
    /// # Errors
    /// More points than a buffer has room for, or a device without memory for them.
    pub fn new(
        device: &DeviceRef,
        points: &[f32],
        width: usize,
        clusters: usize,
    ) -> Result<KMeans> {
        let rows = points.len() / width;
        ensure!(
            points.len() <= MAX_BUFFER_WORDS,
            "{rows} embeddings of {width} numbers are more than the {MAX_BUFFER_WORDS} numbers a buffer holds: give embeddings of at most {} numbers",
            MAX_BUFFER_WORDS / rows
        );
        admit_loop(
            device,
            rows as u64,
            &format!("the mean of {rows} embeddings"),
        )?;
        let room = |label, words| Buffer::new(device, label, words);
        Ok(KMeans {
            device: device.clone(),
            rows,
            width,
            points: Buffer::with_f32(device, "points", points)?,
            search: Search::new(device, rows, clusters, width)?,
            centroids: room("centroids", clusters * width)?,
            code: room("codes", rows)?,
            residual: room("residuals", rows * width)?,
            square: room("squared distances", rows)?,
            members: room("members of clusters", rows.max(clusters))?,
            begins: room("begins of clusters", clusters + 1)?,
        })
    }

    /// Clusters the points: until the error falls no more, `most_rounds` at most. `watch` hears of each round's error.
    pub fn cluster(&self, rule: &Rule, watch: &mut dyn FnMut(usize, f64)) -> Result<Clustering> {
        let (seeds, bound) = (self.seeds(rule)?, self.bound(rule)?);
        self.move_centroids(&seeds)?;
        let mut best: Option<(Vec<u32>, f64)> = None;
        for round in 1..=rule.most_rounds {
            let (code, square) = self.assign(rule.clusters, bound.as_ref())?;
            let error = total(&square);
            watch(round, error);
            if best.as_ref().is_some_and(|(_, least)| error >= *least) {
                break;
            }
            let mut lists = Lists::new(&code, rule.clusters);
            lists.fill_empty(&square);
            self.move_centroids(&lists)?;
            best = Some((code, error));
        }
        let (code, _) = best.expect("a round was made");
        self.move_centroids(&Lists::new(&code, rule.clusters))?;
        self.code.write_u32(&code)?;
        let square = self.leave()?;
        let count = rule.clusters * self.width;
        let centroids = crate::device::read_f32(&self.device, self.centroids.first(count))?;
        Ok(Clustering {
            code,
            centroids,
            square,
        })
    }

    /// Goes on with what the last clustering left of the points.
    pub fn descend(&mut self) {
        std::mem::swap(&mut self.points, &mut self.residual);
    }

    /// [rows, width]: the points being clustered.
    pub fn points(&self) -> Result<Vec<f32>> {
        self.points.read_f32()
    }

    fn bound(&self, rule: &Rule) -> Result<Option<Bound>> {
        let Some(slack) = rule.slack else {
            return Ok(None);
        };
        let points = self.points()?;
        Ok(Some(Bound {
            capacity: balance::capacity(self.rows, rule.clusters, slack),
            lengths: points.chunks_exact(self.width).map(square_length).collect(),
        }))
    }

    /// The cluster of every point by the centroids as they stand, and its squared distance.
    fn assign(&self, clusters: usize, bound: Option<&Bound>) -> Result<(Vec<u32>, Vec<f32>)> {
        let (points, centroids) = (self.points.all(), self.centroids.all());
        let shape = (self.rows, clusters);
        match bound {
            None => {
                let mut s = Stream::new();
                let code = self.code.all();
                self.search.record(&mut s, points, centroids, code, shape);
                self.device.run(&s)?;
            }
            Some(bound) => {
                let closeness = self.search.closeness(points, centroids, shape)?;
                let code = balance::assign(&closeness, &bound.lengths, bound.capacity);
                self.code.write_u32(&code)?;
            }
        }
        let square = self.leave()?;
        Ok((self.code.read_u32()?, square))
    }

    /// Writes what the centroids of the codes leave of the points; returns its squares.
    fn leave(&self) -> Result<Vec<f32>> {
        let mut s = Stream::new();
        let of = Lookup {
            table: self.centroids.all(),
            index: self.code.all(),
        };
        let [points, left, square] = [&self.points, &self.residual, &self.square].map(Buffer::all);
        residual(&mut s, points, of, left, square, self.rows, self.width);
        self.device.run(&s)?;
        self.square.read_f32()
    }

    fn move_centroids(&self, lists: &Lists) -> Result<()> {
        self.members.write_u32(&lists.members)?;
        self.begins.write_u32(&lists.begins)?;
        let members = Members {
            rows: self.members.first(lists.members.len()),
            begins: self.begins.first(lists.begins.len()),
        };
        let clusters = lists.begins.len() - 1;
        let (points, to) = (self.points.all(), self.centroids.all());
        let mut s = Stream::new();
        centroids(&mut s, points, members, to, clusters, self.width);
        self.device.run(&s)
    }

    /// One point for each cluster: the first at random; each other is, of some drawn in proportion to their squared distance
    /// to the nearest before them, the one that leaves the least of it. Where there are fewer distinct points than clusters
    /// the first stands for the rest, to which no point is nearest then.
    fn seeds(&self, rule: &Rule) -> Result<Lists> {
        let mut draws = Rng::new(rule.seed, rng::Stream::SemanticIds, rule.level, 0);
        let mut sample: Vec<u32> = (0..self.rows as u32).collect();
        if self.rows > SAMPLE_PER_CLUSTER * rule.clusters {
            draws.shuffle(&mut sample);
            sample.truncate(SAMPLE_PER_CLUSTER * rule.clusters);
            sample.sort_unstable();
        }
        let (points, width) = (self.points()?, self.width);
        let row = |point: u32| &points[point as usize * width..][..width];
        // Of the sample, to the nearest seed once `seed` is one.
        let with = |seed: u32, before: &[f32]| {
            let mut distances = before.to_vec();
            let parts = (chunks_mut(&mut distances, 1), chunks(&sample, 1));
            each(parts, 64, |_, (distance, point)| {
                distance[0] = distance[0].min(square_distance(row(point[0]), row(seed)));
            });
            distances
        };
        let candidates = 2 + (rule.clusters as f64).ln() as usize;
        let mut seeds = vec![sample[draws.below(sample.len())]];
        let mut distances = with(seeds[0], &vec![f32::MAX; sample.len()]);
        while seeds.len() < rule.clusters && distances.iter().any(|&distance| distance > 0.0) {
            let drawn = (0..candidates).map(|_| {
                let seed = sample[draws.weighted(&distances)];
                let left = with(seed, &distances);
                (total(&left), seed, left)
            });
            let (_, seed, left) = drawn
                .min_by(|a, b| a.0.total_cmp(&b.0))
                .expect("some are drawn");
            seeds.push(seed);
            distances = left;
        }
        seeds.resize(rule.clusters, seeds[0]);
        Ok(Lists {
            begins: (0..=rule.clusters as u32).collect(),
            members: seeds,
        })
    }
}

/// What [`balance`] needs of the points.
struct Bound {
    capacity: usize,
    lengths: Vec<f64>,
}

/// The points of each cluster.
struct Lists {
    /// Those of cluster 0, rising, then of cluster 1, ...
    members: Vec<u32>,
    /// [clusters + 1]: where those of a cluster begin.
    begins: Vec<u32>,
}

impl Lists {
    fn new(code: &[u32], clusters: usize) -> Lists {
        let mut begins = vec![0; clusters + 1];
        for &k in code {
            begins[k as usize + 1] += 1;
        }
        for k in 0..clusters {
            begins[k + 1] += begins[k];
        }
        let mut next = begins.clone();
        let mut members = vec![0; code.len()];
        for (point, &k) in (0..).zip(code) {
            members[next[k as usize] as usize] = point;
            next[k as usize] += 1;
        }
        Lists { members, begins }
    }

    /// Gives every empty cluster the point that is farthest from its centroid, [rows] squared distances `square` away, and
    /// is not the only one of its cluster.
    fn fill_empty(&mut self, square: &[f32]) {
        let clusters = self.begins.len() - 1;
        let sizes: Vec<u32> = self.begins.windows(2).map(|w| w[1] - w[0]).collect();
        let empty: Vec<usize> = (0..clusters).filter(|&k| sizes[k] == 0).collect();
        if empty.is_empty() {
            return;
        }
        let mut code = vec![0; self.members.len()];
        for k in 0..clusters {
            for &point in &self.members[self.begins[k] as usize..self.begins[k + 1] as usize] {
                code[point as usize] = k as u32;
            }
        }
        let mut left = sizes;
        let mut farthest: Vec<u32> = (0..code.len() as u32).collect();
        farthest.sort_by(|&a, &b| square[b as usize].total_cmp(&square[a as usize]));
        let mut empty = empty.into_iter().peekable();
        for point in farthest.into_iter().map(|point| point as usize) {
            let from = code[point] as usize;
            if square[point] == 0.0 || empty.peek().is_none() {
                break;
            }
            if left[from] > 1 {
                left[from] -= 1;
                code[point] = empty.next().expect("one is left") as u32;
            }
        }
        *self = Lists::new(&code, clusters);
    }
}

fn total(square: &[f32]) -> f64 {
    square.iter().map(|&square| square as f64).sum()
}

fn square_length(x: &[f32]) -> f64 {
    x.iter().map(|&x| (x as f64).powi(2)).sum()
}

/// Squared Euclidean distance, in a fixed order.
pub(super) fn square_distance(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0f32; LANES];
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum = (a - b).mul_add(a - b, *sum);
        }
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests;
