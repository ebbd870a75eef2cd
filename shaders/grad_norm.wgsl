// out = [norm, scale, finite, 0] from the sums of squares in partials. One workgroup.
struct Params { count: u32, clip: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> partials: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

const LANES = 256u;
var<workgroup> sums: array<f32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    for (var i = lane; i < p.count; i += LANES) {
        sum += partials[i];
    }
    sums[lane] = sum;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            sums[lane] += sums[lane + half];
        }
    }
    if lane == 0u {
        let square = sums[0];
        // By bits: compilers may assume that comparisons never meet a NaN.
        let finite = (bitcast<u32>(square) & 0x7f800000u) != 0x7f800000u;
        let norm = sqrt(square);
        var scale = 1.0;
        if p.clip > 0.0 && finite {
            scale = min(1.0, p.clip / (norm + 1e-6));
        }
        out[0] = norm;
        out[1] = scale;
        out[2] = select(0.0, 1.0, finite);
        out[3] = 0.0;
    }
}
