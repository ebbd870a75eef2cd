// The matrix product for any m, n, k. A workgroup is 32 invocations, each 8 rows x 4 columns of C in registers; its
// columns are 32 apart, so that neighbours read and write neighbours. Indices past the edge are brought back to the last
// row or column before the loop; what is computed there is not stored.
//!include matmul
//!include matmul_scalar
//!include matmul_store
//!include grid

const ROWS = 8u;
const LANES = 32u;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let number = group_number(group);
    let across = (p.n + 4u * LANES - 1u) / (4u * LANES);
    let row = (number / across) * ROWS;
    let column = (number % across) * 4u * LANES + lane;
    let a_stride = a_strides();
    let b_stride = b_strides();
    var x: array<u32, ROWS>;
    for (var i = 0u; i < ROWS; i++) {
        x[i] = min(row + i, p.m - 1u) * a_stride.x;
    }
    var y = min(column + LANES * vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(p.n - 1u)) * b_stride.x;
    var sums: array<vec4<f32>, ROWS>;
    for (var q = 0u; q < p.k; q++) {
        let factors = vec4<f32>(f32(b[y.x]), f32(b[y.y]), f32(b[y.z]), f32(b[y.w]));
        for (var i = 0u; i < ROWS; i++) {
            let factor = f32(a_element(x[i] + q * a_stride.y, min(row + i, p.m - 1u), q));
            sums[i] = fma(vec4<f32>(factor), factors, sums[i]);
        }
        y += b_stride.y;
    }
    for (var i = 0u; i < ROWS; i++) {
        for (var j = 0u; j < 4u; j++) {
            store(row + i, column + j * LANES, sums[i][j]);
        }
    }
}
