// Forest attention, gradient of keys and values, without barriers: one invocation per (row, key/value head, 32 columns),
// which goes over the (query row, query head) pairs that attend to it four at a time, as attention_direct.wgsl.
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
//!include total

const BLOCK = 16u;

@compute @workgroup_size(32)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let number = group_number(group) * 32u + lane;
    let width = p.head_dim / 4u;
    let blocks = (width + BLOCK - 1u) / BLOCK;
    let unit = number / blocks;
    if unit >= p.tokens * p.kv_heads {
        return;
    }
    let first_column = number % blocks * BLOCK;
    let count = min(width - first_column, BLOCK);
    let row = unit / p.kv_heads;
    let head = unit % p.kv_heads;
    let shared_by = p.heads / p.kv_heads;
    let key = (2u * row * p.kv_heads + head) * width;
    let value = key + p.kv_heads * width;
    // Two ranges of queries: near ones, and the tree's where it lies apart.
    let record = row * ROW;
    let first = max(rows[record + Q_BEGIN], p.first_query);
    let near = max(rows[record + Q_END], first) - first;
    let tree = rows[record + TREE_BEGIN];
    let pairs = (near + rows[record + TREE_END] - tree) * shared_by;

    var dk: array<vec4<f32>, BLOCK>;
    var dv: array<vec4<f32>, BLOCK>;
    for (var base = 0u; base < pairs; base += 4u) {
        let n = base + vec4<u32>(0u, 1u, 2u, 3u);
        let present = n < vec4<u32>(pairs);
        let m = min(n, vec4<u32>(pairs - 1u));
        let i = m / shared_by;
        let query_row = select(tree + (i - near), first + i, i < vec4<u32>(near));
        let query = query_row * p.heads + head * shared_by + m % shared_by;
        let at = query * width;
        var s0 = vec4<f32>();
        var s1 = vec4<f32>();
        var s2 = vec4<f32>();
        var s3 = vec4<f32>();
        var g0 = vec4<f32>();
        var g1 = vec4<f32>();
        var g2 = vec4<f32>();
        var g3 = vec4<f32>();
        for (var d = 0u; d < width; d++) {
            let own_key = vec4<f32>(kv[key + d]);
            let own_value = vec4<f32>(kv[value + d]);
            s0 = fma(vec4<f32>(q[at.x + d]), own_key, s0);
            s1 = fma(vec4<f32>(q[at.y + d]), own_key, s1);
            s2 = fma(vec4<f32>(q[at.z + d]), own_key, s2);
            s3 = fma(vec4<f32>(q[at.w + d]), own_key, s3);
            g0 = fma(vec4<f32>(d_o[at.x + d]), own_value, g0);
            g1 = fma(vec4<f32>(d_o[at.y + d]), own_value, g1);
            g2 = fma(vec4<f32>(d_o[at.z + d]), own_value, g2);
            g3 = fma(vec4<f32>(d_o[at.w + d]), own_value, g3);
        }
        let scores = vec4<f32>(total(s0), total(s1), total(s2), total(s3)) * p.scale;
        let pulls = vec4<f32>(total(g0), total(g1), total(g2), total(g3));
        let lses = vec4<f32>(lse[query.x], lse[query.y], lse[query.z], lse[query.w]);
        let deltas = vec4<f32>(delta[query.x], delta[query.y], delta[query.z], delta[query.w]);
        let weights = select(vec4<f32>(), exp(scores - lses), present);
        let slopes = weights * (pulls - deltas) * p.scale;
        for (var c = 0u; c < BLOCK; c++) {
            if c < count {
                let from_query = at + first_column + c;
                var k = fma(slopes.xxxx, vec4<f32>(q[from_query.x]), dk[c]);
                k = fma(slopes.yyyy, vec4<f32>(q[from_query.y]), k);
                k = fma(slopes.zzzz, vec4<f32>(q[from_query.z]), k);
                dk[c] = fma(slopes.wwww, vec4<f32>(q[from_query.w]), k);
                var v = fma(weights.xxxx, vec4<f32>(d_o[from_query.x]), dv[c]);
                v = fma(weights.yyyy, vec4<f32>(d_o[from_query.y]), v);
                v = fma(weights.zzzz, vec4<f32>(d_o[from_query.z]), v);
                dv[c] = fma(weights.wwww, vec4<f32>(d_o[from_query.w]), v);
            }
        }
    }
    for (var c = 0u; c < BLOCK; c++) {
        if c < count {
            dkv[key + first_column + c] = vec4<dkv_t>(dk[c]);
            dkv[value + first_column + c] = vec4<dkv_t>(dv[c]);
        }
    }
}
