// Rewards and step rewards of every candidate (src/kernels/reward.rs). One invocation per candidate.
struct Params {
    prompts: u32, group: u32, levels: u32, dim: u32,
    rule: f32, rank: f32, semantic: f32, repeat: f32, novelty: f32, value: f32, teacher: f32
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> picked: array<u32>;
@group(0) @binding(2) var<storage, read> scores: array<f32>;            // [B, G, 2 + L]: log-prob first
@group(0) @binding(3) var<storage, read> asked: array<u32>;             // [B, ASKED + L]
@group(0) @binding(4) var<storage, read> rows: array<u32>;              // [T, ROW]
@group(0) @binding(5) var<storage, read> sids: array<f32>;              // [L] level weights, then [S] novelty
@group(0) @binding(6) var<storage, read> embeddings: array<f32>;        // [S, D]
@group(0) @binding(7) var<storage, read_write> rewards: array<f32>;     // [B, G]; at first a teacher's shares
@group(0) @binding(8) var<storage, read_write> steps: array<f32>;       // [B, G, L]; at first a teacher's, of prefixes

//!include grid
//!include paths
//!include rows
//!include asked

fn logp(b: u32, c: u32) -> f32 {
    return scores[(b * p.group + c) * (2u + p.levels)];
}

// What the miss c gets in a group with a hit: the likelier, the worse.
fn rank_reward(b: u32, c: u32, count: u32) -> f32 {
    var rank = 0u;
    var total = 0.0;
    for (var other = 0u; other < count; other++) {
        total += 1.0 / log2(f32(other + 2u));
        if logp(b, other) > logp(b, c) || (logp(b, other) == logp(b, c) && other < c) {
            rank++;
        }
    }
    return -(1.0 / log2(f32(rank + 2u))) / total;
}

fn cosine(product: f32, square_a: f32, square_b: f32) -> f32 {
    let norms = sqrt(square_a) * sqrt(square_b);
    if norms > 0.0 {
        return product / norms;
    }
    return 0.0;
}

fn similarity(sid: u32, wanted: u32) -> f32 {
    var sums = vec3<f32>(0.0);
    for (var i = 0u; i < p.dim; i++) {
        let e = embeddings[sid * p.dim + i];
        let t = embeddings[wanted * p.dim + i];
        sums += vec3<f32>(e * t, e * e, t * t);
    }
    return cosine(sums.x, sums.y, sums.z);
}

// The cosine of the target's embedding with the sum over the candidates that start with c's first `len` tokens.
fn prefix_similarity(b: u32, c: u32, len: u32, count: u32, wanted: u32) -> f32 {
    var sums = vec3<f32>(0.0);
    for (var i = 0u; i < p.dim; i++) {
        var e = 0.0;
        for (var other = 0u; other < count; other++) {
            if starts_with(b, other, c, len) {
                e += embeddings[picked[path(b, other)] * p.dim + i];
            }
        }
        let t = embeddings[wanted * p.dim + i];
        sums += vec3<f32>(e * t, e * e, t * t);
    }
    return cosine(sums.x, sums.y, sums.z);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_number(group) * 64u + lane;
    if i >= p.prompts * p.group {
        return;
    }
    let b = i / p.group;
    let c = i % p.group;
    let count = picked[summary(b)];
    if c >= count {
        rewards[i] = 0.0;
        for (var l = 0u; l < p.levels; l++) {
            steps[i * p.levels + l] = 0.0;
        }
        return;
    }
    let question = b * (ASKED + p.levels);
    let wanted = asked[question + WANTED];
    let sid = picked[path(b, c)];
    var any_hit = false;
    for (var other = 0u; other < count; other++) {
        any_hit = any_hit || picked[path(b, other)] == wanted;
    }
    var reward = 0.0;
    if p.teacher != 0.0 {
        reward = p.teacher * rewards[i];
    }
    if sid == wanted {
        reward += p.rule + p.value * bitcast<f32>(asked[question + WORTH]);
    } else if any_hit && p.rank != 0.0 {
        reward += p.rank * rank_reward(b, c, count);
    }
    if p.repeat != 0.0 && sid != wanted && is_in_prompt(b, c) {
        reward -= p.repeat;
    }
    if p.semantic != 0.0 && wanted != NONE {
        reward += p.semantic * similarity(sid, wanted);
    }
    if p.novelty != 0.0 {
        reward += p.novelty * sids[p.levels + sid];
    }
    rewards[i] = reward;
    var on_target = true;
    for (var l = 0u; l < p.levels; l++) {
        let weight = sids[l];
        on_target = on_target && picked[path(b, c) + 1u + l] == asked[question + ASKED + l];
        var step = weight;
        if wanted == NONE && p.teacher != 0.0 {
            step = weight * (2.0 * steps[i * p.levels + l] - 1.0);
        } else if !on_target {
            var near = 0.0;
            if wanted != NONE {
                near = prefix_similarity(b, c, l + 1u, count, wanted);
            }
            step = -weight * (1.0 - near);
        }
        steps[i * p.levels + l] = step;
    }
}
