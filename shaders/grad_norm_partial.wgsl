// partials[first + group] = sum of squares of CHUNK elements of g. One workgroup per chunk.
struct Params { n: u32, first: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> g: array<f32>;
@group(0) @binding(2) var<storage, read_write> partials: array<f32>;

//!include grid

const LANES = 64u;
const CHUNK = 8192u;
var<workgroup> sums: array<f32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let chunk = group_number(group);
    let begin = chunk * CHUNK;
    if begin >= p.n {
        return;
    }
    let end = min(begin + CHUNK, p.n);
    var sum = 0.0;
    for (var i = begin + lane; i < end; i += LANES) {
        sum += g[i] * g[i];
    }
    sums[lane] = sum;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            sums[lane] += sums[lane + half];
        }
    }
    if lane == 0u {
        partials[p.first + chunk] = sums[0];
    }
}
