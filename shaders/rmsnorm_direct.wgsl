// As rmsnorm.wgsl, for SIMD on the host's processor: one invocation per vector, so no barrier. Everything a multiple of 4.
struct Params { vectors: u32, per_row: u32, stride: u32, offset: u32, dim: u32, eps: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<x_t>>;
@group(0) @binding(2) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<y_t>>;
@group(0) @binding(4) var<storage, read_write> rstd: array<f32>;

//!include grid
//!include norm_vector
//!include total

@compute @workgroup_size(32)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let v = group_number(group) * 32u + lane;
    if v >= p.vectors {
        return;
    }
    let at = vector_at(v);
    var sum = vec4<f32>();
    for (var j = 0u; j < p.dim / 4u; j++) {
        sum = fma(vec4<f32>(x[at + j]), vec4<f32>(x[at + j]), sum);
    }
    let r = 1.0 / sqrt(total(sum) / f32(p.dim) + p.eps);
    for (var j = 0u; j < p.dim / 4u; j++) {
        y[at + j] = vec4<y_t>(vec4<f32>(x[at + j]) * r * w[j]);
    }
    rstd[v] = r;
}
