// out[c] = sum over rows of x[row, c]. One workgroup per column.
struct Params { rows: u32, columns: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;                 // [rows, columns]
@group(0) @binding(2) var<storage, read_write> out: array<f32>;         // [columns]

//!include grid

const LANES = 64u;
var<workgroup> sums: array<f32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let column = group_number(group);
    if column >= p.columns {
        return;
    }
    var sum = 0.0;
    for (var row = lane; row < p.rows; row += LANES) {
        sum += x[row * p.columns + column];
    }
    sums[lane] = sum;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            sums[lane] += sums[lane + half];
        }
    }
    if lane == 0u {
        out[column] = sums[0];
    }
}
