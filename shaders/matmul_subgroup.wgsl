// The matrix products NN and TN, n a multiple of 4, for subgroups of 8 and more: as matmul_subgroup_nt.wgsl, with 4
// neighbouring columns x ROWS rows of C per invocation.
//!include matmul
@group(0) @binding(1) var<storage, read> a: array<a_t>;
@group(0) @binding(2) var<storage, read> b: array<vec4<b_t>>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<bias_t>>;
@group(0) @binding(4) var<storage, read_write> c: array<vec4<c_t>>;
//!include grid

// 8 or 16.
override ROWS: u32 = 16u;
const LANES = 32u;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>,
        @builtin(local_invocation_index) invocation: u32, @builtin(subgroup_invocation_id) lane: u32) {
    let number = group_number(group);
    let columns = p.n / 4u;
    let across = (columns + LANES - 1u) / LANES;
    let row = (number / across) * ROWS;
    let column = (number % across) * LANES + invocation;
    let stride = a_strides();
    let rows = min(row + lane % 8u + vec2<u32>(0u, 8u), vec2<u32>(p.m - 1u));
    var x = rows * stride.x;
    var y = min(column, columns - 1u);
    var sums: array<vec4<f32>, 16>;
    for (var q = 0u; q < p.k; q++) {
        let factors = vec4<f32>(b[y]);
        let low = f32(a_element(x.x, rows.x, q));
        for (var i = 0u; i < 8u; i++) {
            sums[i] = fma(vec4<f32>(subgroupShuffle(low, i)), factors, sums[i]);
        }
        if ROWS > 8u {
            let high = f32(a_element(x.y, rows.y, q));
            for (var i = 0u; i < 8u; i++) {
                sums[i + 8u] = fma(vec4<f32>(subgroupShuffle(high, i)), factors, sums[i + 8u]);
            }
        }
        x += stride.y;
        y += columns;
    }
    if column >= columns {
        return;
    }
    for (var i = 0u; i < ROWS; i++) {
        if row + i >= p.m {
            return;
        }
        let at = (row + i) * columns + column;
        var start = vec4<f32>();
        if p.start == ACCUMULATE {
            start = vec4<f32>(c[at]);
        } else if p.start == BIAS {
            start = vec4<f32>(bias[column]);
        } else if p.start == MATRIX {
            start = vec4<f32>(bias[at]);
        }
        c[at] = vec4<c_t>(start + sums[i]);
    }
}
