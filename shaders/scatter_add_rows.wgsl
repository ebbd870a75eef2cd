// Rows by index: dst[index[i], :] += src[i, :] (distinct indices: no two invocations share an element). One invocation
// per element of the [rows, width] side.
struct Params { rows: u32, width: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> src: array<f32>;
@group(0) @binding(2) var<storage, read> index: array<u32>;
@group(0) @binding(3) var<storage, read_write> dst: array<f32>;

//!include grid

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_number(group) * 256u + lane;
    if i < p.rows * p.width {
        let row = i / p.width;
        dst[index[row] * p.width + (i - row * p.width)] += src[i];
    }
}
