// As swiglu.wgsl, f a multiple of 4: one invocation per vec4.
struct Params { rows: u32, f: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> gate_up: array<vec4<gate_up_t>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<out_t>>;

//!include grid
//!include sigmoid4

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_number(group) * 256u + lane;
    let f = p.f / 4u;
    if i < p.rows * f {
        let gate = i + (i / f) * f;
        let x = vec4<f32>(gate_up[gate]);
        out[i] = vec4<out_t>(x * sigmoid4(x) * vec4<f32>(gate_up[gate + f]));
    }
}
