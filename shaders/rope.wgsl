// Rotates queries into q and keys into their slots of kv, and copies values there. One invocation per pair of elements
// (i, i + head_dim / 2) of a head; heads in the order queries, keys, values.
struct Params { tokens: u32, heads: u32, kv_heads: u32, head_dim: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> rows: array<u32>;
@group(0) @binding(2) var<storage, read> table: array<f32>;
@group(0) @binding(3) var<storage, read> qk: array<qk_t>;
@group(0) @binding(4) var<storage, read> qkv: array<qkv_t>;
@group(0) @binding(5) var<storage, read_write> q: array<q_t>;
@group(0) @binding(6) var<storage, read_write> kv: array<kv_t>;

//!include grid
//!include rows

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let half = p.head_dim / 2u;
    let all = p.heads + 2u * p.kv_heads;
    let n = group_number(group) * 64u + lane;
    let i = n % half;
    let head = (n / half) % all;
    let t = n / half / all;
    if t >= p.tokens {
        return;
    }
    let slot = rows[t * ROW + SLOT];
    let origin = (t * all + head) * p.head_dim + i;
    let to = (slot * 2u * p.kv_heads + head - p.heads) * p.head_dim + i;
    if head >= p.heads + p.kv_heads {
        if slot != NONE {
            kv[to] = kv_t(qkv[origin]);
            kv[to + half] = kv_t(qkv[origin + half]);
        }
        return;
    }
    let at = (rows[t * ROW + POSITION] * half + i) * 2u;
    let c = table[at];
    let s = table[at + 1u];
    let a = f32(qk[origin]);
    let b = f32(qk[origin + half]);
    let turned = vec2<f32>(a * c - b * s, b * c + a * s);
    if head < p.heads {
        let own = (t * p.heads + head) * p.head_dim + i;
        q[own] = q_t(turned.x);
        q[own + half] = q_t(turned.y);
    } else if slot != NONE {
        kv[to] = kv_t(turned.x);
        kv[to + half] = kv_t(turned.y);
    }
}
