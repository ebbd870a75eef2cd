// Forest attention, forward, for SIMD on the host's processor, where barriers cost more than arithmetic: one invocation
// per (token, query head, 64 columns), keys four at a time (online softmax). Head size a multiple of 4. Heads wider than
// 64 recompute their scores for each block of columns.
struct Params { tokens: u32, heads: u32, kv_heads: u32, head_dim: u32, scale: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> rows: array<u32>;
@group(0) @binding(2) var<storage, read> parent: array<u32>;
@group(0) @binding(3) var<storage, read> q: array<vec4<q_t>>;
@group(0) @binding(4) var<storage, read> kv: array<vec4<kv_t>>;
@group(0) @binding(5) var<storage, read_write> o: array<vec4<o_t>>;
@group(0) @binding(6) var<storage, read_write> lse: array<f32>;

//!include grid
//!include rows
//!include walk
//!include total

const MASKED: f32 = -1e30;
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
    let value = key + p.kv_heads * width + first;
    let at = unit * width;

    var top = MASKED;
    var sum = 0.0;
    var out: array<vec4<f32>, BLOCK>;
    var walk = walk_of(unit / p.heads * ROW);
    for (var slots = next_slots(&walk); slots.x != NONE; slots = next_slots(&walk)) {
        let present = slots != vec4<u32>(NONE);
        let base = select(slots.xxxx, slots, present) * stride;
        var s0 = vec4<f32>();
        var s1 = vec4<f32>();
        var s2 = vec4<f32>();
        var s3 = vec4<f32>();
        for (var d = 0u; d < width; d++) {
            let query = vec4<f32>(q[at + d]);
            s0 = fma(query, vec4<f32>(kv[base.x + key + d]), s0);
            s1 = fma(query, vec4<f32>(kv[base.y + key + d]), s1);
            s2 = fma(query, vec4<f32>(kv[base.z + key + d]), s2);
            s3 = fma(query, vec4<f32>(kv[base.w + key + d]), s3);
        }
        let all = vec4<f32>(total(s0), total(s1), total(s2), total(s3)) * p.scale;
        let scores = select(vec4<f32>(MASKED), all, present);
        let before = top;
        top = max(max(max(top, scores.x), max(scores.y, scores.z)), scores.w);
        let keep = exp(before - top);
        let weights = select(vec4<f32>(), exp(scores - top), present);
        sum = fma(sum, keep, total(weights));
        for (var c = 0u; c < BLOCK; c++) {
            if c < count {
                var v = out[c] * keep;
                v = fma(weights.xxxx, vec4<f32>(kv[base.x + value + c]), v);
                v = fma(weights.yyyy, vec4<f32>(kv[base.y + value + c]), v);
                v = fma(weights.zzzz, vec4<f32>(kv[base.z + value + c]), v);
                out[c] = fma(weights.wwww, vec4<f32>(kv[base.w + value + c]), v);
            }
        }
    }
    if first == 0u {
        lse[unit] = select(MASKED, top + log(max(sum, 1e-30)), sum > 0.0);
    }
    let share = select(0.0, 1.0 / max(sum, 1e-30), sum > 0.0);
    for (var c = 0u; c < BLOCK; c++) {
        if c < count {
            o[at + first + c] = vec4<o_t>(out[c] * share);
        }
    }
}
