// As scatter_add_rows.wgsl, width a multiple of 4: one invocation per vec4.
struct Params { rows: u32, width: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> src: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> index: array<u32>;
@group(0) @binding(3) var<storage, read_write> dst: array<vec4<f32>>;

//!include grid

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_number(group) * 256u + lane;
    let width = p.width / 4u;
    if i < p.rows * width {
        let row = i / width;
        dst[index[row] * width + (i - row * width)] += src[i];
    }
}
