// Forest attention, gradient of the queries, for GPUs: a workgroup owns a tile of 32 neighbouring rows of one query head
// and goes over their keys as attention_tiled.wgsl does. Probabilities come from lse, so rows need not agree on a maximum.
struct Params { tokens: u32, heads: u32, kv_heads: u32, head_dim: u32, scale: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> rows: array<u32>;
@group(0) @binding(2) var<storage, read> parent: array<u32>;
@group(0) @binding(3) var<storage, read> q: array<vec4<q_t>>;
@group(0) @binding(4) var<storage, read> kv: array<vec4<kv_t>>;
@group(0) @binding(5) var<storage, read> lse: array<f32>;
@group(0) @binding(6) var<storage, read> d_o: array<vec4<d_o_t>>;
@group(0) @binding(7) var<storage, read> delta: array<f32>;
@group(0) @binding(8) var<storage, read_write> dq: array<vec4<dq_t>>;

//!include grid
//!include rows
//!include walk
//!include total
//!include tile
//!include tile_gradients
//!include tile_lists

// q . k and d_o . v of one slot.
fn products(unit: u32, slot: u32, key: u32) -> vec2<f32> {
    let width = p.head_dim / 4u;
    let query = unit * width;
    let key_at = (slot * 2u * p.kv_heads + key) * width;
    let value_at = key_at + p.kv_heads * width;
    var scores = vec4<f32>();
    var pulls = vec4<f32>();
    for (var d = 0u; d < width; d++) {
        scores = fma(vec4<f32>(q[query + d]), vec4<f32>(kv[key_at + d]), scores);
        pulls = fma(vec4<f32>(d_o[query + d]), vec4<f32>(kv[value_at + d]), pulls);
    }
    return vec2<f32>(total(scores), total(pulls));
}

// Gradient of a score whose slot is listed; 0 where there is none.
fn slope(row: u32, head: u32, slot: u32, key: u32, own_lse: f32, own_delta: f32) -> f32 {
    if slot == NONE {
        return 0.0;
    }
    let product = products(row * p.heads + head, slot, key);
    let weight = exp(product.x * p.scale - own_lse);
    return weight * (product.y - own_delta) * p.scale;
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let number = group_number(group);
    let head = number % p.heads;
    let first = number / p.heads * ROWS;
    let key = head / (p.heads / p.kv_heads);
    let value = key + p.kv_heads;
    let width = p.head_dim / 4u;
    let own = own_rows(first, lane);
    var own_lse: vec4<f32>;
    var own_delta: vec4<f32>;
    for (var i = 0u; i < 4u; i++) {
        if own.row[i] < p.tokens {
            own_lse[i] = lse[own.row[i] * p.heads + head];
            own_delta[i] = delta[own.row[i] * p.heads + head];
        }
    }
    var left = ahead(own.begin, own.end, 0u, own.chained, lane);
    let dense = is_dense(left);
    var listing = left.w > 0u || (left.z > 0u && !dense);

    var out: array<Block, MOST_PIECES>;
    while dense && left.z > 0u {
        var slopes = Block();
        var pulls = Block();
        for (var piece = 0u; piece * SIDE < width; piece++) {
            load_queries(NEAR, first, p.tokens, head, piece, lane);
            load_keys(FAR, left.x, left.y, key, piece, lane);
            workgroupBarrier();
            multiply(&slopes, lane);
            workgroupBarrier();
            load_gradients(NEAR, first, p.tokens, head, piece, lane);
            load_keys(FAR, left.x, left.y, value, piece, lane);
            workgroupBarrier();
            multiply(&pulls, lane);
            workgroupBarrier();
        }
        for (var i = 0u; i < 4u; i++) {
            let weight = exp(slopes[i] * p.scale - own_lse[i]);
            let slope = weight * (pulls[i] - own_delta[i]) * p.scale;
            slopes[i] = select(vec4<f32>(), slope, seen(own.begin[i], own.end[i], left.x, lane));
        }
        store_weights(slopes, lane);
        for (var piece = 0u; piece < PIECES; piece++) {
            if piece * SIDE < width {
                load_keys(FAR, left.x, left.y, key, piece, lane);
                workgroupBarrier();
                out[piece] = weigh(out[piece], lane);
                workgroupBarrier();
            }
        }
        left = ahead(own.begin, own.end, left.x + ROWS, 0u, lane);
    }
    var walk = to_list(first + lane, dense);
    while listing {
        list(&walk, lane);
        let slot = listed(lane % SIDE, lane);
        let slopes = vec4<f32>(slope(own.row.x, head, slot.x, key, own_lse.x, own_delta.x),
                               slope(own.row.y, head, slot.y, key, own_lse.y, own_delta.y),
                               slope(own.row.z, head, slot.z, key, own_lse.z, own_delta.z),
                               slope(own.row.w, head, slot.w, key, own_lse.w, own_delta.w));
        weigh_listed(&out, slopes, key, lane);
        listing = is_more(lane);
    }

    for (var i = 0u; i < 4u; i++) {
        if own.row[i] < p.tokens {
            for (var piece = 0u; piece < PIECES; piece++) {
                let column = piece * SIDE + lane % SIDE;
                if column < width {
                    dq[(own.row[i] * p.heads + head) * width + column] = vec4<dq_t>(out[piece][i]);
                }
            }
        }
    }
}
