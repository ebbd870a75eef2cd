// As column_sum.wgsl, for hardware, columns a multiple of 4: a workgroup owns 4 vec4 of columns; its 64 slices each sum
// every 64th row, so that few columns still occupy many lanes.
struct Params { rows: u32, columns: u32, accumulate: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<x_t>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;

//!include grid

var<workgroup> partial: array<vec4<f32>, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let width = p.columns / 4u;
    let column = group_number(group) * 4u + lane % 4u;
    var sum = vec4<f32>();
    if column < width {
        for (var row = lane / 4u; row < p.rows; row += 64u) {
            sum += vec4<f32>(x[row * width + column]);
        }
    }
    partial[lane] = sum;
    workgroupBarrier();
    if lane < 4u && column < width {
        var total = vec4<f32>();
        for (var slice = 0u; slice < 64u; slice++) {
            total += partial[slice * 4u + lane];
        }
        if p.accumulate != 0u {
            total += out[column];
        }
        out[column] = total;
    }
}
