// As dropout.wgsl, where `first` and `n` are multiples of 8: one invocation per block of the generator.
struct Params { n: u32, first: u32, key: u32, step: u32, site: u32, keep: u32, scale: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<y_t>>;

//!include grid
//!include rng
//!include dropout

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_number(group) * 256u + lane;
    if i < p.n / 8u {
        let words = dropout_block(p.first / 8u + i);
        y[2u * i] = vec4<y_t>(dropout_factors(words.xy) * x[2u * i]);
        y[2u * i + 1u] = vec4<y_t>(dropout_factors(words.zw) * x[2u * i + 1u]);
    }
}
