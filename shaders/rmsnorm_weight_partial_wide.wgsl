// As rmsnorm_weight_partial.wgsl, for hardware, everything a multiple of 4: a workgroup per chunk and 16 vec4 of columns;
// its 16 slices each sum every sixteenth vector, then one adds the slices' sums in order.
struct Params { vectors: u32, per_row: u32, stride: u32, offset: u32, dim: u32, chunk: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<x_t>>;
@group(0) @binding(2) var<storage, read> rstd: array<f32>;
@group(0) @binding(3) var<storage, read> dy: array<vec4<dy_t>>;
@group(0) @binding(4) var<storage, read_write> partial: array<vec4<f32>>;

//!include grid
//!include norm_vector

var<workgroup> sums: array<vec4<f32>, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let number = group_number(group);
    let width = p.dim / 4u;
    let blocks = (width + 15u) / 16u;
    let chunk = number / blocks;
    let first = chunk * p.chunk;
    let j = number % blocks * 16u + lane % 16u;
    var sum = vec4<f32>();
    if j < width {
        for (var v = first + lane / 16u; v < min(first + p.chunk, p.vectors); v += 16u) {
            let at = vector_at(v) + j;
            sum = fma(vec4<f32>(dy[at]) * rstd[v], vec4<f32>(x[at]), sum);
        }
    }
    sums[lane] = sum;
    workgroupBarrier();
    if lane < 16u && j < width && first < p.vectors {
        var whole = vec4<f32>();
        for (var slice = 0u; slice < 16u; slice++) {
            whole += sums[slice * 16u + lane];
        }
        partial[chunk * width + j] = whole;
    }
}
