// One level of beam search (src/kernels/beam.rs): one workgroup per prompt, lanes stride over the candidates, and a
// candidate's rank is the number of candidates before it.
struct Params { prompts: u32, nodes: u32, slot_base: u32, width: u32, tokens_at: u32, entries: u32, top: u32, run: u32 }
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

const LANES: u32 = 64u;

// Candidate i of entry e of prompt b.
fn candidate(b: u32, e: u32, i: u32) -> u32 {
    return (b * p.entries + e) * p.top + i;
}

// How many of entry e's candidates come before (score, token, source). Its log-probs fall, so those with a larger score
// are a prefix (found by bisection); equal scores are told apart by token, then by entry.
fn before(b: u32, e: u32, prefix: f32, score: f32, token: u32, source: u32) -> u32 {
    var low = 0u;
    var high = p.top;
    while low < high {
        let middle = (low + high) / 2u;
        if top_edge[candidate(b, e, middle)] != NONE && prefix + top_logp[candidate(b, e, middle)] > score {
            low = middle + 1u;
        } else {
            high = middle;
        }
    }
    var count = low;
    for (var i = low; i < p.top; i++) {
        let edge = top_edge[candidate(b, e, i)];
        if edge == NONE || prefix + top_logp[candidate(b, e, i)] != score {
            break;
        }
        let other = trie[p.tokens_at + edge];
        count += select(0u, 1u, other < token || (other == token && e < source));
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
    let entries = select(0u, count - frontier, valid);
    for (var i = lane; i < entries * p.top; i += LANES) {
        let e = i / p.top;
        let edge = top_edge[candidate(b, e, i % p.top)];
        if edge == NONE {
            continue;
        }
        let logp = top_logp[candidate(b, e, i % p.top)];
        let token = trie[p.tokens_at + edge];
        let score = stats[stat_at(b, frontier + e) + CUMULATIVE] + logp;
        var rank = 0u;
        for (var other = 0u; other < entries && rank < p.width; other++) {
            rank += before(b, other, stats[stat_at(b, frontier + other) + CUMULATIVE], score, token, e);
        }
        if rank < p.width {
            make(b, count + rank, frontier + e, edge, logp);
            run(b, rank, count + rank, token);
        }
    }
    // Every lane has read the header.
    storageBarrier();
    if valid {
        var made = 0u;
        for (var e = 0u; e < entries; e++) {
            let at = tree[node_at(b, frontier + e) + TRIE];
            made += min(p.top, trie[at + 1u] - trie[at]);
        }
        made = min(made, p.width);
        for (var row = made + lane; row < p.width; row += LANES) {
            idle(b, row);
        }
        if lane == 0u {
            tree[header + COUNT] = count + made;
            tree[header + FRONTIER] = count;
            tree[header + COST] += select(0u, made, p.run != 0u);
        }
    }
}
