// Scores the legal children of each row (src/kernels/expand.rs); the first row of logits is row `first` of everything else.
// One workgroup per row; lanes stride over the vocabulary and over the children.
struct Params { rows: u32, vocab: u32, fanout: u32, tokens_at: u32, top: u32, keep: u32, renormalise: u32, valued: u32,
                lambda: f32, first: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> value: array<f32>;
@group(0) @binding(3) var<storage, read> entry: array<u32>;
@group(0) @binding(4) var<storage, read> trie: array<u32>;
@group(0) @binding(5) var<storage, read_write> child_logp: array<f32>;
@group(0) @binding(6) var<storage, read_write> stats: array<f32>;
@group(0) @binding(7) var<storage, read_write> top_edge: array<u32>;
@group(0) @binding(8) var<storage, read_write> top_logp: array<f32>;

//!include grid
//!include search

// Lanes reduce in two steps, 8 x 8, then 8: fewer barriers than a tree, less work than every lane reading all.
const LANES: u32 = 64u;
const PARTS: u32 = 8u;
const MASKED: f32 = -1e30;
var<workgroup> high_of: array<vec2<f32>, LANES>;
var<workgroup> high_of_part: array<vec2<f32>, PARTS>;
var<workgroup> sum_of: array<vec3<f32>, LANES>;
var<workgroup> sum_of_part: array<vec3<f32>, PARTS>;

// Not a number and the infinities become MASKED, so that a diverged model still spells valid SIDs.
fn finite(x: f32) -> f32 {
    return select(x, MASKED, (bitcast<u32>(x) & 0x7f800000u) == 0x7f800000u);
}

fn legal_logit(row: u32, edge: u32) -> f32 {
    return finite(logits[row * p.vocab + trie[p.tokens_at + edge]]);
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group_number(group);
    var place = NONE;
    var begin = 0u;
    var children = 0u;
    if row < p.rows {
        place = entry[2u * (p.first + row)];
        if place != NONE {
            let at = entry[2u * (p.first + row) + 1u];
            begin = trie[at];
            children = trie[at + 1u] - begin;
        }
    }
    // Leaves and inactive rows read no logits.
    let vocab = select(0u, p.vocab, children > 0u);

    // Largest logit of the vocabulary and of the children.
    var high = vec2<f32>(MASKED);
    for (var i = lane; i < vocab; i += LANES) {
        high.x = max(high.x, logits[row * p.vocab + i]);
    }
    for (var c = lane; c < children; c += LANES) {
        high.y = max(high.y, legal_logit(row, begin + c));
    }
    high_of[lane] = high;
    workgroupBarrier();
    if lane < PARTS {
        for (var i = 0u; i < LANES / PARTS; i++) {
            high = max(high, high_of[lane * (LANES / PARTS) + i]);
        }
        high_of_part[lane] = high;
    }
    workgroupBarrier();
    for (var i = 0u; i < PARTS; i++) {
        high = max(high, high_of_part[i]);
    }

    // Sum over the vocabulary; sum and weighted sum over the children.
    var sum = vec3<f32>(0.0);
    for (var i = lane; i < vocab; i += LANES) {
        sum.x += exp(logits[row * p.vocab + i] - high.x);
    }
    for (var c = lane; c < children; c += LANES) {
        let x = legal_logit(row, begin + c) - high.y;
        let e = exp(x);
        sum.y += e;
        sum.z += e * x;
    }
    sum_of[lane] = sum;
    workgroupBarrier();
    if lane < PARTS {
        sum = vec3<f32>(0.0);
        for (var i = 0u; i < LANES / PARTS; i++) {
            sum += sum_of[lane * (LANES / PARTS) + i];
        }
        sum_of_part[lane] = sum;
    }
    workgroupBarrier();
    sum = vec3<f32>(0.0);
    for (var i = 0u; i < PARTS; i++) {
        sum += sum_of_part[i];
    }

    if place != NONE && lane == 0u {
        let v = select(0.0, finite(value[p.first + min(row, p.valued - 1u)]), p.valued > 0u);
        // One child has no entropy; log(1) need not be 0 on a GPU.
        let h = select(0.0, finite(log(sum.y) - sum.z / sum.y), children > 1u);
        stats[place * STATS + VALUE] = v;
        stats[place * STATS + ENTROPY] = h;
        stats[place * STATS + SCORE] = v + p.lambda * h;
    }
    var normaliser = high.x + log(sum.x);
    if p.renormalise != 0u {
        normaliser = high.y + log(sum.y);
    }
    let out = select(p.first + row, place, p.keep != 0u) * p.fanout;
    let top = place * p.top;
    for (var c = lane; c < children; c += LANES) {
        let x = legal_logit(row, begin + c);
        child_logp[out + c] = finite(x - normaliser);
        if p.top > 0u {
            // The child's place in the order is the number of children before it.
            var rank = 0u;
            for (var other = 0u; other < children; other++) {
                let y = legal_logit(row, begin + other);
                rank += select(0u, 1u, y > x || (y == x && other < c));
            }
            if rank < p.top {
                top_edge[top + rank] = begin + c;
                top_logp[top + rank] = finite(x - normaliser);
            }
        }
    }
    if place != NONE {
        for (var i = children + lane; i < p.top; i += LANES) {
            top_edge[top + i] = NONE;
            top_logp[top + i] = MASKED;
        }
    }
}
