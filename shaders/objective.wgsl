// The clipped objectives with KL, and dLoss/dlogp. One invocation per tree node.
struct Params {
    prompts: u32, group: u32, levels: u32, nodes: u32,
    clip_low: f32, clip_high: f32, beta: f32, sibling_weight: f32,
    policy_scale: f32, sibling_scale: f32, per_candidate: u32, sequence_ratio: u32, mask_zero_variance: u32
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> logp: array<f32>;              // [K]
@group(0) @binding(2) var<storage, read> logp_old: array<f32>;          // [K]
@group(0) @binding(3) var<storage, read> logp_ref: array<f32>;          // [K]
@group(0) @binding(4) var<storage, read> advantages: array<f32>;        // [B * G] then [K]
@group(0) @binding(5) var<storage, read> cand_node: array<u32>;         // [B, G, L]
@group(0) @binding(6) var<storage, read> node_info: array<u32>;         // [K, 4]
@group(0) @binding(7) var<storage, read_write> g: array<f32>;           // [K]
@group(0) @binding(8) var<storage, read_write> terms: array<f32>;       // [K, 8]

//!include grid

const NONE = 0xffffffffu;

// min(r A, clip(r) A), its derivative with respect to log r, and which bound clipped it.
struct Clipped { value: f32, slope: f32, low: f32, high: f32 }

fn clipped(ratio: f32, advantage: f32) -> Clipped {
    let least = 1.0 - p.clip_low;
    let most = 1.0 + p.clip_high;
    if advantage < 0.0 && ratio < least {
        return Clipped(least * advantage, 0.0, 1.0, 0.0);
    }
    if advantage > 0.0 && ratio > most {
        return Clipped(most * advantage, 0.0, 0.0, 1.0);
    }
    return Clipped(ratio * advantage, ratio * advantage, 0.0, 0.0);
}

// exp(d) - d - 1, by its series where the difference would cancel.
fn kl_estimate(d: f32) -> f32 {
    if abs(d) < 0.1 {
        return d * d * (0.5 + d * (1.0 / 6.0 + d * (1.0 / 24.0 + d * (1.0 / 120.0))));
    }
    return exp(d) - d - 1.0;
}

// exp of the mean log-ratio along a candidate's path.
fn path_ratio(candidate: u32) -> f32 {
    var sum = 0.0;
    for (var l = 0u; l < p.levels; l++) {
        let node = cand_node[candidate * p.levels + l];
        sum += logp[node] - logp_old[node];
    }
    return exp(sum / f32(p.levels));
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let node = group_number(group) * 64u + lane;
    if node >= p.nodes {
        return;
    }
    let prompt = node_info[4u * node];
    var gradient = 0.0;
    var policy = 0.0;
    var sibling = 0.0;
    var kl_sum = 0.0;
    var clips = vec2<f32>(0.0);
    var ratio_sum = 0.0;
    var entries = 0.0;
    if prompt < p.prompts {
        let depth = node_info[4u * node + 1u];
        let begin = prompt * p.group;
        var present = 0.0;
        var varied = p.mask_zero_variance == 0u;
        for (var c = begin; c < begin + p.group; c++) {
            if cand_node[c * p.levels] != NONE {
                present += 1.0;
                varied = varied || advantages[c] != 0.0;
            }
        }
        var scale = p.policy_scale;
        if p.per_candidate != 0u {
            scale /= max(present, 1.0) * f32(p.levels);
        }
        let lp = logp[node];
        let d = logp_ref[node] - lp;
        let kl = kl_estimate(d);
        let node_ratio = exp(lp - logp_old[node]);
        for (var c = begin; varied && c < begin + p.group; c++) {
            if cand_node[c * p.levels + depth] != node {
                continue;
            }
            var ratio = node_ratio;
            if p.sequence_ratio != 0u {
                ratio = path_ratio(c);
            }
            let term = clipped(ratio, advantages[c]);
            // The derivative of kl with respect to lp is -(exp(d) - 1) = -(kl + d).
            policy -= scale * (term.value - p.beta * kl);
            gradient -= scale * (term.slope + p.beta * (kl + d));
            kl_sum += kl;
            clips += vec2<f32>(term.low, term.high);
            ratio_sum += ratio;
            entries += 1.0;
        }
        let term = clipped(node_ratio, advantages[p.prompts * p.group + node]);
        let sibling_scale = p.sibling_scale / max(present, 1.0);
        sibling = -sibling_scale * term.value;
        gradient -= p.sibling_weight * sibling_scale * term.slope;
    }
    g[node] = gradient;
    terms[8u * node] = policy;
    terms[8u * node + 1u] = sibling;
    terms[8u * node + 2u] = kl_sum;
    terms[8u * node + 3u] = clips.x;
    terms[8u * node + 4u] = clips.y;
    terms[8u * node + 5u] = ratio_sum;
    terms[8u * node + 6u] = entries;
    terms[8u * node + 7u] = 0.0;
}
