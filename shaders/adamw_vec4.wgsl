// As adamw.wgsl, n a multiple of 4: one invocation per vec4.
struct Params { n: u32, beta1: f32, beta2: f32, eps: f32, lr: f32, decay: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> param: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> grad: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> m: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> v: array<vec4<f32>>;
// norm, scale, finite, updates, and the two bias corrections.
@group(0) @binding(5) var<storage, read> norm: array<f32>;

//!include grid

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_number(group) * 256u + lane;
    if i >= p.n / 4u || norm[2] == 0.0 {
        return;
    }
    let g = norm[1] * grad[i];
    let m_new = p.beta1 * m[i] + (1.0 - p.beta1) * g;
    let v_new = p.beta2 * v[i] + (1.0 - p.beta2) * g * g;
    m[i] = m_new;
    v[i] = v_new;
    let denominator = sqrt(v_new) * norm[5] + p.eps;
    param[i] -= p.decay * param[i] + p.lr * norm[4] * m_new / denominator;
}
