// Forest attention, gradient of keys and values, for GPUs: a workgroup owns a tile of 32 neighbouring rows of one
// key/value head (tile.wgsl). The queries that attend to any of them are gone through 32 at a time, each loaded once for
// the tile and what does not attend to a row masked: a fixed order, no atomics.
struct Params { tokens: u32, heads: u32, kv_heads: u32, head_dim: u32, scale: f32, first_query: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> rows: array<u32>;
@group(0) @binding(2) var<storage, read> q: array<vec4<q_t>>;
@group(0) @binding(3) var<storage, read> kv: array<vec4<kv_t>>;
@group(0) @binding(4) var<storage, read> lse: array<f32>;
@group(0) @binding(5) var<storage, read> d_o: array<vec4<d_o_t>>;
@group(0) @binding(6) var<storage, read> delta: array<f32>;
@group(0) @binding(7) var<storage, read_write> dkv: array<vec4<dkv_t>>;

//!include grid
//!include rows
//!include tile
//!include tile_gradients

// A word of a row's record; 0 past the last row.
fn word(row: u32, at: u32) -> u32 {
    if row >= p.tokens {
        return 0u;
    }
    return rows[row * ROW + at];
}

// lse and delta of a query; zeros from `end` on.
fn normal(query: u32, end: u32, head: u32) -> vec2<f32> {
    if query >= end {
        return vec2<f32>();
    }
    return vec2<f32>(lse[query * p.heads + head], delta[query * p.heads + head]);
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let number = group_number(group);
    let key = number % p.kv_heads;
    let first = number / p.kv_heads * ROWS;
    let value = key + p.kv_heads;
    let shared_by = p.heads / p.kv_heads;
    let width = p.head_dim / 4u;
    let own = first + lane / SIDE + OFFSETS;

    var dk: array<Block, MOST_PIECES>;
    var dv: array<Block, MOST_PIECES>;
    // Two ranges of queries: near ones, and the tree's where it lies apart.
    for (var range = 0u; range < 2u; range++) {
        let b = select(Q_BEGIN, TREE_BEGIN, range > 0u);
        let e = select(Q_END, TREE_END, range > 0u);
        let begin = vec4<u32>(word(own.x, b), word(own.y, b), word(own.z, b), word(own.w, b));
        let end = vec4<u32>(word(own.x, e), word(own.y, e), word(own.z, e), word(own.w, e));
        var left = ahead(begin, end, select(p.first_query, 0u, range > 0u), 0u, lane);
        while left.z > 0u {
            let query = left.x + lane % SIDE + OFFSETS;
            for (var sharer = 0u; sharer < shared_by; sharer++) {
                let head = key * shared_by + sharer;
                var weights = Block();
                var slopes = Block();
                for (var piece = 0u; piece * SIDE < width; piece++) {
                    load_keys(NEAR, first, p.tokens, key, piece, lane);
                    load_queries(FAR, left.x, left.y, head, piece, lane);
                    workgroupBarrier();
                    multiply(&weights, lane);
                    workgroupBarrier();
                    load_keys(NEAR, first, p.tokens, value, piece, lane);
                    load_gradients(FAR, left.x, left.y, head, piece, lane);
                    workgroupBarrier();
                    multiply(&slopes, lane);
                    workgroupBarrier();
                }
                let a = normal(query.x, left.y, head);
                let b = normal(query.y, left.y, head);
                let c = normal(query.z, left.y, head);
                let d = normal(query.w, left.y, head);
                let query_lse = vec4<f32>(a.x, b.x, c.x, d.x);
                let query_delta = vec4<f32>(a.y, b.y, c.y, d.y);
                for (var i = 0u; i < 4u; i++) {
                    let weight = exp(weights[i] * p.scale - query_lse);
                    weights[i] = select(vec4<f32>(), weight, seen(begin[i], end[i], left.x, lane));
                    slopes[i] = weights[i] * (slopes[i] - query_delta) * p.scale;
                }
                store_weights(weights, lane);
                for (var piece = 0u; piece < PIECES; piece++) {
                    if piece * SIDE < width {
                        load_gradients(FAR, left.x, left.y, head, piece, lane);
                        workgroupBarrier();
                        dv[piece] = weigh(dv[piece], lane);
                        workgroupBarrier();
                    }
                }
                store_weights(slopes, lane);
                for (var piece = 0u; piece < PIECES; piece++) {
                    if piece * SIDE < width {
                        load_queries(FAR, left.x, left.y, head, piece, lane);
                        workgroupBarrier();
                        dk[piece] = weigh(dk[piece], lane);
                        workgroupBarrier();
                    }
                }
            }
            left = ahead(begin, end, left.x + ROWS, 0u, lane);
        }
    }

    for (var i = 0u; i < 4u; i++) {
        if own[i] < p.tokens {
            let slot = own[i] * 2u * p.kv_heads;
            for (var piece = 0u; piece < PIECES; piece++) {
                let column = piece * SIDE + lane % SIDE;
                if column < width {
                    dkv[(slot + key) * width + column] = vec4<dkv_t>(dk[piece][i]);
                    dkv[(slot + value) * width + column] = vec4<dkv_t>(dv[piece][i]);
                }
            }
        }
    }
}
