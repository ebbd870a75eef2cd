// For kernels whose workgroup is eight invocations in one subgroup, each with a row of its own and vectors of up to 64
// elements in registers. Loops that shuffle end where `covering` says, which is the same for the whole subgroup; browsers do
// not take a subgroup's least and greatest for uniform.
diagnostic(off, subgroup_uniformity);
const LANES = 8u;
// The widest vector, in fours.
const WIDTH = 16u;

fn dot_onto(a: vec4<f32>, b: vec4<f32>, sum: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

// The least range that covers every lane's own; empty if all of them are.
fn covering(begin: u32, end: u32) -> vec2<u32> {
    return vec2<u32>(subgroupMin(select(0xffffffffu, begin, begin < end)), subgroupMax(select(0u, end, begin < end)));
}
