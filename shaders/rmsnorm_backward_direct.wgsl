// As rmsnorm_backward.wgsl, for SIMD on the host's processor: one invocation per vector, so no barrier. Everything a
// multiple of 4.
struct Params { vectors: u32, per_row: u32, stride: u32, offset: u32, dim: u32, accumulate: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> rstd: array<f32>;
@group(0) @binding(4) var<storage, read> dy: array<vec4<dy_t>>;
@group(0) @binding(5) var<storage, read_write> d_x: array<vec4<f32>>;

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
        sum = fma(vec4<f32>(dy[at + j]) * w[j], x[at + j], sum);
    }
    let r = rstd[v];
    let pull = r * r * total(sum) / f32(p.dim);
    for (var j = 0u; j < p.dim / 4u; j++) {
        var g = r * (w[j] * vec4<f32>(dy[at + j]) - x[at + j] * pull);
        if p.accumulate != 0u {
            g += d_x[at + j];
        }
        d_x[at + j] = g;
    }
}
