// d_table[tokens[u], :] += sum of d_out[order[k], :] over k in starts[u] .. starts[u + 1]. One invocation per
// (distinct token, column): it alone owns that element and adds in the order of `order`.
struct Params { distinct: u32, width: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> d_out: array<f32>;
@group(0) @binding(2) var<storage, read> order: array<u32>;
@group(0) @binding(3) var<storage, read> starts: array<u32>;
@group(0) @binding(4) var<storage, read> tokens: array<u32>;
@group(0) @binding(5) var<storage, read_write> d_table: array<f32>;

//!include grid

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = group_number(group, groups) * 256u + lane;
    if i < p.distinct * p.width {
        let u = i / p.width;
        let column = i - u * p.width;
        var sum = 0.0;
        for (var k = starts[u]; k < starts[u + 1u]; k++) {
            sum += d_out[order[k] * p.width + column];
        }
        d_table[tokens[u] * p.width + column] += sum;
    }
}
