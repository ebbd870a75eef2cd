// As rmsnorm.wgsl, for hardware with subgroups of any size: one subgroup per vector, so neither a barrier nor workgroup
// memory. Everything a multiple of 4.
struct Params { vectors: u32, per_row: u32, stride: u32, offset: u32, dim: u32, eps: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<x_t>>;
@group(0) @binding(2) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<y_t>>;
@group(0) @binding(4) var<storage, read_write> rstd: array<f32>;

//!include grid
//!include norm_vector
//!include total

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(subgroup_id) team: u32, @builtin(num_subgroups) teams: u32) {
    // Counted, for a subgroup may lack invocations.
    let lanes = subgroupAdd(1u);
    let lane = subgroupExclusiveAdd(1u);
    let v = group_number(group) * teams + team;
    if v >= p.vectors {
        return;
    }
    let at = vector_at(v);
    let width = p.dim / 4u;
    var sum = vec4<f32>();
    // Lanes past the end stay in the loop: all take part in the sum over the subgroup.
    for (var first = 0u; first < width; first += lanes) {
        let j = min(first + lane, width - 1u);
        let own = select(vec4<f32>(), vec4<f32>(x[at + j]), first + lane < width);
        sum = fma(own, own, sum);
    }
    let r = 1.0 / sqrt(subgroupAdd(total(sum)) / f32(p.dim) + p.eps);
    for (var j = lane; j < width; j += lanes) {
        y[at + j] = vec4<y_t>(vec4<f32>(x[at + j]) * r * w[j]);
    }
    if lane == 0u {
        rstd[v] = r;
    }
}
