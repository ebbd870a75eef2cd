// code[row] = the k of the least norms[k] - 2 products[row, k], the lower of equals. One workgroup per row.
struct Params { rows: u32, centroids: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> products: array<f32>;          // [rows, centroids]
@group(0) @binding(2) var<storage, read> norms: array<f32>;             // [centroids]
@group(0) @binding(3) var<storage, read_write> code: array<u32>;        // [rows]

//!include grid

const LANES = 64u;
var<workgroup> least: array<f32, LANES>;
var<workgroup> at: array<u32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group_number(group);
    if row >= p.rows {
        return;
    }
    var best = 3.4e38;
    var best_at = 0xffffffffu;
    for (var k = lane; k < p.centroids; k += LANES) {
        let distance = norms[k] - 2.0 * products[row * p.centroids + k];
        if distance < best {
            best = distance;
            best_at = k;
        }
    }
    least[lane] = best;
    at[lane] = best_at;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            let other = lane + half;
            if least[other] < least[lane] || (least[other] == least[lane] && at[other] < at[lane]) {
                least[lane] = least[other];
                at[lane] = at[other];
            }
        }
    }
    if lane == 0u {
        code[row] = at[0];
    }
}
