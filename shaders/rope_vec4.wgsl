// As rope.wgsl, head size a multiple of 8: one invocation per four pairs.
struct Params { tokens: u32, heads: u32, kv_heads: u32, head_dim: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> rows: array<u32>;
@group(0) @binding(2) var<storage, read> table: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> qk: array<vec4<qk_t>>;
@group(0) @binding(4) var<storage, read> qkv: array<vec4<qkv_t>>;
@group(0) @binding(5) var<storage, read_write> q: array<vec4<q_t>>;
@group(0) @binding(6) var<storage, read_write> kv: array<vec4<kv_t>>;

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
    let slot = rows[t * ROW + SLOT];
    let origin = (t * all + head) * 2u * half + i;
    let to = (slot * 2u * p.kv_heads + head - p.heads) * 2u * half + i;
    if head >= p.heads + p.kv_heads {
        if slot != NONE {
            kv[to] = vec4<kv_t>(qkv[origin]);
            kv[to + half] = vec4<kv_t>(qkv[origin + half]);
        }
        return;
    }
    // Four angles: cosine and sine take turns.
    let at = (rows[t * ROW + POSITION] * half + i) * 2u;
    let low = table[at];
    let high = table[at + 1u];
    let c = vec4<f32>(low.xz, high.xz);
    let s = vec4<f32>(low.yw, high.yw);
    let a = vec4<f32>(qk[origin]);
    let b = vec4<f32>(qk[origin + half]);
    let first = a * c - b * s;
    let second = b * c + a * s;
    if head < p.heads {
        let own = (t * p.heads + head) * 2u * half + i;
        q[own] = vec4<q_t>(first);
        q[own + half] = vec4<q_t>(second);
    } else if slot != NONE {
        kv[to] = vec4<kv_t>(first);
        kv[to + half] = vec4<kv_t>(second);
    }
}
