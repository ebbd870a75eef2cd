// The final selection (src/kernels/candidates.rs). One invocation per prompt.
struct Params { prompts: u32, nodes: u32, levels: u32, tokens_at: u32, fanout: u32, first_leaf: u32, goal: u32,
                ordered: u32, score_leaves: u32, eta: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> tree: array<u32>;
@group(0) @binding(2) var<storage, read> stats: array<f32>;
@group(0) @binding(3) var<storage, read> child_logp: array<f32>;
@group(0) @binding(4) var<storage, read> trie: array<u32>;
@group(0) @binding(5) var<storage, read_write> picked: array<u32>;
@group(0) @binding(6) var<storage, read_write> scores: array<f32>;

//!include grid
//!include search

const SUMMARY: u32 = 4u;
var<private> b: u32;
// Candidates so far, and where this prompt's begin.
var<private> found: u32;
var<private> list: u32;

fn word(node: u32, field: u32) -> u32 {
    return tree[(b * (1u + p.nodes) + 1u + node) * RECORD + field];
}

fn stat(node: u32, field: u32) -> f32 {
    return stats[(b * p.nodes + node) * STATS + field];
}

fn is_picked(sid: u32) -> bool {
    for (var i = 0u; i < found; i++) {
        if picked[list + i * (1u + p.levels)] == sid {
            return true;
        }
    }
    return false;
}

// Appends the SID that ends with `edge` under node `under`.
fn pick(under: u32, edge: u32, logp: f32, value: f32) {
    let out = list + found * (1u + p.levels);
    let out_scores = (b * p.goal + found) * (2u + p.levels);
    found += 1u;
    picked[out] = edge + 1u - p.first_leaf;
    picked[out + p.levels] = trie[p.tokens_at + edge];
    scores[out_scores] = stat(under, CUMULATIVE) + logp;
    scores[out_scores + 1u] = value;
    scores[out_scores + 1u + p.levels] = logp;
    var node = under;
    for (var level = p.levels - 1u; level > 0u; level--) {
        picked[out + level] = trie[p.tokens_at + word(node, TRIE) - 1u];
        scores[out_scores + 1u + level] = stat(node, LOGP);
        node = word(node, PARENT);
    }
}

// The value of a leaf in the tree.
fn leaf_value(leaf: u32) -> f32 {
    if p.ordered != 0u || p.score_leaves != 0u {
        return stat(leaf, VALUE);
    }
    return stat(word(leaf, PARENT), VALUE) + p.eta * stat(leaf, LOGP);
}

fn pick_leaf(leaf: u32) {
    pick(word(leaf, PARENT), word(leaf, TRIE) - 1u, stat(leaf, LOGP), leaf_value(leaf));
}

// Appends the best leaf of the tree that is not picked yet; false if there is none.
fn pick_best_leaf(count: u32) -> bool {
    var chosen = NONE;
    var best = 0.0;
    for (var node = 0u; node < count; node++) {
        if word(node, DEPTH) == p.levels {
            let value = leaf_value(node);
            if (chosen == NONE || value > best) && !is_picked(word(node, TRIE) - p.first_leaf) {
                chosen = node;
                best = value;
            }
        }
    }
    if chosen != NONE {
        pick_leaf(chosen);
    }
    return chosen != NONE;
}

// Appends the best SID that is not in the tree but whose parent was run; false if there is none.
fn pick_best_completion(count: u32) -> bool {
    var chosen = vec2<u32>(NONE, NONE);
    var best = 0.0;
    for (var node = 0u; node < count; node++) {
        if word(node, DEPTH) + 1u != p.levels {
            continue;
        }
        let at = word(node, TRIE);
        for (var edge = trie[at]; edge < trie[at + 1u]; edge++) {
            let logp = child_logp[(b * p.nodes + node) * p.fanout + edge - trie[at]];
            let value = stat(node, VALUE) + p.eta * logp;
            if (chosen.x == NONE || value > best) && !is_picked(edge + 1u - p.first_leaf) {
                chosen = vec2<u32>(node, edge);
                best = value;
            }
        }
    }
    if chosen.x != NONE {
        let at = word(chosen.x, TRIE);
        let logp = child_logp[(b * p.nodes + chosen.x) * p.fanout + chosen.y - trie[at]];
        pick(chosen.x, chosen.y, logp, best);
    }
    return chosen.x != NONE;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    b = group_number(group) * 64u + lane;
    if b >= p.prompts { return; }
    let header = b * (1u + p.nodes) * RECORD;
    let count = tree[header + COUNT];
    let frontier = tree[header + FRONTIER];
    let summary = b * (SUMMARY + p.levels + 1u + p.goal * (1u + p.levels));
    list = summary + SUMMARY + p.levels + 1u;
    found = 0u;
    var searched = 0u;
    if p.ordered != 0u {
        for (var leaf = frontier; leaf < count && found < p.goal; leaf++) {
            pick_leaf(leaf);
        }
        searched = found;
    } else {
        while found < p.goal && pick_best_leaf(count) {}
        searched = found;
        while found < p.goal && pick_best_completion(count) {}
    }
    picked[summary] = found;
    picked[summary + 1u] = searched;
    picked[summary + 2u] = tree[header + COST];
    picked[summary + 3u] = tree[header + DEAD_ENDS];
    for (var depth = 0u; depth <= p.levels; depth++) {
        var members = 0u;
        for (var node = 0u; node < count; node++) {
            members += select(0u, 1u, word(node, DEPTH) == depth);
        }
        picked[summary + SUMMARY + depth] = members;
    }
}
