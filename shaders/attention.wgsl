// Forest attention, forward: one workgroup per (token, query head), keys in tiles of 64. A lane scores one key of the
// tile, then owns the columns lane, lane + 64, .. of the output (online softmax). Lanes take the tile's maximum and sum
// redundantly: one barrier instead of a reduction tree.
struct Params { tokens: u32, heads: u32, kv_heads: u32, head_dim: u32, scale: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> rows: array<u32>;
@group(0) @binding(2) var<storage, read> parent: array<u32>;
@group(0) @binding(3) var<storage, read> q: array<q_t>;
@group(0) @binding(4) var<storage, read> kv: array<kv_t>;
@group(0) @binding(5) var<storage, read_write> o: array<o_t>;
@group(0) @binding(6) var<storage, read_write> lse: array<f32>;

//!include grid
//!include rows
//!include keys

const MASKED: f32 = -1e30;
var<workgroup> scores: array<f32, 64>;
var<workgroup> values: array<u32, 64>;

fn score(qa: u32, ka: u32) -> f32 {
    var sums = vec4<f32>();
    var d = 0u;
    for (; d + 4u <= p.head_dim; d += 4u) {
        sums = fma(vec4<f32>(f32(q[qa + d]), f32(q[qa + d + 1u]), f32(q[qa + d + 2u]), f32(q[qa + d + 3u])),
                   vec4<f32>(f32(kv[ka + d]), f32(kv[ka + d + 1u]), f32(kv[ka + d + 2u]), f32(kv[ka + d + 3u])), sums);
    }
    var total = (sums.x + sums.y) + (sums.z + sums.w);
    for (; d < p.head_dim; d++) {
        total = fma(f32(q[qa + d]), f32(kv[ka + d]), total);
    }
    return total * p.scale;
}

// This lane's columns (up to four: heads are at most 256 wide) of the head at `at`.
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
    let at = unit * p.head_dim;

    var top = MASKED;
    var sum = 0.0;
    var out = vec4<f32>();
    var own = NONE;
    var keys = next_keys(keys_of(rows[row + KV_BEGIN], rows[row + KV_END], rows[row + CHAIN]), &own, lane);
    while keys.count > 0u {
        if lane < keys.count {
            scores[lane] = score(at, own * stride + key);
            values[lane] = own * stride + value;
        }
        workgroupBarrier();
        let before = top;
        for (var k = 0u; k < keys.count; k++) {
            top = max(top, scores[k]);
        }
        let keep = exp(before - top);
        sum *= keep;
        out *= keep;
        for (var k = 0u; k < keys.count; k++) {
            let weight = exp(scores[k] - top);
            sum += weight;
            out = fma(vec4<f32>(weight), columns(values[k], lane), out);
        }
        keys = next_keys(keys, &own, lane);
        workgroupBarrier();
    }
    if lane == 0u {
        lse[unit] = select(MASKED, top + log(max(sum, 1e-30)), sum > 0.0);
    }
    out *= select(0.0, 1.0 / max(sum, 1e-30), sum > 0.0);
    if lane < p.head_dim { o[at + lane] = o_t(out.x); }
    if lane + 64u < p.head_dim { o[at + lane + 64u] = o_t(out.y); }
    if lane + 128u < p.head_dim { o[at + lane + 128u] = o_t(out.z); }
    if lane + 192u < p.head_dim { o[at + lane + 192u] = o_t(out.w); }
}
