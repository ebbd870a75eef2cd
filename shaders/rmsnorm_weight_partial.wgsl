// partial[c, j] = sum over the vectors of chunk c of dy * x * rstd. One invocation per (chunk, column).
struct Params { vectors: u32, per_row: u32, stride: u32, offset: u32, dim: u32, chunk: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<x_t>;
@group(0) @binding(2) var<storage, read> rstd: array<f32>;
@group(0) @binding(3) var<storage, read> dy: array<dy_t>;
@group(0) @binding(4) var<storage, read_write> partial: array<f32>;

//!include grid

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_number(group) * 64u + lane;
    let first = (i / p.dim) * p.chunk;
    let j = i % p.dim;
    if first >= p.vectors {
        return;
    }
    var sum = 0.0;
    for (var v = first; v < min(first + p.chunk, p.vectors); v++) {
        let at = (v / p.per_row) * p.stride + p.offset + (v % p.per_row) * p.dim + j;
        sum = fma(f32(dy[at]) * rstd[v], f32(x[at]), sum);
    }
    partial[i] = sum;
}
