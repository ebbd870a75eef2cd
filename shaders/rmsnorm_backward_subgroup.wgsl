// As rmsnorm_backward.wgsl, for hardware with subgroups of any size: one subgroup per vector, as in
// rmsnorm_subgroup.wgsl. Everything a multiple of 4.
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

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(subgroup_id) team: u32, @builtin(num_subgroups) teams: u32) {
    let lanes = subgroupAdd(1u);
    let lane = subgroupExclusiveAdd(1u);
    let v = group_number(group) * teams + team;
    if v >= p.vectors {
        return;
    }
    let at = vector_at(v);
    let width = p.dim / 4u;
    var sum = vec4<f32>();
    for (var first = 0u; first < width; first += lanes) {
        let j = min(first + lane, width - 1u);
        let own = select(vec4<f32>(), x[at + j], first + lane < width);
        sum = fma(vec4<f32>(dy[at + j]) * w[j], own, sum);
    }
    let r = rstd[v];
    let pull = r * r * subgroupAdd(total(sum)) / f32(p.dim);
    for (var j = lane; j < width; j += lanes) {
        var g = r * (w[j] * vec4<f32>(dy[at + j]) - x[at + j] * pull);
        if p.accumulate != 0u {
            g += d_x[at + j];
        }
        d_x[at + j] = g;
    }
}
