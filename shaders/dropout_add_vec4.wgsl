// As dropout_add.wgsl, where `first` and `n` are multiples of 8: one invocation per block of the generator.
struct Params { n: u32, first: u32, key: u32, step: u32, site: u32, keep: u32, scale: f32, onto: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;

//!include grid
//!include rng
//!include dropout

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_number(group) * 256u + lane;
    if i < p.n / 8u {
        let words = dropout_block(p.first / 8u + i);
        var low = dropout_factors(words.xy) * y[2u * i];
        var high = dropout_factors(words.zw) * y[2u * i + 1u];
        if p.onto == 1u {
            low += x[2u * i];
            high += x[2u * i + 1u];
        }
        y[2u * i] = low;
        y[2u * i + 1u] = high;
    }
}
