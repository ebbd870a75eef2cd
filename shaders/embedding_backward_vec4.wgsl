// As embedding_backward.wgsl, width a multiple of 4: one invocation per (place in the order, four columns).
struct Params { count: u32, width: u32, stride: u32, first: u32, held: u32, weighted: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> d_out: array<vec4<f32>>;       // [.., width]
@group(0) @binding(2) var<storage, read> tokens: array<u32>;            // [count, stride]: first of each
@group(0) @binding(3) var<storage, read> order: array<u32>;             // [count]
@group(0) @binding(4) var<storage, read> rows: array<u32>;              // [count]
@group(0) @binding(5) var<storage, read> weights: array<f32>;           // [count]
@group(0) @binding(6) var<storage, read_write> d_table: array<vec4<f32>>; // [held, width]

//!include grid

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_number(group) * 256u + lane;
    let width = p.width / 4u;
    if i >= p.count * width {
        return;
    }
    let place = i / width;
    let column = i % width;
    let token = tokens[order[place] * p.stride];
    if token - p.first >= p.held {
        return;
    }
    if place > 0u && tokens[order[place - 1u] * p.stride] == token {
        return;
    }
    var sum = vec4<f32>();
    for (var k = place; k < p.count; k++) {
        let entry = order[k];
        if tokens[entry * p.stride] != token {
            break;
        }
        if p.weighted == 1u {
            sum = fma(vec4<f32>(weights[entry]), d_out[rows[entry] * width + column], sum);
        } else {
            sum += d_out[entry * width + column];
        }
    }
    d_table[(token - p.first) * width + column] += sum;
}
