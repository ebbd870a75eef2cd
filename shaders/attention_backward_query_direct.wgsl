// Forest attention, gradient of the queries, without barriers: one invocation per (token, query head, 64 columns), keys
// four at a time, as attention_direct.wgsl.
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

const BLOCK = 16u;

@compute @workgroup_size(32)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let number = group_number(group) * 32u + lane;
    let width = p.head_dim / 4u;
    let blocks = (width + BLOCK - 1u) / BLOCK;
    let unit = number / blocks;
    if unit >= p.tokens * p.heads {
        return;
    }
    let first = number % blocks * BLOCK;
    let count = min(width - first, BLOCK);
    let stride = 2u * p.kv_heads * width;
    let key = (unit % p.heads) / (p.heads / p.kv_heads) * width;
    let value = key + p.kv_heads * width;
    let at = unit * width;
    let own_lse = lse[unit];
    let own_delta = delta[unit];

    var out: array<vec4<f32>, BLOCK>;
    var walk = walk_of(unit / p.heads * ROW);
    for (var slots = next_slots(&walk); slots.x != NONE; slots = next_slots(&walk)) {
        let present = slots != vec4<u32>(NONE);
        let base = select(slots.xxxx, slots, present) * stride;
        var s0 = vec4<f32>();
        var s1 = vec4<f32>();
        var s2 = vec4<f32>();
        var s3 = vec4<f32>();
        var g0 = vec4<f32>();
        var g1 = vec4<f32>();
        var g2 = vec4<f32>();
        var g3 = vec4<f32>();
        for (var d = 0u; d < width; d++) {
            let query = vec4<f32>(q[at + d]);
            let gradient = vec4<f32>(d_o[at + d]);
            s0 = fma(query, vec4<f32>(kv[base.x + key + d]), s0);
            s1 = fma(query, vec4<f32>(kv[base.y + key + d]), s1);
            s2 = fma(query, vec4<f32>(kv[base.z + key + d]), s2);
            s3 = fma(query, vec4<f32>(kv[base.w + key + d]), s3);
            g0 = fma(gradient, vec4<f32>(kv[base.x + value + d]), g0);
            g1 = fma(gradient, vec4<f32>(kv[base.y + value + d]), g1);
            g2 = fma(gradient, vec4<f32>(kv[base.z + value + d]), g2);
            g3 = fma(gradient, vec4<f32>(kv[base.w + value + d]), g3);
        }
        let scores = vec4<f32>(total(s0), total(s1), total(s2), total(s3)) * p.scale;
        let pulls = vec4<f32>(total(g0), total(g1), total(g2), total(g3));
        let all = exp(scores - own_lse) * (pulls - own_delta) * p.scale;
        let slopes = select(vec4<f32>(), all, present);
        for (var c = 0u; c < BLOCK; c++) {
            if c < count {
                let from_key = base + key + first + c;
                var v = fma(slopes.xxxx, vec4<f32>(kv[from_key.x]), out[c]);
                v = fma(slopes.yyyy, vec4<f32>(kv[from_key.y]), v);
                v = fma(slopes.zzzz, vec4<f32>(kv[from_key.z]), v);
                out[c] = fma(slopes.wwww, vec4<f32>(kv[from_key.w]), v);
            }
        }
    }
    for (var c = 0u; c < BLOCK; c++) {
        if c < count {
            dq[at + first + c] = vec4<dq_t>(out[c]);
        }
    }
}
