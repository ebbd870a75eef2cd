// out = [norm, scale, finite, updates, 1 / (1 - b1^t), 1 / sqrt(1 - b2^t), S, calm] from the sums of squares in partials,
// those of a gradient of S times the loss; t is the number of updates, this one included if the gradient is finite. One
// workgroup.
struct Params { count: u32, clip: f32, ln_beta1: f32, ln_beta2: f32, growth: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> partials: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

const LANES = 256u;
const MAX_LOSS_SCALE = 16777216.0;
var<workgroup> sums: array<f32, LANES>;

// 1 - exp(x) for x <= 0; by its series where the difference would cancel.
fn one_minus_exp(x: f32) -> f32 {
    if x < -0.5 {
        return 1.0 - exp(x);
    }
    return -x * (1.0 + x / 2.0 * (1.0 + x / 3.0 * (1.0 + x / 4.0 * (1.0 + x / 5.0 * (1.0 + x / 6.0
        * (1.0 + x / 7.0 * (1.0 + x / 8.0)))))));
}

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
        let loss_scale = out[6];
        let norm = sqrt(square) / loss_scale;
        var scale = 1.0 / loss_scale;
        if p.clip > 0.0 && finite {
            scale *= min(1.0, p.clip / (norm + 1e-6));
        }
        if p.growth > 0u {
            let calm = select(0.0, out[7] + 1.0, finite);
            let grows = calm >= f32(p.growth);
            if !finite {
                out[6] = max(loss_scale / 2.0, 1.0);
            } else if grows {
                out[6] = min(loss_scale * 2.0, MAX_LOSS_SCALE);
            }
            out[7] = select(calm, 0.0, grows);
        }
        let t = out[3] + select(0.0, 1.0, finite);
        out[0] = norm;
        out[1] = scale;
        out[2] = select(0.0, 1.0, finite);
        out[3] = t;
        out[4] = 1.0 / one_minus_exp(max(t, 1.0) * p.ln_beta1);
        out[5] = 1.0 / sqrt(one_minus_exp(max(t, 1.0) * p.ln_beta2));
    }
}
