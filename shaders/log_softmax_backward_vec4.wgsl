// As log_softmax_backward.wgsl, vocabulary a multiple of 4: each lane's columns are in fours.
struct Params { rows: u32, vocab: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> logits: array<vec4<f32>>; // [rows, vocab]
@group(0) @binding(2) var<storage, read> lse: array<f32>;               // [rows]
@group(0) @binding(3) var<storage, read> starts: array<u32>;            // [rows + 1]
@group(0) @binding(4) var<storage, read> targets: array<u32>;           // [K]
@group(0) @binding(5) var<storage, read> g: array<f32>;                 // [K]

//!include grid

const LANES = 64u;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = group_number(group, groups);
    if row >= p.rows {
        return;
    }
    let width = p.vocab / 4u;
    let base = row * width;
    let begin = starts[row];
    let end = starts[row + 1u];
    var total = 0.0;
    for (var k = begin; k < end; k++) {
        if targets[k] < p.vocab {
            total += g[k];
        }
    }
    let row_lse = lse[row];
    for (var v = lane; v < width; v += LANES) {
        var gradient = vec4<f32>();
        if total != 0.0 {
            gradient = -total * exp(logits[base + v] - row_lse);
        }
        logits[base + v] = gradient;
    }
    for (var k = begin; k < end; k++) {
        let v = targets[k] / 4u;
        if targets[k] < p.vocab && v % LANES == lane {
            let chosen = vec4<u32>(0u, 1u, 2u, 3u) == vec4<u32>(targets[k] % 4u);
            logits[base + v] += select(vec4<f32>(), vec4<f32>(g[k]), chosen);
        }
    }
}
