// means[k, :] = the mean of x[member, :] over the members of cluster k, in their order; an empty cluster keeps what it has.
// One invocation per element.
struct Params { clusters: u32, width: u32, members: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;                 // [rows, width]
@group(0) @binding(2) var<storage, read> members: array<u32>;           // [members]: those of cluster 0, of 1, ...
@group(0) @binding(3) var<storage, read> begins: array<u32>;            // [clusters + 1]: where those of a cluster begin
@group(0) @binding(4) var<storage, read_write> means: array<f32>;       // [clusters, width]

//!include grid

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_number(group) * 64u + lane;
    if i >= p.clusters * p.width {
        return;
    }
    let cluster = i / p.width;
    let column = i % p.width;
    let begin = begins[cluster];
    let end = begins[cluster + 1u];
    if begin < end {
        var sum = 0.0;
        for (var m = begin; m < end; m++) {
            sum += x[members[m] * p.width + column];
        }
        means[i] = sum / f32(end - begin);
    }
}
