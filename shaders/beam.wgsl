// One level of beam search (src/kernels/beam.rs): one workgroup per prompt, lanes stride over the candidates, and a
// candidate's rank is the number of candidates before it.
struct Params { prompts: u32, nodes: u32, slot_base: u32, width: u32, tokens_at: u32, top: u32, run: u32, settle: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> top_edge: array<u32>;
@group(0) @binding(2) var<storage, read> top_logp: array<f32>;
@group(0) @binding(3) var<storage, read> trie: array<u32>;
@group(0) @binding(4) var<storage, read_write> tree: array<u32>;
@group(0) @binding(5) var<storage, read_write> stats: array<f32>;
@group(0) @binding(6) var<storage, read_write> rows: array<u32>;
@group(0) @binding(7) var<storage, read_write> parent: array<u32>;
@group(0) @binding(8) var<storage, read_write> entry: array<u32>;

//!include grid
//!include search
//!include grow
//!include settled

const LANES: u32 = 64u;

// Whether a node, not the root, is complete: it was not run, and keeps its place.
fn is_settled(b: u32, node: u32) -> bool {
    return p.settle != 0u && node > 0u && is_settled_at(tree[node_at(b, node) + TRIE], true);
}

// Candidate i of a node of prompt b.
fn candidate(b: u32, node: u32, i: u32) -> u32 {
    return (b * p.nodes + node) * p.top + i;
}

// How many of a node's candidates come before (score, token, source). Its log-probs fall, so those with a larger score
// are a prefix (found by bisection); equal scores are told apart by token, then by node.
fn before(b: u32, node: u32, score: f32, token: u32, source: u32) -> u32 {
    let prefix = stats[stat_at(b, node) + CUMULATIVE];
    var low = 0u;
    var high = p.top;
    while low < high {
        let middle = (low + high) / 2u;
        let at = candidate(b, node, middle);
        if top_edge[at] != NONE && prefix + top_logp[at] > score {
            low = middle + 1u;
        } else {
            high = middle;
        }
    }
    var count = low;
    for (var i = low; i < p.top; i++) {
        let at = candidate(b, node, i);
        if top_edge[at] == NONE || prefix + top_logp[at] != score {
            break;
        }
        let other = trie[p.tokens_at + top_edge[at]];
        count += select(0u, 1u, other < token || (other == token && node < source));
    }
    return count;
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let b = group_number(group);
    let valid = b < p.prompts;
    let header = select(0u, b, valid) * (1u + p.nodes) * RECORD;
    let frontier = tree[header + FRONTIER];
    let count = tree[header + COUNT];
    let end = select(frontier, count, valid);
    // Places that are not kept by what is complete already.
    var places = p.width;
    for (var node = 1u; node < end; node++) {
        places -= select(0u, 1u, places > 0u && is_settled(b, node));
    }
    for (var i = lane; i < (end - frontier) * p.top; i += LANES) {
        let node = frontier + i / p.top;
        let at = candidate(b, node, i % p.top);
        if is_settled(b, node) || top_edge[at] == NONE {
            continue;
        }
        let token = trie[p.tokens_at + top_edge[at]];
        let score = stats[stat_at(b, node) + CUMULATIVE] + top_logp[at];
        var rank = 0u;
        for (var other = frontier; other < end && rank < places; other++) {
            if !is_settled(b, other) {
                rank += before(b, other, score, token, node);
            }
        }
        if rank < places {
            make(b, count + rank, node, top_edge[at], top_logp[at]);
            if is_settled(b, count + rank) {
                idle(b, rank);
            } else {
                run(b, rank, count + rank, token);
            }
        }
    }
    // Every lane has read the header, and all nodes are made.
    storageBarrier();
    if valid {
        var made = 0u;
        for (var node = frontier; node < end; node++) {
            if !is_settled(b, node) {
                let at = tree[node_at(b, node) + TRIE];
                made += min(p.top, trie[at + 1u] - trie[at]);
            }
        }
        made = min(made, places);
        for (var row = made + lane; row < p.width; row += LANES) {
            idle(b, row);
        }
        if lane == 0u {
            tree[header + COUNT] = count + made;
            tree[header + FRONTIER] = count;
            for (var node = count; node < count + made && p.run != 0u; node++) {
                tree[header + COST] += select(1u, 0u, is_settled(b, node));
            }
        }
    }
}
