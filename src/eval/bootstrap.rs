//! Percentile bootstrap over users (Efron & Tibshirani 1993, chapter 13), deterministic and paired.
//!
//! Resample `r` draws its users from `(seed, Stream::Bootstrap, r)` and nothing else, so the result does
//! not depend on threads, and two systems with the same number of users see the *same* resamples: their
//! difference is taken within each resample, which cancels what the users have in common.

use std::fmt;

use anyhow::{Result, ensure};
use rayon::prelude::*;
use serde::Serialize;

use crate::rng::{Rng, Stream};

/// The two tails that a 95% interval leaves out.
const TAILS: [f64; 2] = [0.025, 0.975];

/// A point estimate with its 95% bootstrap interval, unless there were no resamples. (`mean` is the estimate on the whole
/// sample, not the mean of the resamples.)
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figure {
    pub mean: f64,
    #[serde(flatten)]
    pub interval: Option<Interval>,
}

/// From `lo` to `hi`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    pub lo: f64,
    pub hi: f64,
}

/// `.0610 .0591-.0629`: the estimate, then its interval.
impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = short(self.mean);
        if let Some(Interval { lo, hi }) = self.interval {
            text += &format!(" {}-{}", short(lo), short(hi));
        }
        f.pad(&text)
    }
}

/// Four decimals without the leading zero, as the field's tables print a metric: `.0610`.
/// From 1 on, three decimals (`1.000`): the same width.
pub(super) fn short(x: f64) -> String {
    let text = format!("{x:.4}");
    match text.strip_prefix('0') {
        Some(fraction) => fraction.to_string(),
        None => format!("{x:.3}"),
    }
}

/// One statistic of a sample of users: `sum(numerator) / sum(denominator)`, where the denominator of a
/// mean is one per user. A value-weighted metric, a metric within a bucket, and a mean over the users for
/// whom something is defined are all ratios of this kind, and resampling users resamples both sums.
#[derive(Clone, Debug)]
pub struct Statistic {
    numerator: Vec<f64>,
    denominator: Option<Vec<f64>>,
}

impl Statistic {
    /// The mean of one value per user.
    pub fn mean(values: Vec<f64>) -> Self {
        Statistic {
            numerator: values,
            denominator: None,
        }
    }

    /// `sum(numerator) / sum(denominator)`, both with one entry per user.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn ratio(numerator: Vec<f64>, denominator: Vec<f64>) -> Self {
        assert_eq!(numerator.len(), denominator.len(), "one entry per user");
        Statistic {
            numerator,
            denominator: Some(denominator),
        }
    }

    pub fn users(&self) -> usize {
        self.numerator.len()
    }

    /// The statistic on the whole sample; `None` where the denominator is zero (no user it applies to).
    pub fn value(&self) -> Option<f64> {
        let value = self.weighted(&vec![1.0; self.users()]);
        value.is_finite().then_some(value)
    }

    /// The statistic of a resample in which user `i` occurs `times[i]` times; NaN if undefined there.
    fn weighted(&self, times: &[f64]) -> f64 {
        let denominator = match &self.denominator {
            Some(weights) => dot(times, weights),
            // As many users as were drawn: every resample is as large as the sample.
            None => times.len() as f64,
        };
        if denominator == 0.0 {
            return f64::NAN;
        }
        dot(times, &self.numerator) / denominator
    }
}

/// Inner product in eight fixed lanes: an order of summation that vectorises and never varies.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a_blocks, a_rest) = a.as_chunks::<8>();
    let (b_blocks, b_rest) = b.as_chunks::<8>();
    let mut lanes = [0.0; 8];
    for (x, y) in a_blocks.iter().zip(b_blocks) {
        for ((lane, x), y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += x * y;
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    lanes.iter().sum::<f64>() + rest
}

/// The resampling plan.
#[derive(Clone, Copy, Debug)]
pub struct Bootstrap {
    pub seed: u64,
    /// The tails of a 95% interval need several hundred; with 0 there are no intervals.
    pub resamples: u32,
}

impl Bootstrap {
    /// 1,000 resamples.
    pub fn new(seed: u64) -> Self {
        Bootstrap {
            seed,
            resamples: 1000,
        }
    }

    /// Every statistic with its interval, all from one set of resamples. `None` where the statistic is
    /// undefined on the sample. Resamples in which it is undefined (a bucket that nobody drawn falls
    /// into) say nothing about it and are left out of its percentiles.
    ///
    /// # Panics
    /// If the statistics are over different numbers of users.
    pub fn figures(&self, statistics: &[Statistic]) -> Vec<Option<Figure>> {
        let replicates = self.replicates(statistics);
        statistics
            .iter()
            .enumerate()
            .map(|(i, s)| figure(s.value()?, replicates.iter().map(|r| r[i])))
            .collect()
    }

    /// `system - baseline` with its interval, paired: both statistics of a resample are of the same users.
    /// Absolute, and relative to the baseline's value where that is not zero. `None` where either
    /// statistic is undefined. Errors if the two are over different numbers of users.
    pub fn difference(
        &self,
        system: &Statistic,
        baseline: &Statistic,
    ) -> Result<Option<Difference>> {
        ensure!(
            system.users() == baseline.users(),
            "paired difference: {} users against {}; evaluate both systems on the same users",
            system.users(),
            baseline.users()
        );
        let (Some(a), Some(b)) = (system.value(), baseline.value()) else {
            return Ok(None);
        };
        let replicates = self.replicates(&[system.clone(), baseline.clone()]);
        Ok(difference([a, b], replicates.iter().map(|r| [r[0], r[1]])))
    }

    /// `[resamples][statistics]`, NaN where undefined. A resample's users are drawn once for all.
    pub(super) fn replicates(&self, statistics: &[Statistic]) -> Vec<Vec<f64>> {
        let users = statistics.first().map_or(0, Statistic::users);
        assert!(
            statistics.iter().all(|s| s.users() == users),
            "statistics of one bootstrap are over the same users"
        );
        (0..self.resamples)
            .into_par_iter()
            .map_init(
                || vec![0.0; users],
                |times, resample| {
                    self.draw(resample, times);
                    statistics.iter().map(|s| s.weighted(times)).collect()
                },
            )
            .collect()
    }

    /// Draws as many users as there are, with replacement: `times[i]` is how often user `i` came up.
    fn draw(&self, resample: u32, times: &mut [f64]) {
        let users = times.len();
        times.fill(0.0);
        let mut rng = Rng::new(self.seed, Stream::Bootstrap, resample, 0);
        let mut left = users;
        while left > 0 {
            for word in rng.block().into_iter().take(left) {
                times[((u64::from(word) * users as u64) >> 32) as usize] += 1.0;
                left -= 1;
            }
        }
    }
}

/// The difference of two estimates, [system, baseline], with the intervals of their replicates' differences.
pub(super) fn difference(
    [a, b]: [f64; 2],
    replicates: impl Iterator<Item = [f64; 2]> + Clone,
) -> Option<Difference> {
    let absolute = figure(a - b, replicates.clone().map(|[a, b]| a - b))?;
    let relative = match b {
        0.0 => None,
        _ => figure((a - b) / b, replicates.map(|[a, b]| (a - b) / b)),
    };
    Some(Difference { absolute, relative })
}

/// The percentile interval around `mean`; `None` if there are replicates and none is defined.
pub(super) fn figure(mean: f64, replicates: impl Iterator<Item = f64>) -> Option<Figure> {
    let mut sorted: Vec<f64> = replicates.collect();
    let asked = !sorted.is_empty();
    sorted.retain(|x| x.is_finite());
    sorted.sort_by(f64::total_cmp);
    let interval = (!sorted.is_empty()).then(|| {
        let [lo, hi] = TAILS.map(|tail| percentile(&sorted, tail));
        Interval { lo, hi }
    });
    (interval.is_some() || !asked).then_some(Figure { mean, interval })
}

/// Linear interpolation between order statistics (Hyndman & Fan's type 7, NumPy's default).
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let position = share * (sorted.len() - 1) as f64;
    let below = position as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (position - below as f64) * (sorted[above] - sorted[below])
}

/// How much better one system is than another on the same users.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// `system - baseline`.
    pub absolute: Figure,
    /// `(system - baseline) / baseline`; absent where the baseline is 0.
    pub relative: Option<Figure>,
}

impl Difference {
    /// The interval excludes zero: at the 5% level the difference is not chance.
    pub fn is_significant(&self) -> bool {
        (self.absolute.interval).is_some_and(|interval| interval.lo > 0.0 || interval.hi < 0.0)
    }
}

/// `+0.0021 [+0.0011, +0.0032], +4.1% [+2.1%, +6.2%]`.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:+.4}", self.absolute.mean)?;
        if let Some(Interval { lo, hi }) = self.absolute.interval {
            write!(f, " [{lo:+.4}, {hi:+.4}]")?;
        }
        let Some(relative) = self.relative else {
            return Ok(());
        };
        write!(f, ", {:+.1}%", 100.0 * relative.mean)?;
        if let Some(Interval { lo, hi }) = relative.interval {
            write!(f, " [{:+.1}%, {:+.1}%]", 100.0 * lo, 100.0 * hi)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} against {b}");
    }

    fn ends(figure: Figure) -> [f64; 2] {
        let Interval { lo, hi } = figure.interval.unwrap();
        [lo, hi]
    }

    fn bernoulli(rng: &mut Rng, p: f32, n: usize) -> Vec<f64> {
        (0..n).map(|_| f64::from(rng.uniform() < p)).collect()
    }

    /// Share of `datasets` whose interval, scaled about its estimate, holds the truth.
    fn coverage_of(
        truth: f64,
        datasets: u32,
        scale: f64,
        sample: impl Fn(&mut Rng) -> Statistic,
    ) -> f64 {
        let held = (0..datasets).filter(|&d| {
            let statistic = sample(&mut Rng::new(11, Stream::Test, d, 1));
            let bootstrap = Bootstrap {
                seed: u64::from(d),
                resamples: 300,
            };
            let figure = bootstrap.figures(&[statistic])[0].unwrap();
            let [lo, hi] = ends(figure).map(|end| figure.mean + scale * (end - figure.mean));
            lo <= truth && truth <= hi
        });
        held.count() as f64 / f64::from(datasets)
    }

    #[test]
    fn intervals_hold_the_truth_as_often_as_they_say() {
        let mean = |rng: &mut Rng| Statistic::mean(bernoulli(rng, 0.2, 300));
        // Worth is higher where hits are rarer, so the ratio is not the plain hit rate:
        // (0.5 * 1 * 0.4 + 0.5 * 3 * 0.2) / (0.5 * 1 + 0.5 * 3) = 0.25.
        let ratio = |rng: &mut Rng| {
            let users = (0..300).map(|_| {
                let (worth, p) = if rng.uniform() < 0.5 {
                    (1.0, 0.4)
                } else {
                    (3.0, 0.2)
                };
                (worth * f64::from(rng.uniform() < p), worth)
            });
            let (numerator, denominator) = users.unzip();
            Statistic::ratio(numerator, denominator)
        };
        for share in [
            coverage_of(0.2, 600, 1.0, mean),
            coverage_of(0.25, 600, 1.0, ratio),
        ] {
            assert!((0.92..=0.975).contains(&share), "{share}");
        }
        // Negative controls: intervals half as wide, and the wrong truth for the ratio.
        assert!(coverage_of(0.2, 600, 0.5, mean) < 0.8);
        assert!(coverage_of(0.3, 600, 1.0, ratio) < 0.8);
    }

    #[test]
    fn interval_width_matches_the_standard_error() {
        let mut rng = Rng::new(5, Stream::Test, 0, 0);
        let n = 4001; // not a multiple of the summation's lanes
        let values: Vec<f64> = (0..n).map(|_| rng.normal().into()).collect();
        let mean = values.iter().sum::<f64>() / n as f64;
        let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        let expected = 2.0 * 1.96 * (variance / n as f64).sqrt();
        let figure = Bootstrap::new(9).figures(&[Statistic::mean(values)])[0].unwrap();
        close(figure.mean, mean);
        let [lo, hi] = ends(figure);
        let width = hi - lo;
        assert!(
            (width / expected - 1.0).abs() < 0.1,
            "{width} against {expected}"
        );
    }

    #[test]
    fn the_same_seed_gives_the_same_bits_on_any_number_of_threads() {
        let mut rng = Rng::new(6, Stream::Test, 0, 0);
        let statistic = Statistic::mean(bernoulli(&mut rng, 0.3, 503));
        let figure = |seed, threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            pool.build().unwrap().install(|| {
                Bootstrap::new(seed).figures(std::slice::from_ref(&statistic))[0].unwrap()
            })
        };
        assert_eq!(figure(1, 1), figure(1, 5));
        assert_ne!(figure(1, 1), figure(2, 1));
    }

    #[test]
    fn degenerate_samples() {
        let bootstrap = Bootstrap::new(0);
        let one = |statistic| bootstrap.figures(&[statistic])[0];
        let constant = one(Statistic::mean(vec![0.25; 40])).unwrap();
        assert_eq!((constant.mean, ends(constant)), (0.25, [0.25, 0.25]));
        assert_eq!(one(Statistic::ratio(vec![0.0; 3], vec![0.0; 3])), None);
        assert_eq!(one(Statistic::mean(vec![])), None);
        // Resamples without the one user who counts are left out rather than counted as zero.
        let rare = one(Statistic::ratio(vec![0.0, 0.0, 0.5], vec![0.0, 0.0, 1.0])).unwrap();
        assert_eq!((rare.mean, ends(rare)), (0.5, [0.5, 0.5]));
        // Two users: a resample's mean is 0, 1/2 or 1, and each end has a quarter of them.
        let two = one(Statistic::mean(vec![0.0, 1.0])).unwrap();
        assert_eq!((two.mean, ends(two)), (0.5, [0.0, 1.0]));
    }

    #[test]
    fn without_resamples_there_are_estimates_without_intervals() {
        let bootstrap = Bootstrap {
            seed: 1,
            resamples: 0,
        };
        let [system, baseline] = [0.25, 0.2].map(|x| Statistic::mean(vec![x; 40]));
        let figures = bootstrap.figures(&[
            system.clone(),
            Statistic::ratio(vec![0.0; 40], vec![0.0; 40]),
        ]);
        assert_eq!(figures[0].unwrap().to_string(), ".2500");
        assert_eq!(figures[1], None);
        let json = serde_json::to_string(&figures[0]).unwrap();
        assert_eq!(json, r#"{"mean":0.25}"#);
        let difference = bootstrap.difference(&system, &baseline).unwrap().unwrap();
        assert_eq!(difference.to_string(), "+0.0500, +25.0%");
        assert!(!difference.is_significant());
    }

    #[test]
    fn pairing_sees_a_difference_that_separate_intervals_do_not() {
        let mut rng = Rng::new(8, Stream::Test, 0, 0);
        let n = 2000;
        let baseline = bernoulli(&mut rng, 0.3, n);
        // The same hits and two in a hundred more.
        let extra = bernoulli(&mut rng, 0.02, n);
        let system: Vec<f64> = baseline
            .iter()
            .zip(&extra)
            .map(|(b, e)| b.max(*e))
            .collect();
        let (system, baseline) = (Statistic::mean(system), Statistic::mean(baseline));
        let bootstrap = Bootstrap::new(4);

        let paired = bootstrap.difference(&system, &baseline).unwrap().unwrap();
        let [lo, hi] = ends(paired.absolute);
        assert!(paired.is_significant() && lo > 0.0, "{paired}");
        let relative = paired.relative.unwrap();
        close(
            relative.mean,
            paired.absolute.mean / baseline.value().unwrap(),
        );
        let [relative_lo, relative_hi] = ends(relative);
        assert!(relative_lo > 0.0 && relative_hi < 0.2, "{paired}");

        let figures = bootstrap.figures(&[system.clone(), baseline.clone()]);
        let [a, b] = [figures[0].unwrap(), figures[1].unwrap()];
        let ([a_lo, a_hi], [b_lo, b_hi]) = (ends(a), ends(b));
        assert!(
            a_lo < b_hi,
            "separate intervals overlap: {a} against {b}; the paired one is {paired}"
        );
        let unpaired = ((a_hi - a_lo).powi(2) + (b_hi - b_lo).powi(2)).sqrt();
        assert!(hi - lo < unpaired / 3.0);

        // Negative controls: nothing differs from itself, and the sign follows the order.
        let same = bootstrap.difference(&system, &system).unwrap().unwrap();
        assert_eq!(ends(same.absolute), [0.0, 0.0]);
        assert!(!same.is_significant());
        let turned = bootstrap.difference(&baseline, &system).unwrap().unwrap();
        close(ends(turned.absolute)[1], -lo);

        // Relative to a constant, the interval is the absolute one in its units.
        let half = Statistic::mean(vec![0.5; n]);
        let to_half = bootstrap.difference(&system, &half).unwrap().unwrap();
        let relative = ends(to_half.relative.unwrap());
        for (relative, absolute) in relative.into_iter().zip(ends(to_half.absolute)) {
            close(relative, absolute / 0.5);
        }

        let never = Statistic::mean(vec![0.0; n]);
        let from_zero = bootstrap.difference(&system, &never).unwrap().unwrap();
        assert_eq!(from_zero.relative, None);
        assert!(
            bootstrap
                .difference(&system, &Statistic::mean(vec![0.0]))
                .is_err()
        );
        assert_eq!(
            Difference {
                absolute: Figure {
                    mean: 0.00214,
                    interval: Some(Interval {
                        lo: -0.001,
                        hi: 0.0032
                    })
                },
                relative: None
            }
            .to_string(),
            "+0.0021 [-0.0010, +0.0032]"
        );
    }
}
