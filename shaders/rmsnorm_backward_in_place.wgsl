// g = rstd * (w * g - x * rstd^2 * mean(w * g * x)): the gradient of y becomes that of x. One workgroup per vector, as
// in the forward.
struct Params { vectors: u32, per_row: u32, stride: u32, offset: u32, dim: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<x_t>;
@group(0) @binding(2) var<storage, read> w: array<f32>;
@group(0) @binding(3) var<storage, read> rstd: array<f32>;
@group(0) @binding(4) var<storage, read_write> g: array<g_t>;

//!include grid

const LANES: u32 = 64u;
var<workgroup> partial: array<f32, LANES>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let v = group_number(group);
    if v >= p.vectors {
        return;
    }
    let at = (v / p.per_row) * p.stride + p.offset + (v % p.per_row) * p.dim;
    var sum = 0.0;
    for (var j = lane; j < p.dim; j += LANES) {
        sum = fma(f32(g[at + j]) * w[j], f32(x[at + j]), sum);
    }
    partial[lane] = sum;
    workgroupBarrier();
    var product = 0.0;
    for (var i = 0u; i < LANES; i++) {
        product += partial[i];
    }
    let r = rstd[v];
    let pull = r * r * product / f32(p.dim);
    for (var j = lane; j < p.dim; j += LANES) {
        g[at + j] = g_t(r * (w[j] * f32(g[at + j]) - f32(x[at + j]) * pull));
    }
}
