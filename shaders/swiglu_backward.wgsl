// d_gate = d_out up silu'(gate), d_up = d_out silu(gate). One invocation per element of d_out.
struct Params { rows: u32, f: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> gate_up: array<gate_up_t>;
@group(0) @binding(2) var<storage, read> d_out: array<d_out_t>;
@group(0) @binding(3) var<storage, read_write> d_gate_up: array<d_gate_up_t>;

//!include grid
//!include sigmoid

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_number(group) * 256u + lane;
    if i < p.rows * p.f {
        let gate = i + (i / p.f) * p.f;
        let x = f32(gate_up[gate]);
        d_gate_up[gate] = d_gate_up_t(f32(d_out[i]) * f32(gate_up[gate + p.f]) * silu_slope(x));
        d_gate_up[gate + p.f] = d_gate_up_t(f32(d_out[i]) * silu(x));
    }
}
