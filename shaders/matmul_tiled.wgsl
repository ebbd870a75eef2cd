// The matrix product for GPUs, any m, n, k: a workgroup of 8 x 8 invocations owns SIDE x SIDE outputs, SIDE = 8 SPAN; A
// and B pass through workgroup memory 16 terms at a time; an invocation keeps SPAN x SPAN outputs in registers, 8 apart,
// so that neighbours read and write neighbours. Past the edge the tiles hold zeros.
//!include matmul
//!include matmul_scalar
//!include matmul_store
//!include grid

// 4 or 8.
override SPAN: u32 = 8u;
const DEPTH = 16u;
const LANES = 64u;
var<workgroup> a_tile: array<f32, 1024>;
var<workgroup> b_tile: array<f32, 1024>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let side = 8u * SPAN;
    let number = group_number(group);
    let across = (p.n + side - 1u) / side;
    let row = (number / across) * side;
    let column = (number % across) * side;
    let x = lane / 8u;
    let y = lane % 8u;
    let a_stride = a_strides();
    let b_stride = b_strides();
    var sums: array<array<f32, 8>, 8>;
    for (var base = 0u; base < p.k; base += DEPTH) {
        // Consecutive lanes load consecutive addresses: along k, or across it where the operand is so stored.
        for (var t = lane; t < side * DEPTH; t += LANES) {
            let at = select(vec2<u32>(t / DEPTH, t % DEPTH), vec2<u32>(t % side, t / side), TRANSPOSE_A);
            var value = 0.0;
            if row + at.x < p.m && base + at.y < p.k {
                let source = (row + at.x) * a_stride.x + (base + at.y) * a_stride.y;
                value = f32(a_element(source, row + at.x, base + at.y));
            }
            a_tile[at.y * side + at.x] = value;
        }
        for (var t = lane; t < side * DEPTH; t += LANES) {
            let at = select(vec2<u32>(t % side, t / side), vec2<u32>(t / DEPTH, t % DEPTH), TRANSPOSE_B);
            var value = 0.0;
            if column + at.x < p.n && base + at.y < p.k {
                value = f32(b[(column + at.x) * b_stride.x + (base + at.y) * b_stride.y]);
            }
            b_tile[at.y * side + at.x] = value;
        }
        workgroupBarrier();
        for (var q = 0u; q < DEPTH; q++) {
            var factors = array<f32, 8>();
            for (var j = 0u; j < SPAN; j++) {
                factors[j] = b_tile[q * side + y + 8u * j];
            }
            for (var i = 0u; i < SPAN; i++) {
                let factor = a_tile[q * side + x + 8u * i];
                for (var j = 0u; j < SPAN; j++) {
                    sums[i][j] = fma(factor, factors[j], sums[i][j]);
                }
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < SPAN; i++) {
        for (var j = 0u; j < SPAN; j++) {
            store(row + x + 8u * i, column + y + 8u * j, sums[i][j]);
        }
    }
}
