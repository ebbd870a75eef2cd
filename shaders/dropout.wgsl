// y = mask * x / (1 - rate). One invocation per element.
struct Params { n: u32, first: u32, key: u32, step: u32, site: u32, keep: u32, scale: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<y_t>;

//!include grid
//!include rng
//!include dropout

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_number(group) * 256u + lane;
    if i < p.n {
        y[i] = y_t(dropout_factor(p.first + i) * x[i]);
    }
}
