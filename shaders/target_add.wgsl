// y[r, :] = -S_r y[r, :] + keep times the sum of g_k w[t_k - first, :] over row r's targets, S_r the sum of g_k of those
// inside the vocabulary; without the factor where w is not the first of the table's shards. One workgroup per row.
struct Params { rows: u32, width: u32, vocab: u32, keep: f32, first: u32, held: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> w: array<w_t>;                 // [held, width]
@group(0) @binding(2) var<storage, read> starts: array<u32>;            // [rows + 1]
@group(0) @binding(3) var<storage, read> targets: array<u32>;           // [K]
@group(0) @binding(4) var<storage, read> g: array<f32>;                 // [K]
@group(0) @binding(5) var<storage, read_write> y: array<f32>;           // [rows, width]

//!include grid

const LANES = 64u;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group_number(group);
    if row >= p.rows {
        return;
    }
    let begin = starts[row];
    let end = starts[row + 1u];
    var factor = 1.0;
    if p.first == 0u {
        factor = 0.0;
        for (var k = begin; k < end; k++) {
            if targets[k] < p.vocab {
                factor -= g[k];
            }
        }
    }
    for (var i = lane; i < p.width; i += LANES) {
        var sum = factor * y[row * p.width + i];
        for (var k = begin; k < end; k++) {
            let token = targets[k] - p.first;
            if token < p.held {
                sum = fma(p.keep * g[k], f32(w[token * p.width + i]), sum);
            }
        }
        y[row * p.width + i] = sum;
    }
}
