// As embedding_backward.wgsl, width a multiple of 4: one invocation per (place in the order, four columns).
struct Params { tokens: u32, width: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> d_out: array<vec4<f32>>;       // [T, width]
@group(0) @binding(2) var<storage, read> rows: array<u32>;              // [T, ROW]
@group(0) @binding(3) var<storage, read> order: array<u32>;             // [T]
@group(0) @binding(4) var<storage, read_write> d_table: array<vec4<f32>>; // [V, width]

//!include grid
//!include rows

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = group_number(group, groups) * 256u + lane;
    let width = p.width / 4u;
    if i >= p.tokens * width {
        return;
    }
    let place = i / width;
    let column = i % width;
    let token = rows[order[place] * ROW];
    if place > 0u && rows[order[place - 1u] * ROW] == token {
        return;
    }
    var sum = vec4<f32>();
    for (var k = place; k < p.tokens; k++) {
        let row = order[k];
        if rows[row * ROW] != token {
            break;
        }
        sum += d_out[row * width + column];
    }
    d_table[token * width + column] += sum;
}
