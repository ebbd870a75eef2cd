//! Rewards of a prompt's candidates, and the step rewards of the value head (spec 5). Plain functions over slices: what
//! an embedding, a popularity or a worth belongs to is the caller's business.
//!
//! Throughout, G candidates of L tokens lie row-major in `candidates` [G, L], and `target` has L tokens.

/// How the rewards of one candidate are added up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Weights {
    pub rule: f64,
    pub rank: f64,
    pub semantic: f64,
    pub novelty: f64,
    pub value: f64,
}

/// What the rewards of one prompt's candidates may depend on. Fields whose weight is 0 may be empty.
#[derive(Clone, Copy, Debug, Default)]
pub struct Group<'a> {
    /// [G, L].
    pub candidates: &'a [u32],
    /// [L].
    pub target: &'a [u32],
    /// [G]: the policy's log-probability of each candidate.
    pub logp: &'a [f32],
    pub embeddings: Embeddings<'a>,
    /// [G]: training interactions of each candidate.
    pub counts: &'a [u32],
    /// The largest count of the catalog.
    pub max_count: u32,
    /// Worth of the target.
    pub worth: f32,
}

/// Item embeddings of a group, all of one dimension D; empty where the catalog has none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Embeddings<'a> {
    /// [G, D].
    pub candidates: &'a [f32],
    /// [D].
    pub target: &'a [f32],
}

/// Whether each candidate is the target.
pub fn hits(candidates: &[u32], target: &[u32]) -> Vec<bool> {
    let paths = candidates.chunks_exact(target.len());
    paths.map(|candidate| candidate == target).collect()
}

/// 1 for the target, else 0.
pub fn rule(hits: &[bool]) -> Vec<f32> {
    hits.iter().map(|&hit| hit as u32 as f32).collect()
}

/// In a group with a hit, a miss at rank i (0-based, by decreasing `logp` [G], ties by index) gets
/// `-(1 / log2(i + 2)) / sum_{j < G} 1 / log2(j + 2)`: the likelier the miss, the worse. All else gets 0.
pub fn rank(hits: &[bool], logp: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; hits.len()];
    if !hits.contains(&true) {
        return out;
    }
    let discount = |i: usize| 1.0 / ((i + 2) as f64).log2();
    let total: f64 = (0..hits.len()).map(discount).sum();
    let mut order: Vec<usize> = (0..hits.len()).collect();
    order.sort_by(|&a, &b| logp[b].total_cmp(&logp[a]));
    for (i, &g) in order.iter().enumerate() {
        if !hits[g] {
            out[g] = (-discount(i) / total) as f32;
        }
    }
    out
}

/// Cosine between each candidate's embedding and the target's.
pub fn semantic(embeddings: Embeddings) -> Vec<f32> {
    let dim = embeddings.target.len();
    let target: Vec<f64> = embeddings.target.iter().map(|&v| v as f64).collect();
    let rows = embeddings.candidates.chunks_exact(dim);
    rows.map(|row| {
        let row: Vec<f64> = row.iter().map(|&v| v as f64).collect();
        cosine(&row, &target) as f32
    })
    .collect()
}

/// Negative log-popularity, scaled into [0, 1]: 1 for an item never seen in training, 0 for the most popular one.
pub fn novelty(counts: &[u32], max_count: u32) -> Vec<f32> {
    let most = (max_count as f64).ln_1p().max(f64::MIN_POSITIVE);
    let popularity = counts.iter().map(|&count| (count as f64).ln_1p() / most);
    popularity.map(|p| (1.0 - p) as f32).collect()
}

/// The worth of the target on a hit, else 0.
pub fn value(hits: &[bool], worth: f32) -> Vec<f32> {
    hits.iter()
        .map(|&hit| if hit { worth } else { 0.0 })
        .collect()
}

/// The weighted sum of the rewards, [G]; those of weight 0 are not computed.
pub fn total(group: &Group, weights: &Weights) -> Vec<f32> {
    let hits = hits(group.candidates, group.target);
    let mut out = vec![0.0; hits.len()];
    let mut add = |weight: f64, reward: &dyn Fn() -> Vec<f32>| {
        if weight != 0.0 {
            let values = reward();
            assert_eq!(values.len(), out.len(), "one reward per candidate");
            for (sum, value) in out.iter_mut().zip(values) {
                *sum += weight * value as f64;
            }
        }
    };
    add(weights.rule, &|| rule(&hits));
    add(weights.rank, &|| rank(&hits, group.logp));
    add(weights.semantic, &|| semantic(group.embeddings));
    add(weights.novelty, &|| novelty(group.counts, group.max_count));
    add(weights.value, &|| value(&hits, group.worth));
    out.into_iter().map(|v| v as f32).collect()
}

/// Step-reward weights of L levels: `points`, spread evenly over [1, L], interpolated linearly. The points themselves
/// if there are L of them; the last one for a single level.
pub fn level_weights(points: &[f64], levels: usize) -> Vec<f32> {
    assert!(!points.is_empty(), "no level weights");
    let last = points.len() - 1;
    (0..levels)
        .map(|l| {
            let at = match levels {
                1 => last as f64,
                _ => l as f64 * last as f64 / (levels - 1) as f64,
            };
            let below = (at as usize).min(last.saturating_sub(1));
            let above = (below + 1).min(last);
            let share = at - below as f64;
            ((1.0 - share) * points[below] + share * points[above]) as f32
        })
        .collect()
}

/// Step rewards [G, L], `weights` being w [L]: for the candidate's prefix p of length l, `w_l` if p is a prefix of the
/// target, else `-w_l (1 - cos(e_p, e_target))`, e_p being the mean embedding of the group's candidates that start with
/// p (a candidate that is there twice counts twice). Without embeddings every cosine is 0.
pub fn step_rewards(
    candidates: &[u32],
    target: &[u32],
    embeddings: Embeddings,
    weights: &[f32],
) -> Vec<f32> {
    let levels = target.len();
    assert_eq!(weights.len(), levels, "one weight per level");
    let dim = embeddings.target.len();
    let target_embedding: Vec<f64> = embeddings.target.iter().map(|&v| v as f64).collect();
    let paths: Vec<&[u32]> = candidates.chunks_exact(levels).collect();
    let mut out = Vec::with_capacity(candidates.len());
    // A sum has the mean's direction, which is all the cosine sees.
    let mut sum = vec![0.0; dim];
    for path in &paths {
        for (l, &weight) in weights.iter().enumerate() {
            let prefix = &path[..=l];
            if prefix == &target[..=l] {
                out.push(weight);
                continue;
            }
            sum.fill(0.0);
            for (g, _) in paths
                .iter()
                .enumerate()
                .filter(|(_, p)| p.starts_with(prefix))
            {
                for (s, &v) in sum.iter_mut().zip(&embeddings.candidates[g * dim..]) {
                    *s += v as f64;
                }
            }
            let miss = 1.0 - cosine(&sum, &target_embedding);
            out.push((-(weight as f64) * miss) as f32);
        }
    }
    out
}

/// 0 if either vector is zero or empty.
fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms > 0.0 { dot(a, b) / norms } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four candidates of two tokens; the third is the target.
    const CANDIDATES: [u32; 8] = [1, 5, 1, 6, 2, 5, 2, 7];
    const TARGET: [u32; 2] = [2, 5];

    fn assert_close(got: &[f32], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            assert!((*g as f64 - w).abs() < 1e-6, "{got:?} is not {want:?}");
        }
    }

    #[test]
    fn misses_are_punished_by_rank_only_beside_a_hit() {
        let hits = hits(&CANDIDATES, &TARGET);
        assert_eq!(rule(&hits), [0.0, 0.0, 1.0, 0.0]);
        assert_eq!(value(&hits, 2.5), [0.0, 0.0, 2.5, 0.0]);
        // Order by log-prob: 1, 2 (the hit), 0, 3.
        let got = rank(&hits, &[-3.0, -1.0, -2.0, -4.0]);
        let discounts = [1.0, 1.0 / 3f64.log2(), 0.5, 1.0 / 5f64.log2()];
        let total: f64 = discounts.iter().sum();
        let want = [
            -discounts[2] / total,
            -1.0 / total,
            0.0,
            -discounts[3] / total,
        ];
        assert_close(&got, &want);
        assert_eq!(rank(&[false; 4], &[-3.0, -1.0, -2.0, -4.0]), [0.0; 4]);
        // Equal log-probs: the earlier candidate ranks first.
        let tied = rank(&[false, false, true], &[0.0; 3]);
        assert!(tied[0] < tied[1] && tied[1] < 0.0 && tied[2] == 0.0);
    }

    #[test]
    fn novelty_runs_from_never_seen_to_most_popular() {
        assert_close(&novelty(&[0, 9, 99], 99), &[1.0, 0.5, 0.0]);
        assert_eq!(novelty(&[0], 0), [1.0]);
    }

    #[test]
    fn the_total_weighs_every_reward() {
        let embeddings = Embeddings {
            candidates: &[1.0, 0.0, 0.0, 1.0, 3.0, 3.0, -1.0, -1.0],
            target: &[2.0, 2.0],
        };
        let half = 0.5f64.sqrt();
        assert_close(&semantic(embeddings), &[half, half, 1.0, -1.0]);
        let group = Group {
            candidates: &CANDIDATES,
            target: &TARGET,
            logp: &[-3.0, -1.0, -2.0, -4.0],
            embeddings,
            counts: &[0, 9, 99, 0],
            max_count: 99,
            worth: 2.0,
        };
        let weights = Weights {
            rule: 1.0,
            rank: 0.0,
            semantic: 10.0,
            novelty: 100.0,
            value: 1000.0,
        };
        let want = [10.0 * half + 100.0, 10.0 * half + 50.0, 2011.0, 90.0];
        let got = total(&group, &weights);
        assert!(
            got.iter()
                .zip(want)
                .all(|(g, w)| (*g as f64 - w).abs() < 1e-3)
        );
        let plain = Group {
            embeddings: Embeddings::default(),
            counts: &[],
            ..group
        };
        let rule_and_rank = Weights {
            rule: 1.0,
            rank: 1.0,
            ..Weights::default()
        };
        let got = total(&plain, &rule_and_rank);
        assert!(got[2] == 1.0 && got[1] < got[0] && got[0] < got[3] && got[3] < 0.0);
    }

    #[test]
    fn level_weights_interpolate() {
        let points = [0.3, 0.5, 1.0];
        assert_close(&level_weights(&points, 3), &points);
        assert_close(&level_weights(&points, 1), &[1.0]);
        assert_close(&level_weights(&points, 2), &[0.3, 1.0]);
        assert_close(
            &level_weights(&points, 4),
            &[0.3, 1.3 / 3.0, 2.0 / 3.0, 1.0],
        );
        assert_close(&level_weights(&points, 5), &[0.3, 0.4, 0.5, 0.75, 1.0]);
        assert_close(&level_weights(&[0.7], 3), &[0.7, 0.7, 0.7]);
    }

    #[test]
    fn step_rewards_average_the_candidates_below_a_prefix() {
        let embeddings = Embeddings {
            candidates: &[1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, -2.0],
            target: &[3.0, 0.0],
        };
        let got = step_rewards(&CANDIDATES, &TARGET, embeddings, &[0.5, 1.0]);
        // Prefix (1): mean (0.5, 0.5). Prefix (2) is the target's, and so is (2 5). (2 7) is orthogonal to it.
        let miss = -0.5 * (1.0 - 0.5f64.sqrt());
        assert_close(&got, &[miss, 0.0, miss, -1.0, 0.5, 1.0, 0.5, -1.0]);
        let blind = step_rewards(&CANDIDATES, &TARGET, Embeddings::default(), &[0.5, 1.0]);
        assert_eq!(blind, [-0.5, -1.0, -0.5, -1.0, 0.5, 1.0, 0.5, -1.0]);
    }
}
