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

// Mean and sum of squared deviations of the present candidates in [begin, end), and how many there are. Taken about
// the first of them, so that equal rewards have exactly that mean and no deviation.
struct Moments { mean: f32, squares: f32, count: f32 }

fn moments(begin: u32, end: u32) -> Moments {
    var out = Moments(0.0, 0.0, 0.0);
    var first = 0.0;
    for (var c = begin; c < end; c++) {
        if cand_node[c * p.levels] != NONE {
            if out.count == 0.0 {
                first = rewards[c];
            }
            out.mean += rewards[c] - first;
            out.count += 1.0;
        }
    }
    out.mean = first + out.mean / max(out.count, 1.0);
    for (var c = begin; c < end; c++) {
        if cand_node[c * p.levels] != NONE {
            let d = rewards[c] - out.mean;
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
    let deviation = rewards[c] - own.mean;
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

// Mean reward of the candidates through a node, and their number.
fn mean_through(node: u32, prompt: u32, depth: u32) -> vec2<f32> {
    var first = 0.0;
    var sum = 0.0;
    var count = 0.0;
    for (var g = 0u; g < p.group; g++) {
        let c = prompt * p.group + g;
        if cand_node[c * p.levels + depth] == node {
            if count == 0.0 {
                first = rewards[c];
            }
            sum += rewards[c] - first;
            count += 1.0;
        }
    }
    return vec2<f32>(first + sum / max(count, 1.0), count);
}

fn is_sibling(other: u32, depth: u32, parent: u32) -> bool {
    return node_info[4u * other + 1u] == depth && node_info[4u * other + 2u] == parent;
}

fn sibling_advantage(node: u32, prompt: u32, depth: u32, parent: u32, own: f32) -> f32 {
    // The nodes of a prompt are contiguous.
    var begin = node;
    while begin > 0u && node_info[4u * (begin - 1u)] == prompt {
        begin--;
    }
    var first = 0.0;
    var sum = 0.0;
    var count = 0.0;
    var end = begin;
    while end < p.nodes && node_info[4u * end] == prompt {
        if is_sibling(end, depth, parent) {
            let reward = mean_through(end, prompt, depth);
            if reward.y > 0.0 {
                if count == 0.0 {
                    first = reward.x;
                }
                sum += reward.x - first;
                count += 1.0;
            }
        }
        end++;
    }
    if count < 2.0 {
        return 0.0;
    }
    let mean = first + sum / count;
    var squares = 0.0;
    for (var other = begin; other < end; other++) {
        if is_sibling(other, depth, parent) {
            let reward = mean_through(other, prompt, depth);
            if reward.y > 0.0 {
                let d = reward.x - mean;
                squares += d * d;
            }
        }
    }
    return (own - mean) / (sqrt(squares / count) + EPSILON);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = group_number(group, groups) * 64u + lane;
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
            reward = mean_through(node, prompt, depth);
            if reward.y > 0.0 {
                advantage = sibling_advantage(node, prompt, depth, node_info[4u * node + 2u], reward.x);
            }
        }
        node_reward[node] = reward.x;
        advantages[i] = advantage;
    }
}
