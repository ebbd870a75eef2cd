// y[r, :] = -S_r x[r, :], S_r the sum of g over row r's targets inside the vocabulary; rows[k] = r for all its targets.
// One workgroup per row.
struct Params { rows: u32, width: u32, vocab: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;                 // [rows, width]
@group(0) @binding(2) var<storage, read> starts: array<u32>;            // [rows + 1]
@group(0) @binding(3) var<storage, read> targets: array<u32>;           // [K]
@group(0) @binding(4) var<storage, read> g: array<f32>;                 // [K]
@group(0) @binding(5) var<storage, read_write> y: array<f32>;           // [rows, width]
@group(0) @binding(6) var<storage, read_write> rows: array<u32>;        // [K]

//!include grid

const LANES = 64u;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group_number(group);
    if row >= p.rows {
        return;
    }
    var total = 0.0;
    for (var k = starts[row]; k < starts[row + 1u]; k++) {
        if targets[k] < p.vocab {
            total += g[k];
        }
        if lane == 0u {
            rows[k] = row;
        }
    }
    for (var i = lane; i < p.width; i += LANES) {
        y[row * p.width + i] = -total * x[row * p.width + i];
    }
}
