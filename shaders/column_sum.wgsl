// out[j] (+)= sum over i of x[i, j]. A workgroup owns 32 columns; its 8 slices each sum every eighth row (consecutive
// lanes read consecutive columns), then one slice adds the 8 partial sums in order.
struct Params { rows: u32, columns: u32, accumulate: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<x_t>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

//!include grid

var<workgroup> partial: array<f32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let column = group_number(group) * 32u + lane % 32u;
    var sum = 0.0;
    if column < p.columns {
        for (var row = lane / 32u; row < p.rows; row += 8u) {
            sum += f32(x[row * p.columns + column]);
        }
    }
    partial[lane] = sum;
    workgroupBarrier();
    if lane < 32u && column < p.columns {
        var total = 0.0;
        for (var slice = 0u; slice < 8u; slice++) {
            total += partial[slice * 32u + lane];
        }
        if p.accumulate != 0u {
            total += out[column];
        }
        out[column] = total;
    }
}
