// Forest attention, gradient of the queries: as the forward, one workgroup per (token, query head) and keys in tiles of
// 64. A lane recomputes one key's probability from lse and with it the gradient of its score, then owns columns of dq.
struct Params { tokens: u32, heads: u32, kv_heads: u32, head_dim: u32, scale: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> rows: array<u32>;
@group(0) @binding(2) var<storage, read> parent: array<u32>;
@group(0) @binding(3) var<storage, read> q: array<q_t>;
@group(0) @binding(4) var<storage, read> kv: array<kv_t>;
@group(0) @binding(5) var<storage, read> lse: array<f32>;
@group(0) @binding(6) var<storage, read> d_o: array<d_o_t>;
@group(0) @binding(7) var<storage, read> delta: array<f32>;
@group(0) @binding(8) var<storage, read_write> dq: array<dq_t>;

//!include grid
//!include rows
//!include keys

var<workgroup> slopes: array<f32, 64>;
var<workgroup> places: array<u32, 64>;

// Gradient of the score of the key at `ka`, whose value is at `va`.
fn slope(unit: u32, ka: u32, va: u32) -> f32 {
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
    return exp(score * p.scale - lse[unit]) * (pull - delta[unit]) * p.scale;
}

fn columns(at: u32, lane: u32) -> vec4<f32> {
    var c = vec4<f32>();
    if lane < p.head_dim { c.x = f32(kv[at + lane]); }
    if lane + 64u < p.head_dim { c.y = f32(kv[at + lane + 64u]); }
    if lane + 128u < p.head_dim { c.z = f32(kv[at + lane + 128u]); }
    if lane + 192u < p.head_dim { c.w = f32(kv[at + lane + 192u]); }
    return c;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let unit = group_number(group);
    if unit >= p.tokens * p.heads {
        return;
    }
    let row = unit / p.heads * ROW;
    let stride = 2u * p.kv_heads * p.head_dim;
    let key = (unit % p.heads) / (p.heads / p.kv_heads) * p.head_dim;
    let value = key + p.kv_heads * p.head_dim;

    var out = vec4<f32>();
    var own = NONE;
    var keys = next_keys(keys_of(rows[row + KV_BEGIN], rows[row + KV_END], rows[row + CHAIN]), &own, lane);
    while keys.count > 0u {
        if lane < keys.count {
            let at = own * stride;
            slopes[lane] = slope(unit, at + key, at + value);
            places[lane] = at + key;
        }
        workgroupBarrier();
        for (var k = 0u; k < keys.count; k++) {
            out = fma(vec4<f32>(slopes[k]), columns(places[k], lane), out);
        }
        keys = next_keys(keys, &own, lane);
        workgroupBarrier();
    }
    let at = unit * p.head_dim;
    if lane < p.head_dim { dq[at + lane] = dq_t(out.x); }
    if lane + 64u < p.head_dim { dq[at + lane + 64u] = dq_t(out.y); }
    if lane + 128u < p.head_dim { dq[at + lane + 128u] = dq_t(out.z); }
    if lane + 192u < p.head_dim { dq[at + lane + 192u] = dq_t(out.w); }
}
