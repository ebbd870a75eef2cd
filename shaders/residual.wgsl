// y[row, :] = x[row, :] - table[index[row], :] and square[row] = |y[row, :]|^2. One workgroup per row.
struct Params { rows: u32, width: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;                 // [rows, width]
@group(0) @binding(2) var<storage, read> table: array<f32>;             // [entries, width]
@group(0) @binding(3) var<storage, read> index: array<u32>;             // [rows]
@group(0) @binding(4) var<storage, read_write> y: array<f32>;           // [rows, width]
@group(0) @binding(5) var<storage, read_write> square: array<f32>;      // [rows]

//!include grid

const LANES = 64u;
var<workgroup> sums: array<f32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group_number(group);
    if row >= p.rows {
        return;
    }
    let entry = index[row] * p.width;
    var sum = 0.0;
    for (var j = lane; j < p.width; j += LANES) {
        let difference = x[row * p.width + j] - table[entry + j];
        y[row * p.width + j] = difference;
        sum = fma(difference, difference, sum);
    }
    sums[lane] = sum;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            sums[lane] += sums[lane + half];
        }
    }
    if lane == 0u {
        square[row] = sums[0];
    }
}
