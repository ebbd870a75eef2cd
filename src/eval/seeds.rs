//! Intervals of systems that were trained once per seed and evaluated on the same users.
//!
//! What varies is the seed and the user, crossed. A resample draws both: the users as for one system, and of the S seeds
//! S - 1, with replacement, which makes the variance of a mean over few seeds unbiased (Rao & Wu 1988; S draws
//! would give (S - 1) / S of it). Drawing rows and columns of a table each by itself is Owen's pigeonhole bootstrap (2007).
//! With one seed an interval is of the users alone.

use super::bootstrap::{Bootstrap, Difference, Figure, Statistic, difference, figure};
use crate::rng::{Rng, Stream};
use anyhow::{Result, ensure};

impl Bootstrap {
    /// The mean over seeds of a statistic, with its interval; `None` where it is undefined for a seed.
    ///
    /// # Panics
    /// If there are none, or they are over different numbers of users.
    pub fn seed_mean(&self, per_seed: &[Statistic]) -> Option<Figure> {
        let estimate = mean_value(per_seed)?;
        let means = self.seed_means(&[per_seed]);
        figure(estimate, means.iter().map(|m| m[0]))
    }

    /// The difference of two such means with its interval, paired by user and by seed; a baseline of one statistic is
    /// that of every seed.
    ///
    /// # Errors
    /// Other numbers of users or seeds.
    pub fn seed_difference(
        &self,
        system: &[Statistic],
        baseline: &[Statistic],
    ) -> Result<Option<Difference>> {
        ensure!(
            baseline.len() == 1 || baseline.len() == system.len(),
            "paired difference: {} seeds against {}; train both systems with the same seeds",
            system.len(),
            baseline.len()
        );
        let users = |of: &[Statistic]| of.iter().all(|s| s.users() == system[0].users());
        ensure!(
            users(system) && users(baseline),
            "paired difference: evaluate both systems on the same users"
        );
        let (Some(a), Some(b)) = (mean_value(system), mean_value(baseline)) else {
            return Ok(None);
        };
        let means = self.seed_means(&[system, baseline]);
        Ok(difference([a, b], means.iter().map(|m| [m[0], m[1]])))
    }

    /// `[resamples][systems]`: means over the seeds drawn, the same for all systems, of the statistics on the users drawn.
    fn seed_means(&self, systems: &[&[Statistic]]) -> Vec<Vec<f64>> {
        let seeds = systems.iter().map(|s| s.len()).max().unwrap_or(0);
        let resamples = self.replicates(&systems.concat());
        let mean = |(number, mut values): (u32, &[f64])| {
            let drawn = self.draw_seeds(number, seeds);
            let of = |system: &&[Statistic]| {
                let (own, rest) = values.split_at(system.len());
                values = rest;
                let sum: f64 = drawn.iter().map(|&seed| own[seed % own.len()]).sum();
                sum / drawn.len() as f64
            };
            systems.iter().map(of).collect()
        };
        let values = resamples.iter().map(Vec::as_slice);
        (0..).zip(values).map(mean).collect()
    }

    fn draw_seeds(&self, resample: u32, seeds: usize) -> Vec<usize> {
        let mut rng = Rng::new(self.seed, Stream::Bootstrap, resample, 1);
        let draws = seeds.saturating_sub(1).max(1);
        (0..draws).map(|_| rng.below(seeds)).collect()
    }
}

fn mean_value(per_seed: &[Statistic]) -> Option<f64> {
    let values = per_seed.iter().map(Statistic::value);
    let sum: Option<f64> = values.sum();
    Some(sum? / per_seed.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::super::bootstrap::Interval;
    use super::*;

    const BOOTSTRAP: Bootstrap = Bootstrap {
        seed: 5,
        resamples: 2000,
    };

    /// Normal deviates by the sum of twelve.
    fn normal(rng: &mut Rng) -> f64 {
        (0..12).map(|_| rng.uniform() as f64).sum::<f64>() - 6.0
    }

    /// One statistic per seed: user effects in common, `spread` of the seeds', and noise.
    fn trained(number: u32, seeds: usize, users: usize, spread: f64) -> Vec<Statistic> {
        shifted(number, seeds, users, spread, 0.0)
    }

    /// The same, plus a constant.
    fn shifted(number: u32, seeds: usize, users: usize, spread: f64, by: f64) -> Vec<Statistic> {
        let mut rng = Rng::new(3, Stream::Test, number, users as u32);
        let effects: Vec<f64> = (0..users).map(|_| normal(&mut rng)).collect();
        let one = |_| {
            let seed = by + spread * normal(&mut rng);
            let values = effects.iter().map(|user| user + seed + normal(&mut rng));
            Statistic::mean(values.collect())
        };
        (0..seeds).map(one).collect()
    }

    fn ends(figure: Figure) -> [f64; 2] {
        let Interval { lo, hi } = figure.interval.unwrap();
        [lo, hi]
    }

    fn width(figure: Figure) -> f64 {
        let [lo, hi] = ends(figure);
        hi - lo
    }

    #[test]
    fn one_seed_is_a_bootstrap_over_users() {
        let one = trained(0, 1, 61, 1.0);
        let users = BOOTSTRAP.figures(&one)[0].unwrap();
        assert_eq!(BOOTSTRAP.seed_mean(&one), Some(users));
        // Equal seeds add nothing.
        let equal = vec![one[0].clone(); 3];
        let figure = BOOTSTRAP.seed_mean(&equal).unwrap();
        for (end, of_users) in ends(figure).into_iter().zip(ends(users)) {
            assert!((end - of_users).abs() < 1e-12);
        }
        // Unequal ones do.
        let figure = BOOTSTRAP.seed_mean(&trained(0, 3, 61, 3.0)).unwrap();
        assert!(width(figure) > 1.5 * width(users));
    }

    /// The spread of the resamples is that of the means of new seeds and users.
    #[test]
    fn the_variance_is_that_of_seeds_and_users() {
        let (users, seeds, spread) = (200, 3, 0.5);
        let tries = 300;
        let mut sum = 0.0;
        for number in 0..tries {
            let statistics = trained(number, seeds, users, spread);
            let bootstrap = Bootstrap {
                seed: number as u64,
                resamples: 200,
            };
            let means = bootstrap.seed_means(&[&statistics]);
            let means: Vec<f64> = means.iter().map(|m| m[0]).collect();
            let mean = means.iter().sum::<f64>() / means.len() as f64;
            sum += means.iter().map(|m| (m - mean).powi(2)).sum::<f64>() / means.len() as f64;
        }
        let found = sum / tries as f64;
        // Of the seeds, of the users; the noise is small beside them and counted about twice.
        let of_seeds = spread * spread / seeds as f64;
        let of_users = 1.0 / users as f64;
        let expected = of_seeds + of_users;
        assert!((found / expected - 1.0).abs() < 0.15, "{found} {expected}");
        // The users alone explain a fraction, and S draws would explain two thirds of the seeds.
        assert!(found > 1.2 * (of_seeds * 2.0 / 3.0 + of_users));
    }

    #[test]
    fn differences_are_paired_by_user_and_seed() {
        let base = trained(7, 3, 50, 2.0);
        let better = shifted(7, 3, 50, 2.0, 0.25);
        let difference = BOOTSTRAP.seed_difference(&better, &base).unwrap().unwrap();
        let [lo, hi] = ends(difference.absolute);
        assert!(
            [difference.absolute.mean, lo, hi]
                .iter()
                .all(|x| (x - 0.25).abs() < 1e-12)
        );
        // Seeds in another order are other pairs.
        let turned = [base[1].clone(), base[2].clone(), base[0].clone()];
        let other = BOOTSTRAP
            .seed_difference(&better, &turned)
            .unwrap()
            .unwrap();
        assert!((other.absolute.mean - 0.25).abs() < 1e-12 && width(other.absolute) > 0.1);
        // Against one baseline the seeds' own spread stays.
        let one = BOOTSTRAP.seed_difference(&better, &base[..1]).unwrap();
        assert!(width(one.unwrap().absolute) > 0.1);
        assert!(BOOTSTRAP.seed_difference(&better, &base[..2]).is_err());
        let fewer = trained(7, 3, 49, 2.0);
        assert!(BOOTSTRAP.seed_difference(&better, &fewer).is_err());
    }
}
