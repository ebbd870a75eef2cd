// Group and sibling advantages. One invocation per candidate, then one per tree node.
struct Params { prompts: u32, group: u32, levels: u32, nodes: u32, scaling: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> rewards: array<f32>;               // [B, G]
@group(0) @binding(2) var<storage, read> cand_node: array<u32>;             // [B, G, L]
@group(0) @binding(3) var<storage, read> node_info: array<u32>;             // [K, 4]
@group(0) @binding(4) var<storage, read_write> advantages: array<f32>;      // [B * G] then [K]
@group(0) @binding(5) var<storage, read_write> node_reward: array<f32>;     // [K]

//!include grid

const NONE = 0xffffffffu;
const EPSILON = 1e-4;
const SCALE_GROUP = 0u;
const SCALE_BATCH = 1u;

// Of the present candidates in [begin, end): an estimate of their mean, what it lacks, the sum of squared deviations,
// the number. In two steps, so that rewards that differ little keep their digits and equal ones deviate by exactly 0.
struct Moments { center: f32, rest: f32, squares: f32, count: f32 }

fn moments(begin: u32, end: u32) -> Moments {
    var out = Moments(0.0, 0.0, 0.0, 0.0);
    for (var c = begin; c < end; c++) {
        if cand_node[c * p.levels] != NONE {
            out.center += rewards[c];
            out.count += 1.0;
        }
    }
    let count = max(out.count, 1.0);
    out.center /= count;
    for (var c = begin; c < end; c++) {
        if cand_node[c * p.levels] != NONE {
            out.rest += rewards[c] - out.center;
        }
    }
    out.rest /= count;
    for (var c = begin; c < end; c++) {
        if cand_node[c * p.levels] != NONE {
            let d = rewards[c] - out.center - out.rest;
            out.squares += d * d;
        }
    }
    return out;
}

fn group_advantage(c: u32) -> f32 {
    if cand_node[c * p.levels] == NONE {
        return 0.0;
    }
    let begin = c / p.group * p.group;
    let own = moments(begin, begin + p.group);
    let deviation = rewards[c] - own.center - own.rest;
    if p.scaling > SCALE_BATCH {
        return deviation;
    }
    var spread = own;
    if p.scaling == SCALE_BATCH {
        spread = moments(0u, p.prompts * p.group);
    }
    let standard = sqrt(spread.squares / max(spread.count - 1.0, 1.0));
    return deviation / (standard + EPSILON);
}

// Mean of reward - center over the candidates through a node, and their number.
fn mean_through(node: u32, prompt: u32, depth: u32, center: f32) -> vec2<f32> {
    var sum = 0.0;
    var count = 0.0;
    for (var g = 0u; g < p.group; g++) {
        let c = prompt * p.group + g;
        if cand_node[c * p.levels + depth] == node {
            sum += rewards[c] - center;
            count += 1.0;
        }
    }
    return vec2<f32>(sum / max(count, 1.0), count);
}

fn is_sibling(other: u32, depth: u32, parent: u32) -> bool {
    return node_info[4u * other + 1u] == depth && node_info[4u * other + 2u] == parent;
}

// Sums over the distinct children of a parent among nodes [begin, end): of their mean rewards' deviations from
// center + rest (x), of the squares of those (y), and the number of children (z).
fn sibling_sums(begin: u32, end: u32, depth: u32, parent: u32, center: f32, rest: f32) -> vec3<f32> {
    var sums = vec3<f32>(0.0);
    for (var other = begin; other < end; other++) {
        if is_sibling(other, depth, parent) {
            let reward = mean_through(other, node_info[4u * other], depth, center);
            if reward.y > 0.0 {
                let d = reward.x - rest;
                sums += vec3<f32>(d, d * d, 1.0);
            }
        }
    }
    return sums;
}

fn sibling_advantage(node: u32, prompt: u32, depth: u32, parent: u32) -> f32 {
    // The nodes of a prompt are contiguous.
    var begin = node;
    while begin > 0u && node_info[4u * (begin - 1u)] == prompt {
        begin--;
    }
    var end = node + 1u;
    while end < p.nodes && node_info[4u * end] == prompt {
        end++;
    }
    // The mean in two steps, as in `moments`.
    let estimate = sibling_sums(begin, end, depth, parent, 0.0, 0.0);
    if estimate.z < 2.0 {
        return 0.0;
    }
    let center = estimate.x / estimate.z;
    let rest = sibling_sums(begin, end, depth, parent, center, 0.0).x / estimate.z;
    let squares = sibling_sums(begin, end, depth, parent, center, rest).y;
    let own = mean_through(node, prompt, depth, center).x - rest;
    if p.scaling > SCALE_BATCH {
        return own;
    }
    return own / (sqrt(squares / estimate.z) + EPSILON);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_number(group) * 64u + lane;
    let candidates = p.prompts * p.group;
    if i < candidates {
        advantages[i] = group_advantage(i);
    } else if i - candidates < p.nodes {
        let node = i - candidates;
        let prompt = node_info[4u * node];
        var reward = vec2<f32>(0.0);
        var advantage = 0.0;
        if prompt < p.prompts {
            let depth = node_info[4u * node + 1u];
            reward = mean_through(node, prompt, depth, 0.0);
            if reward.y > 0.0 {
                advantage = sibling_advantage(node, prompt, depth, node_info[4u * node + 2u]);
            }
        }
        node_reward[node] = reward.x;
        advantages[i] = advantage;
    }
}
