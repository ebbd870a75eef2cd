// y[r, :] = -S_r y[r, :] + keep times the sum of g_k w[t_k, :] over row r's targets inside the vocabulary, S_r that of
// g_k. One workgroup per row.
struct Params { rows: u32, width: u32, vocab: u32, keep: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> w: array<w_t>;                 // [vocab, width]
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
    var total = 0.0;
    for (var k = begin; k < end; k++) {
        if targets[k] < p.vocab {
            total += g[k];
        }
    }
    for (var i = lane; i < p.width; i += LANES) {
        var sum = -total * y[row * p.width + i];
        for (var k = begin; k < end; k++) {
            if targets[k] < p.vocab {
                sum = fma(p.keep * g[k], f32(w[targets[k] * p.width + i]), sum);
            }
        }
        y[row * p.width + i] = sum;
    }
}
