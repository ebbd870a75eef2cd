// As fill.wgsl, room for a multiple of 4: one invocation per vec4. Where the device fills n in, the last may be cut short.
struct Params { n: u32, value: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<u32>>;

//!include grid

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_number(group) * 256u + lane;
    if i < p.n / 4u {
        y[i] = vec4<u32>(p.value);
    } else if i * 4u < p.n {
        let inside = vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.n % 4u);
        y[i] = select(y[i], vec4<u32>(p.value), inside);
    }
}
