// delta = o . d_o for every (token, query head): what the softmax takes off every score's gradient. One invocation each.
struct Params { vectors: u32, head_dim: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> o: array<o_t>;
@group(0) @binding(2) var<storage, read> d_o: array<d_o_t>;
@group(0) @binding(3) var<storage, read_write> delta: array<f32>;

//!include grid

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let v = group_number(group) * 64u + lane;
    if v >= p.vectors {
        return;
    }
    var sum = 0.0;
    for (var i = v * p.head_dim; i < (v + 1u) * p.head_dim; i++) {
        sum = fma(f32(o[i]), f32(d_o[i]), sum);
    }
    delta[v] = sum;
}
