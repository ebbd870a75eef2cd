// d_table[token, :] += the sum of d_out over the rows that hold the token. One invocation per (place in the order,
// column): the first place of each token's run sums the run, in order.
struct Params { tokens: u32, width: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> d_out: array<f32>;             // [T, width]
@group(0) @binding(2) var<storage, read> rows: array<u32>;              // [T, ROW]
@group(0) @binding(3) var<storage, read> order: array<u32>;             // [T]
@group(0) @binding(4) var<storage, read_write> d_table: array<f32>;     // [V, width]

//!include grid
//!include rows

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = group_number(group, groups) * 256u + lane;
    if i >= p.tokens * p.width {
        return;
    }
    let place = i / p.width;
    let column = i % p.width;
    let token = rows[order[place] * ROW];
    if place > 0u && rows[order[place - 1u] * ROW] == token {
        return;
    }
    var sum = 0.0;
    for (var k = place; k < p.tokens; k++) {
        let row = order[k];
        if rows[row * ROW] != token {
            break;
        }
        sum += d_out[row * p.width + column];
    }
    d_table[token * p.width + column] += sum;
}
