// Forest attention, gradient of keys and values, for subgroups of 8 and more: one invocation per (row, key/value head),
// eight neighbouring rows per workgroup. The queries that attend to any of them are taken eight at a time, as the keys in
// attention_subgroup.wgsl.
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
//!include eight

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    let number = group_number(group);
    let head = number % p.kv_heads;
    let first = number / p.kv_heads * LANES;
    if first >= p.tokens {
        return;
    }
    let row = first + lane;
    let exists = row < p.tokens;
    let record = min(row, p.tokens - 1u) * ROW;
    let width = p.head_dim / 4u;
    let shared_by = p.heads / p.kv_heads;
    let key = (2u * min(row, p.tokens - 1u) * p.kv_heads + head) * width;
    let value = key + p.kv_heads * width;

    var own_key: array<vec4<f32>, WIDTH>;
    var own_value: array<vec4<f32>, WIDTH>;
    for (var d = 0u; d < width; d++) {
        own_key[d] = vec4<f32>(kv[key + d]);
        own_value[d] = vec4<f32>(kv[value + d]);
    }
    var dk: array<vec4<f32>, WIDTH>;
    var dv: array<vec4<f32>, WIDTH>;
    // Two ranges of queries: near ones, and the tree's where it lies apart.
    for (var range = 0u; range < 2u; range++) {
        let least = select(p.first_query, 0u, range > 0u);
        let begin = max(rows[record + select(Q_BEGIN, TREE_BEGIN, range > 0u)], least);
        let end = rows[record + select(Q_END, TREE_END, range > 0u)];
        let all = covering(begin, end);
        for (var base = all.x; base < all.y; base += LANES) {
            let query_row = min(base + lane, all.y - 1u) * p.heads + head * shared_by;
            for (var sharer = 0u; sharer < shared_by; sharer++) {
                let query = query_row + sharer;
                let at = query * width;
                let query_lse = lse[query];
                let query_delta = delta[query];
                var weights = array<f32, LANES>();
                var slopes = array<f32, LANES>();
                for (var d = 0u; d < width; d++) {
                    let queries = vec4<f32>(q[at + d]);
                    let gradients = vec4<f32>(d_o[at + d]);
                    let keys = own_key[d];
                    let values = own_value[d];
                    for (var i = 0u; i < LANES; i++) {
                        weights[i] = dot_onto(subgroupShuffle(queries, i), keys, weights[i]);
                        slopes[i] = dot_onto(subgroupShuffle(gradients, i), values, slopes[i]);
                    }
                }
                for (var i = 0u; i < LANES; i++) {
                    let seen = base + i >= begin && base + i < end;
                    let score = weights[i] * p.scale - subgroupShuffle(query_lse, i);
                    weights[i] = select(0.0, exp(score), seen);
                    slopes[i] = weights[i] * (slopes[i] - subgroupShuffle(query_delta, i)) * p.scale;
                }
                for (var c = 0u; c < width; c++) {
                    let queries = vec4<f32>(q[at + c]);
                    let gradients = vec4<f32>(d_o[at + c]);
                    var k = dk[c];
                    var v = dv[c];
                    for (var i = 0u; i < LANES; i++) {
                        k = fma(vec4<f32>(slopes[i]), subgroupShuffle(queries, i), k);
                        v = fma(vec4<f32>(weights[i]), subgroupShuffle(gradients, i), v);
                    }
                    dk[c] = k;
                    dv[c] = v;
                }
            }
        }
    }
    if exists {
        for (var c = 0u; c < width; c++) {
            dkv[key + c] = vec4<dkv_t>(dk[c]);
            dkv[value + c] = vec4<dkv_t>(dv[c]);
        }
    }
}
