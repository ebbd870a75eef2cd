// Gathers the gradients of queries, keys and values into rows of projections, queries and keys rotated back. One
// invocation per pair of elements, as in the forward.
struct Params { tokens: u32, heads: u32, kv_heads: u32, head_dim: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> rows: array<u32>;
@group(0) @binding(2) var<storage, read> table: array<f32>;
@group(0) @binding(3) var<storage, read> dq: array<dq_t>;
@group(0) @binding(4) var<storage, read> dkv: array<dkv_t>;
@group(0) @binding(5) var<storage, read_write> dqkv: array<dqkv_t>;

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
    let to = (t * all + head) * p.head_dim + i;
    var pair: vec2<f32>;
    if head < p.heads {
        let origin = (t * p.heads + head) * p.head_dim + i;
        pair = vec2<f32>(f32(dq[origin]), f32(dq[origin + half]));
    } else {
        let origin = (t * 2u * p.kv_heads + head - p.heads) * p.head_dim + i;
        pair = vec2<f32>(f32(dkv[origin]), f32(dkv[origin + half]));
    }
    if head < p.heads + p.kv_heads {
        let at = (rows[t * ROW + POSITION] * half + i) * 2u;
        let c = table[at];
        let s = table[at + 1u];
        pair = vec2<f32>(pair.x * c + pair.y * s, pair.y * c - pair.x * s);
    }
    dqkv[to] = dqkv_t(pair.x);
    dqkv[to + half] = dqkv_t(pair.y);
}
