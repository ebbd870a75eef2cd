// y = x * rstd * w for every vector; rstd = 1 / sqrt(mean(x^2) + eps). One workgroup per vector: each lane sums every
// 64th square, then every lane adds the 64 partial sums itself, which needs one barrier only.
struct Params { vectors: u32, per_row: u32, stride: u32, offset: u32, dim: u32, eps: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<x_t>;
@group(0) @binding(2) var<storage, read> w: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<y_t>;
@group(0) @binding(4) var<storage, read_write> rstd: array<f32>;

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
        sum = fma(f32(x[at + j]), f32(x[at + j]), sum);
    }
    partial[lane] = sum;
    workgroupBarrier();
    var squares = 0.0;
    for (var i = 0u; i < LANES; i++) {
        squares += partial[i];
    }
    let r = 1.0 / sqrt(squares / f32(p.dim) + p.eps);
    for (var j = lane; j < p.dim; j += LANES) {
        y[at + j] = y_t(f32(x[at + j]) * r * w[j]);
    }
    if lane == 0u {
        rstd[v] = r;
    }
}
