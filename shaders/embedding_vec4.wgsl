// As embedding.wgsl, width a multiple of 4: one invocation per vec4.
struct Params { tokens: u32, width: u32, first: u32, held: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> table: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> rows: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>;

//!include grid
//!include rows

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_number(group) * 256u + lane;
    let width = p.width / 4u;
    if i < p.tokens * width {
        let t = i / width;
        let token = rows[t * ROW] - p.first;
        if token < p.held {
            out[i] = table[token * width + (i - t * width)];
        }
    }
}
