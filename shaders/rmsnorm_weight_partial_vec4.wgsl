// As rmsnorm_weight_partial.wgsl, everything a multiple of 4: one invocation per (chunk, four columns).
struct Params { vectors: u32, per_row: u32, stride: u32, offset: u32, dim: u32, chunk: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<x_t>>;
@group(0) @binding(2) var<storage, read> rstd: array<f32>;
@group(0) @binding(3) var<storage, read> dy: array<vec4<dy_t>>;
@group(0) @binding(4) var<storage, read_write> partial: array<vec4<f32>>;

//!include grid
//!include norm_vector

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_number(group) * 64u + lane;
    let width = p.dim / 4u;
    let first = (i / width) * p.chunk;
    let j = i % width;
    if first >= p.vectors {
        return;
    }
    var sum = vec4<f32>();
    for (var v = first; v < min(first + p.chunk, p.vectors); v++) {
        let at = vector_at(v) + j;
        sum = fma(vec4<f32>(dy[at]) * rstd[v], vec4<f32>(x[at]), sum);
    }
    partial[i] = sum;
}
