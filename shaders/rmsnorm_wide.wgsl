// As rmsnorm.wgsl, for hardware: LANES invocations per vector, in vec4, so that short vectors share a workgroup. Everything a
// multiple of 4.
struct Params { vectors: u32, per_row: u32, stride: u32, offset: u32, dim: u32, eps: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<x_t>>;
@group(0) @binding(2) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<y_t>>;
@group(0) @binding(4) var<storage, read_write> rstd: array<f32>;

//!include grid
//!include norm_vector
//!include total

override LANES: u32 = 64u;
var<workgroup> partial: array<f32, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let lane = index % LANES;
    let v = group_number(group) * (64u / LANES) + index / LANES;
    let at = vector_at(v);
    var sum = vec4<f32>();
    if v < p.vectors {
        for (var j = lane; j < p.dim / 4u; j += LANES) {
            sum = fma(vec4<f32>(x[at + j]), vec4<f32>(x[at + j]), sum);
        }
    }
    partial[index] = total(sum);
    workgroupBarrier();
    if v >= p.vectors {
        return;
    }
    var squares = 0.0;
    for (var i = 0u; i < LANES; i++) {
        squares += partial[index / LANES * LANES + i];
    }
    let r = 1.0 / sqrt(squares / f32(p.dim) + p.eps);
    for (var j = lane; j < p.dim / 4u; j += LANES) {
        y[at + j] = vec4<y_t>(vec4<f32>(x[at + j]) * r * w[j]);
    }
    if lane == 0u {
        rstd[v] = r;
    }
}
