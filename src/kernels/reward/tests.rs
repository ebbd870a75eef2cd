//! Rewards by hand.

use super::*;
use crate::kernels::harness::devices;

/// Four candidates of two tokens and their log-probs; the third is the target.
const CANDIDATES: [[u32; 2]; 4] = [[1, 5], [1, 6], [2, 5], [2, 7]];
const LOGP: [f32; 4] = [-3.0, -1.0, -2.0, -4.0];

/// Rewards and step rewards of the first `count` candidates, whose SIDs are 0 ..= 3, under `weights`; the target is SID
/// `wanted`.
fn run(
    h: &mut Harness,
    (count, wanted): (usize, usize),
    weights: Weights,
    logp: [f32; 4],
    embeddings: &[f32],
    novelty: [f32; 4],
) -> (Vec<f32>, Vec<f32>) {
    let mut picked = vec![count as u32, count as u32, 9, 0, 1, 1, 1];
    for (sid, tokens) in CANDIDATES.iter().enumerate() {
        picked.extend([sid as u32, tokens[0], tokens[1]]);
    }
    let scores: Vec<f32> = logp.iter().flat_map(|&l| [l, 0.0, 0.0, 0.0]).collect();
    let target = CANDIDATES[wanted];
    let asked = [0, 7, wanted as u32, 2.5f32.to_bits(), target[0], target[1]];
    let sids: Vec<f32> = [0.5, 1.0].into_iter().chain(novelty).collect();
    let dim = embeddings.len() / 4;
    let (picked, scores) = (h.u32("picked", &picked), h.f32("scores", &scores));
    // The history: the second candidate's item, and half of the first's.
    let prompt = [0, 2, 9, 1, 6, 2, 9].map(|token| Row {
        token,
        ..Row::INACTIVE
    });
    let rows = h.u32("rows", bytemuck::cast_slice(&prompt));
    let (asked, sids) = (h.u32("asked", &asked), h.f32("sids", &sids));
    let embeddings = h.f32("embeddings", if dim > 0 { embeddings } else { &[0.0] });
    let (rewards, steps) = (h.random("rewards", 4), h.random("steps", 8));
    let on = Reward {
        picked: picked.slice(),
        scores: scores.slice(),
        asked: asked.slice(),
        rows: rows.slice(),
        sids: sids.slice(),
        embeddings: embeddings.slice(),
        rewards: rewards.slice(),
        steps: steps.slice(),
    };
    let p = Params {
        prompts: 1,
        group: 4,
        levels: 2,
        dim: dim as u32,
        rule: weights.rule,
        rank: weights.rank,
        semantic: weights.semantic,
        repeat: weights.repeat,
        novelty: weights.novelty,
        value: weights.value,
        teacher: weights.teacher,
    };
    reward(h.stream(), on, p);
    h.run().unwrap();
    (h.read_f32(&rewards).unwrap(), h.read_f32(&steps).unwrap())
}

fn assert_close(got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (g, w) in got.iter().zip(want) {
        assert!((*g as f64 - w).abs() < 1e-5, "{got:?} is not {want:?}");
    }
}

#[test]
fn shader_equals_twin() {
    devices::lockstep(cases);
}

#[test]
fn misses_are_punished_by_rank_only_beside_a_hit() {
    devices::each(|h| {
        let weights = Weights {
            rank: 1.0,
            ..Weights::default()
        };
        // Order by log-prob: 1, 2 (the hit), 0, 3.
        let (got, _) = run(h, (4, 2), weights, LOGP, &[], [0.0; 4]);
        let discounts = [1.0, 1.0 / 3f64.log2(), 0.5, 1.0 / 5f64.log2()];
        let total: f64 = discounts.iter().sum();
        let want = [
            -discounts[2] / total,
            -1.0 / total,
            0.0,
            -discounts[3] / total,
        ];
        assert_close(&got, &want);
        let (none, _) = run(h, (2, 2), weights, LOGP, &[], [0.0; 4]);
        assert_eq!(none, [0.0; 4], "no hit, no punishment");
        // Equal log-probs: the earlier candidate ranks first.
        let (tied, _) = run(h, (3, 2), weights, [0.0; 4], &[], [0.0; 4]);
        assert!(tied[0] < tied[1] && tied[1] < 0.0 && tied[2..] == [0.0; 2]);
    });
}

#[test]
fn the_total_weighs_every_reward() {
    devices::each(|h| {
        let weights = Weights {
            rule: 1.0,
            rank: 0.0,
            semantic: 10.0,
            repeat: 10_000.0,
            novelty: 100.0,
            value: 1000.0,
            teacher: 0.0,
        };
        let embeddings = [1.0, 0.0, 0.0, 1.0, 2.0, 2.0, -1.0, -1.0];
        let (got, _) = run(h, (4, 2), weights, LOGP, &embeddings, [1.0, 0.5, 0.0, 1.0]);
        let half = 10.0 * 0.5f64.sqrt();
        let want = [half + 100.0, half + 50.0 - 10_000.0, 2511.0, 90.0];
        assert!(
            got.iter()
                .zip(want)
                .all(|(g, w)| (*g as f64 - w).abs() < 1e-2),
            "{got:?} is not {want:?}"
        );
    });
}

#[test]
fn step_rewards_average_the_candidates_below_a_prefix() {
    devices::each(|h| {
        let embeddings = [1.0, 0.0, 0.0, 1.0, 3.0, 0.0, 0.0, -2.0];
        let none = Weights::default();
        let (_, got) = run(h, (4, 2), none, LOGP, &embeddings, [0.0; 4]);
        // Prefix (1): mean (0.5, 0.5). Prefix (2) is the target's, and so is (2 5). (2 7) is orthogonal to it.
        let miss = -0.5 * (1.0 - 0.5f64.sqrt());
        assert_close(&got, &[miss, 0.0, miss, -1.0, 0.5, 1.0, 0.5, -1.0]);
        let (_, blind) = run(h, (4, 2), none, LOGP, &[], [0.0; 4]);
        assert_eq!(blind, [-0.5, -1.0, -0.5, -1.0, 0.5, 1.0, 0.5, -1.0]);
    });
}

#[test]
fn where_no_target_is_known_steps_are_those_that_a_teacher_expects() {
    devices::each(|h| {
        // Two prompts with the same two candidates, which begin alike; only the second has a target, which they are not.
        let candidates = [2, 2, 9, 0, 1, 1, 1, 0, 1, 5, 1, 1, 6];
        let picked = h.u32("picked", &[candidates, candidates].concat());
        let scores = h.f32("scores", &[-1.0; 16]);
        let asked = [0, 0, NONE, 0, NONE, NONE, 0, 0, 2, 0, 2, 5];
        let (asked, rows) = (h.u32("asked", &asked), h.u32("rows", &[0; Row::WORDS]));
        let sids = h.f32("sids", &[0.5, 1.0]);
        let embeddings = h.f32("embeddings", &[0.0]);
        let rewards = h.f32("rewards", &[0.25, -0.25, 0.0, 0.0]);
        let steps = h.f32("steps", &[1.0, 0.75, 1.0, 0.25, 9.0, 9.0, 9.0, 9.0]);
        let on = Reward {
            picked: picked.slice(),
            scores: scores.slice(),
            asked: asked.slice(),
            rows: rows.slice(),
            sids: sids.slice(),
            embeddings: embeddings.slice(),
            rewards: rewards.slice(),
            steps: steps.slice(),
        };
        let p = Params {
            prompts: 2,
            group: 2,
            levels: 2,
            dim: 0,
            rule: 1.0,
            rank: 0.0,
            semantic: 0.0,
            repeat: 0.0,
            novelty: 0.0,
            value: 0.0,
            teacher: 8.0,
        };
        reward(h.stream(), on, p);
        h.run().unwrap();
        h.expect(&rewards, &[2.0, -2.0, 0.0, 0.0], 1e-6);
        let want = [0.5, 0.5, 0.5, -0.5, -0.5, -1.0, -0.5, -1.0];
        h.expect(&steps, &want, 1e-6);
    });
}
