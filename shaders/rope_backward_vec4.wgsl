// As rope_backward.wgsl, head size a multiple of 8: one invocation per four pairs.
struct Params { tokens: u32, heads: u32, kv_heads: u32, head_dim: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> rows: array<u32>;
@group(0) @binding(2) var<storage, read> table: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> dq: array<vec4<dq_t>>;
@group(0) @binding(4) var<storage, read> dkv: array<vec4<dkv_t>>;
@group(0) @binding(5) var<storage, read_write> dqkv: array<vec4<dqkv_t>>;

//!include grid
//!include rows

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let half = p.head_dim / 8u;
    let all = p.heads + 2u * p.kv_heads;
    let n = group_number(group) * 64u + lane;
    let i = n % half;
    let head = (n / half) % all;
    let t = n / half / all;
    if t >= p.tokens {
        return;
    }
    let to = (t * all + head) * 2u * half + i;
    var first: vec4<f32>;
    var second: vec4<f32>;
    if head < p.heads {
        let origin = (t * p.heads + head) * 2u * half + i;
        first = vec4<f32>(dq[origin]);
        second = vec4<f32>(dq[origin + half]);
    } else {
        let origin = (t * 2u * p.kv_heads + head - p.heads) * 2u * half + i;
        first = vec4<f32>(dkv[origin]);
        second = vec4<f32>(dkv[origin + half]);
    }
    if head >= p.heads + p.kv_heads {
        dqkv[to] = vec4<dqkv_t>(first);
        dqkv[to + half] = vec4<dqkv_t>(second);
        return;
    }
    // Four angles: cosine and sine take turns.
    let at = (rows[t * ROW + POSITION] * half + i) * 2u;
    let low = table[at];
    let high = table[at + 1u];
    let c = vec4<f32>(low.xz, high.xz);
    let s = vec4<f32>(low.yw, high.yw);
    dqkv[to] = vec4<dqkv_t>(first * c + second * s);
    dqkv[to + half] = vec4<dqkv_t>(second * c - first * s);
}
