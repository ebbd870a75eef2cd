// out[t, :] = table[token(t) - first, :], token(t) = rows[t, 0]; rows of tokens outside the table stay as they are. One
// invocation per element of out.
struct Params { tokens: u32, width: u32, first: u32, held: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> table: array<f32>;
@group(0) @binding(2) var<storage, read> rows: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

//!include grid
//!include rows

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_number(group) * 256u + lane;
    if i < p.tokens * p.width {
        let t = i / p.width;
        let token = rows[t * ROW] - p.first;
        if token < p.held {
            out[i] = table[token * p.width + (i - t * p.width)];
        }
    }
}
