// out = silu(gate) * up; a row of gate_up is gate[f] then up[f]. One invocation per element of out.
struct Params { rows: u32, f: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> gate_up: array<gate_up_t>;
@group(0) @binding(2) var<storage, read_write> out: array<out_t>;

//!include grid
//!include sigmoid

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_number(group) * 256u + lane;
    if i < p.rows * p.f {
        let gate = i + (i / p.f) * p.f;
        out[i] = out_t(silu(f32(gate_up[gate])) * f32(gate_up[gate + p.f]));
    }
}
