// The matrix product NT, k a multiple of 4, for subgroups of 8 and more (SIMD on the host's processor): each lane loads
// a row of A that the others get by a shuffle, which costs less there than a load. An invocation keeps 2 columns x ROWS
// rows of C in registers. Indices past the edge are brought back to the last row or column before the loop.
//!include matmul
@group(0) @binding(1) var<storage, read> a: array<vec4<a_t>>;
@group(0) @binding(2) var<storage, read> b: array<vec4<b_t>>;
@group(0) @binding(3) var<storage, read> bias: array<bias_t>;
@group(0) @binding(4) var<storage, read_write> c: array<c_t>;
//!include matmul_store
//!include grid

// 8 or 16.
override ROWS: u32 = 16u;
const LANES = 32u;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>,
        @builtin(local_invocation_index) invocation: u32, @builtin(subgroup_invocation_id) lane: u32) {
    let number = group_number(group);
    let across = (p.n + 2u * LANES - 1u) / (2u * LANES);
    let row = (number / across) * ROWS;
    let column = (number % across) * 2u * LANES + invocation;
    let depth = p.k / 4u;
    let last = vec2<u32>(p.m - 1u, p.n - 1u);
    let x = min(row + lane % 8u + vec2<u32>(0u, 8u), last.xx) * depth;
    let y = min(column + vec2<u32>(0u, LANES), last.yy) * depth;
    var sums: array<vec2<f32>, 16>;
    for (var q = 0u; q < depth; q++) {
        let b0 = vec4<f32>(b[y.x + q]);
        let b1 = vec4<f32>(b[y.y + q]);
        let low = vec4<f32>(a[x.x + q]);
        for (var i = 0u; i < 8u; i++) {
            sums[i] = four(subgroupShuffle(low, i), b0, b1, sums[i]);
        }
        if ROWS > 8u {
            let high = vec4<f32>(a[x.y + q]);
            for (var i = 0u; i < 8u; i++) {
                sums[i + 8u] = four(subgroupShuffle(high, i), b0, b1, sums[i + 8u]);
            }
        }
    }
    for (var i = 0u; i < ROWS; i++) {
        store(row + i, column, sums[i].x);
        store(row + i, column + LANES, sums[i].y);
    }
}

// Four terms of the sums of one row and two columns.
fn four(row: vec4<f32>, b0: vec4<f32>, b1: vec4<f32>, sum: vec2<f32>) -> vec2<f32> {
    var s = fma(row.xx, vec2<f32>(b0.x, b1.x), sum);
    s = fma(row.yy, vec2<f32>(b0.y, b1.y), s);
    s = fma(row.zz, vec2<f32>(b0.z, b1.z), s);
    return fma(row.ww, vec2<f32>(b0.w, b1.w), s);
}
