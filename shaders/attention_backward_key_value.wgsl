// Forest attention, gradient of keys and values: one workgroup per (row, key/value head), which goes over the (query
// row, query head) pairs that attend to it in tiles of 64. A lane recomputes one pair's probability and the gradient of
// its score, then owns columns of dk and dv: no atomics, a fixed order.
struct Params { tokens: u32, heads: u32, kv_heads: u32, head_dim: u32, scale: f32, first_query: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> rows: array<u32>;
@group(0) @binding(2) var<storage, read> q: array<q_t>;
@group(0) @binding(3) var<storage, read> kv: array<kv_t>;
@group(0) @binding(4) var<storage, read> lse: array<f32>;
@group(0) @binding(5) var<storage, read> d_o: array<d_o_t>;
@group(0) @binding(6) var<storage, read> delta: array<f32>;
@group(0) @binding(7) var<storage, read_write> dkv: array<dkv_t>;

//!include grid
//!include rows

var<workgroup> weights: array<f32, 64>;
var<workgroup> slopes: array<f32, 64>;
var<workgroup> places: array<u32, 64>;

// Probability of the key at `ka` (value at `va`) for the query `unit`, and the gradient of its score.
fn pair(unit: u32, ka: u32, va: u32) -> vec2<f32> {
    let at = unit * p.head_dim;
    var s = vec4<f32>();
    var g = vec4<f32>();
    var d = 0u;
    for (; d + 4u <= p.head_dim; d += 4u) {
        s = fma(vec4<f32>(f32(q[at + d]), f32(q[at + d + 1u]), f32(q[at + d + 2u]), f32(q[at + d + 3u])),
                vec4<f32>(f32(kv[ka + d]), f32(kv[ka + d + 1u]), f32(kv[ka + d + 2u]), f32(kv[ka + d + 3u])), s);
        g = fma(vec4<f32>(f32(d_o[at + d]), f32(d_o[at + d + 1u]), f32(d_o[at + d + 2u]), f32(d_o[at + d + 3u])),
                vec4<f32>(f32(kv[va + d]), f32(kv[va + d + 1u]), f32(kv[va + d + 2u]), f32(kv[va + d + 3u])), g);
    }
    var score = (s.x + s.y) + (s.z + s.w);
    var pull = (g.x + g.y) + (g.z + g.w);
    for (; d < p.head_dim; d++) {
        score = fma(f32(q[at + d]), f32(kv[ka + d]), score);
        pull = fma(f32(d_o[at + d]), f32(kv[va + d]), pull);
    }
    let weight = exp(score * p.scale - lse[unit]);
    return vec2<f32>(weight, weight * (pull - delta[unit]) * p.scale);
}

fn query_columns(at: u32, lane: u32) -> vec4<f32> {
    var c = vec4<f32>();
    if lane < p.head_dim { c.x = f32(q[at + lane]); }
    if lane + 64u < p.head_dim { c.y = f32(q[at + lane + 64u]); }
    if lane + 128u < p.head_dim { c.z = f32(q[at + lane + 128u]); }
    if lane + 192u < p.head_dim { c.w = f32(q[at + lane + 192u]); }
    return c;
}

fn output_columns(at: u32, lane: u32) -> vec4<f32> {
    var c = vec4<f32>();
    if lane < p.head_dim { c.x = f32(d_o[at + lane]); }
    if lane + 64u < p.head_dim { c.y = f32(d_o[at + lane + 64u]); }
    if lane + 128u < p.head_dim { c.z = f32(d_o[at + lane + 128u]); }
    if lane + 192u < p.head_dim { c.w = f32(d_o[at + lane + 192u]); }
    return c;
}

fn store(at: u32, lane: u32, c: vec4<f32>) {
    if lane < p.head_dim { dkv[at + lane] = dkv_t(c.x); }
    if lane + 64u < p.head_dim { dkv[at + lane + 64u] = dkv_t(c.y); }
    if lane + 128u < p.head_dim { dkv[at + lane + 128u] = dkv_t(c.z); }
    if lane + 192u < p.head_dim { dkv[at + lane + 192u] = dkv_t(c.w); }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let unit = group_number(group);
    if unit >= p.tokens * p.kv_heads {
        return;
    }
    let row = unit / p.kv_heads;
    let head = unit % p.kv_heads;
    let shared_by = p.heads / p.kv_heads;
    let key = (2u * row * p.kv_heads + head) * p.head_dim;
    let value = key + p.kv_heads * p.head_dim;
    // Two ranges of queries: near ones, and the tree's where it lies apart.
    let record = row * ROW;
    let first = max(rows[record + Q_BEGIN], p.first_query);
    let near = max(rows[record + Q_END], first) - first;
    let tree = rows[record + TREE_BEGIN];
    let pairs = (near + rows[record + TREE_END] - tree) * shared_by;

    var dk = vec4<f32>();
    var dv = vec4<f32>();
    for (var base = 0u; base < pairs; base += 64u) {
        let n = base + lane;
        if n < pairs {
            let i = n / shared_by;
            let query_row = select(tree + (i - near), first + i, i < near);
            let query = query_row * p.heads + head * shared_by + n % shared_by;
            let both = pair(query, key, value);
            weights[lane] = both.x;
            slopes[lane] = both.y;
            places[lane] = query * p.head_dim;
        }
        workgroupBarrier();
        for (var k = 0u; k < min(pairs - base, 64u); k++) {
            dk = fma(vec4<f32>(slopes[k]), query_columns(places[k], lane), dk);
            dv = fma(vec4<f32>(weights[k]), output_columns(places[k], lane), dv);
        }
        workgroupBarrier();
    }
    store(key, lane, dk);
    store(value, lane, dv);
}
