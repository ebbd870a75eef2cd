// y[r, y_first + j] = x[r, x_first + j] for the `width` columns j of `rows` rows. One invocation per element.
struct Params { rows: u32, width: u32, x_stride: u32, x_first: u32, y_stride: u32, y_first: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;                 // [rows, x_stride]
@group(0) @binding(2) var<storage, read_write> y: array<u32>;           // [rows, y_stride]

//!include grid

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_number(group) * 256u + lane;
    if i < p.rows * p.width {
        let row = i / p.width;
        let column = i - row * p.width;
        y[row * p.y_stride + p.y_first + column] = x[row * p.x_stride + p.x_first + column];
    }
}
