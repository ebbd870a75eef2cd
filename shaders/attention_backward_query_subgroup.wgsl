// Forest attention, gradient of the queries, for subgroups of 8 and more: eight neighbouring tokens per workgroup, keys
// eight at a time, as attention_subgroup.wgsl.
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
//!include eight

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    let number = group_number(group);
    let head = number % p.heads;
    let first = number / p.heads * LANES;
    if first >= p.tokens {
        return;
    }
    let row = first + lane;
    let exists = row < p.tokens;
    let record = min(row, p.tokens - 1u) * ROW;
    let width = p.head_dim / 4u;
    let stride = 2u * p.kv_heads * width;
    let key = head / (p.heads / p.kv_heads) * width;
    let value = key + p.kv_heads * width;
    let unit = min(row, p.tokens - 1u) * p.heads + head;
    let at = unit * width;
    let own_lse = lse[unit];
    let own_delta = delta[unit];
    let begin = rows[record + KV_BEGIN];
    let end = rows[record + KV_END];
    let all = covering(begin, end);

    var query: array<vec4<f32>, WIDTH>;
    var gradient: array<vec4<f32>, WIDTH>;
    for (var d = 0u; d < width; d++) {
        query[d] = vec4<f32>(q[at + d]);
        gradient[d] = vec4<f32>(d_o[at + d]);
    }
    var out: array<vec4<f32>, WIDTH>;
    for (var base = all.x; base < all.y; base += LANES) {
        let own = min(base + lane, all.y - 1u) * stride;
        var slopes = array<f32, LANES>();
        var pulls = array<f32, LANES>();
        for (var d = 0u; d < width; d++) {
            let keys = vec4<f32>(kv[own + key + d]);
            let values = vec4<f32>(kv[own + value + d]);
            let own_query = query[d];
            let own_gradient = gradient[d];
            for (var i = 0u; i < LANES; i++) {
                slopes[i] = dot_onto(subgroupShuffle(keys, i), own_query, slopes[i]);
                pulls[i] = dot_onto(subgroupShuffle(values, i), own_gradient, pulls[i]);
            }
        }
        for (var i = 0u; i < LANES; i++) {
            let seen = base + i >= begin && base + i < end;
            let weight = select(0.0, exp(slopes[i] * p.scale - own_lse), seen);
            slopes[i] = weight * (pulls[i] - own_delta) * p.scale;
        }
        for (var c = 0u; c < width; c++) {
            let keys = vec4<f32>(kv[own + key + c]);
            var v = out[c];
            for (var i = 0u; i < LANES; i++) {
                v = fma(vec4<f32>(slopes[i]), subgroupShuffle(keys, i), v);
            }
            out[c] = v;
        }
    }
    for (var slot = rows[record + CHAIN]; slot != NONE; slot = parent[slot]) {
        let own = slot * stride;
        var score = 0.0;
        var pull = 0.0;
        for (var d = 0u; d < width; d++) {
            score = dot_onto(query[d], vec4<f32>(kv[own + key + d]), score);
            pull = dot_onto(gradient[d], vec4<f32>(kv[own + value + d]), pull);
        }
        let slope = exp(score * p.scale - own_lse) * (pull - own_delta) * p.scale;
        for (var c = 0u; c < width; c++) {
            out[c] = fma(vec4<f32>(slope), vec4<f32>(kv[own + key + c]), out[c]);
        }
    }
    if exists {
        for (var c = 0u; c < width; c++) {
            dq[at + c] = vec4<dq_t>(out[c]);
        }
    }
}
