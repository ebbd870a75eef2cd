//! Assignment of points to clusters of bounded size, by auction (Bertsekas and Castanon, "The auction algorithm for the
//! transportation problem", 1989).
//!
//! A point bids for the cluster that is worth most to it at its price: what makes up for the second best, and epsilon. A
//! full cluster drops its lowest bid, which is its price; one with room costs nothing. With no more points than places
//! the auction ends, and the sum of squared distances is then within n epsilon of the least there is under the bound:
//! within [`TOLERANCE`] of it, by the epsilon chosen here.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// How far above the least, as a share of it, the sum of squared distances may be.
const TOLERANCE: f64 = 0.01;

/// Most points of a cluster: a share of `slack` above the mean.
pub fn capacity(rows: usize, clusters: usize, slack: f64) -> usize {
    let mean = rows as f64 / clusters as f64;
    ((mean * (1.0 + slack)).ceil() as usize).max(rows.div_ceil(clusters))
}

/// The cluster of each point, at most `capacity` to one, from `closeness` [rows, clusters] = |x|^2 - squared distance, and
/// `lengths` [rows] = |x|^2.
pub fn assign(closeness: &[f32], lengths: &[f64], capacity: usize) -> Vec<u32> {
    let (rows, clusters) = (lengths.len(), closeness.len() / lengths.len());
    assert!(
        rows <= clusters * capacity,
        "fewer places than points: {clusters} x {capacity} for {rows}"
    );
    let mut market = Market::new(clusters, capacity);
    let epsilon = epsilon(closeness, lengths);
    let mut code = vec![0; rows];
    let mut waiting: VecDeque<u32> = (0..rows as u32).collect();
    while let Some(point) = waiting.pop_front() {
        let values = &closeness[point as usize * clusters..][..clusters];
        let [(best, at), (second, _)] = market.two_best(values);
        code[point as usize] = at as u32;
        let raise = if second.is_finite() {
            best - second
        } else {
            0.0
        };
        let bid = market.prices[at] + raise + epsilon;
        waiting.extend(market.accept(at, bid, point));
    }
    code
}

/// The least raise: [`TOLERANCE`] of the mean squared distance to the nearest centroid, below which no assignment gets. Where
/// that is next to nothing, of the mean squared length.
fn epsilon(closeness: &[f32], lengths: &[f64]) -> f64 {
    let rows = closeness.chunks_exact(closeness.len() / lengths.len());
    let nearest = rows.zip(lengths).map(|(row, length)| {
        let closest = row.iter().copied().fold(f32::MIN, f32::max);
        (length - closest as f64).max(0.0)
    });
    let (least, length) = (nearest.sum::<f64>(), lengths.iter().sum::<f64>());
    let scale = if least > 1e-6 * length { least } else { length };
    let mean = scale / lengths.len() as f64;
    TOLERANCE * if mean > 0.0 { mean } else { 1.0 }
}

/// What clusters hold, and at which price.
struct Market {
    capacity: usize,
    /// Bids as their bits, which order as the positive numbers they are, and the points that made them; lowest first.
    held: Vec<BinaryHeap<Reverse<(u64, u32)>>>,
    prices: Vec<f64>,
}

impl Market {
    fn new(clusters: usize, capacity: usize) -> Market {
        Market {
            capacity,
            held: vec![BinaryHeap::with_capacity(capacity + 1); clusters],
            prices: vec![0.0; clusters],
        }
    }

    /// The best and the second best value less price, and the clusters that offer them.
    fn two_best(&self, values: &[f32]) -> [(f64, usize); 2] {
        let [mut best, mut second] = [(f64::NEG_INFINITY, 0); 2];
        for (k, (&value, price)) in values.iter().zip(&self.prices).enumerate() {
            let worth = value as f64 - price;
            if worth > best.0 {
                (best, second) = ((worth, k), best);
            } else if worth > second.0 {
                second = (worth, k);
            }
        }
        [best, second]
    }

    /// Takes the bid; the point that has to go for it, if the cluster was full.
    fn accept(&mut self, cluster: usize, bid: f64, point: u32) -> Option<u32> {
        let held = &mut self.held[cluster];
        held.push(Reverse((bid.to_bits(), point)));
        let dropped = (held.len() > self.capacity).then(|| held.pop().expect("it is full").0.1);
        if held.len() == self.capacity {
            self.prices[cluster] = f64::from_bits(held.peek().expect("it is full").0.0);
        }
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Rng, Stream};

    /// `closeness` and `lengths` of random points on a line, more of them at one end, and of evenly spaced centroids.
    fn skewed(rows: usize, clusters: usize) -> (Vec<f32>, Vec<f64>) {
        let mut draws = Rng::new(5, Stream::Test, 0, 0);
        let points: Vec<f32> = (0..rows).map(|_| draws.uniform().powi(4)).collect();
        let closeness = |x: f32| {
            (0..clusters).map(move |k| {
                let c = k as f32 / clusters as f32;
                2.0 * x * c - c * c
            })
        };
        let lengths = points.iter().map(|&x| (x as f64).powi(2)).collect();
        (points.iter().flat_map(|&x| closeness(x)).collect(), lengths)
    }

    fn sizes(code: &[u32], clusters: usize) -> Vec<usize> {
        let mut sizes = vec![0; clusters];
        code.iter().for_each(|&k| sizes[k as usize] += 1);
        sizes
    }

    fn value(code: &[u32], closeness: &[f32], clusters: usize) -> f64 {
        let rows = closeness.chunks(clusters).zip(code);
        rows.map(|(row, &k)| row[k as usize] as f64).sum()
    }

    #[test]
    fn the_bound_holds_on_skewed_data() {
        for (rows, clusters, slack) in [(1, 1, 0.0), (1000, 7, 0.0), (503, 16, 0.05), (5, 9, 0.5)] {
            let (closeness, lengths) = skewed(rows, clusters);
            let capacity = capacity(rows, clusters, slack);
            let code = assign(&closeness, &lengths, capacity);
            assert!(sizes(&code, clusters).iter().all(|&size| size <= capacity));
            // Without a bound the fullest cluster exceeds it, where there is anything to bound.
            let free = assign(&closeness, &lengths, rows);
            let exceeded = sizes(&free, clusters).iter().any(|&size| size > capacity);
            assert_eq!(exceeded, rows > capacity, "{rows} {clusters}");
        }
    }

    /// Against all assignments of few points.
    #[test]
    fn is_within_tolerance_of_the_least_error() {
        const CLUSTERS: usize = 3;
        let (closeness, lengths) = skewed(9, CLUSTERS);
        let all = (0..CLUSTERS.pow(9)).map(|number| {
            let digit = |i: u32| (number / CLUSTERS.pow(i) % CLUSTERS) as u32;
            (0..9).map(digit).collect::<Vec<_>>()
        });
        let fits = |code: &Vec<u32>| sizes(code, CLUSTERS).iter().all(|&size| size <= 3);
        let length: f64 = lengths.iter().sum();
        let error = |code: &Vec<u32>| length - value(code, &closeness, CLUSTERS);
        let errors = || all.clone().filter(fits).map(|code| error(&code));
        let least = errors().fold(f64::MAX, f64::min);
        let got = error(&assign(&closeness, &lengths, 3));
        assert!(got <= least * (1.0 + TOLERANCE), "{got} {least}");
        let worse = errors()
            .filter(|&error| error > least * (1.0 + TOLERANCE))
            .count();
        assert!(worse > errors().count() / 2, "most assignments are worse");
    }

    #[test]
    fn equal_points_are_spread() {
        let code = assign(&[0.0; 40], &[0.0; 10], 3);
        assert!(sizes(&code, 4).iter().all(|&size| size <= 3));
    }
}
