// d_table[token - first, :] += the sum over the entries of a list that hold the token of an entry's row of d_out or, weighted, of
// weights[entry] times row rows[entry]. One invocation per (place in the order, column): the first place of each token's
// run sums the run, in order.
struct Params { count: u32, width: u32, stride: u32, first: u32, held: u32, weighted: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> d_out: array<f32>;             // [.., width]
@group(0) @binding(2) var<storage, read> tokens: array<u32>;            // [count, stride]: first of each
@group(0) @binding(3) var<storage, read> order: array<u32>;             // [count]
@group(0) @binding(4) var<storage, read> rows: array<u32>;              // [count]
@group(0) @binding(5) var<storage, read> weights: array<f32>;           // [count]
@group(0) @binding(6) var<storage, read_write> d_table: array<f32>;     // [held, width]

//!include grid

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_number(group) * 256u + lane;
    if i >= p.count * p.width {
        return;
    }
    let place = i / p.width;
    let column = i % p.width;
    let token = tokens[order[place] * p.stride];
    if token - p.first >= p.held {
        return;
    }
    if place > 0u && tokens[order[place - 1u] * p.stride] == token {
        return;
    }
    var sum = 0.0;
    for (var k = place; k < p.count; k++) {
        let entry = order[k];
        if tokens[entry * p.stride] != token {
            break;
        }
        if p.weighted == 1u {
            sum = fma(weights[entry], d_out[rows[entry] * p.width + column], sum);
        } else {
            sum += d_out[entry * p.width + column];
        }
    }
    d_table[(token - p.first) * p.width + column] += sum;
}
