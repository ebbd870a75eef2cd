// Per row: log-sum-exp, entropy, and the log-probabilities of the row's targets; the first row of logits is row `first` of
// everything else. One workgroup per row.
struct Params { rows: u32, vocab: u32, first: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;            // [rows, vocab]
@group(0) @binding(2) var<storage, read> starts: array<u32>;            // [first + rows + 1]
@group(0) @binding(3) var<storage, read> targets: array<u32>;           // [K]
@group(0) @binding(4) var<storage, read_write> lse: array<f32>;         // [first + rows]
@group(0) @binding(5) var<storage, read_write> entropy: array<f32>;     // [first + rows]
@group(0) @binding(6) var<storage, read_write> logp: array<f32>;        // [K]

//!include grid

const LANES = 64u;
var<workgroup> maxima: array<f32, LANES>;
var<workgroup> sums: array<vec2<f32>, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group_number(group);
    if row >= p.rows {
        return;
    }
    let base = row * p.vocab;

    var largest = -1e30;
    for (var v = lane; v < p.vocab; v += LANES) {
        largest = max(largest, logits[base + v]);
    }
    maxima[lane] = largest;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            maxima[lane] = max(maxima[lane], maxima[lane + half]);
        }
    }
    workgroupBarrier();
    largest = maxima[0];

    // x: sum of e^d; y: sum of e^d d, d = logit - max.
    var sum = vec2<f32>(0.0);
    for (var v = lane; v < p.vocab; v += LANES) {
        let d = logits[base + v] - largest;
        let e = exp(d);
        sum += vec2<f32>(e, e * d);
    }
    sums[lane] = sum;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            sums[lane] += sums[lane + half];
        }
    }
    workgroupBarrier();
    let log_sum = log(sums[0].x);
    let row_lse = largest + log_sum;
    if lane == 0u {
        lse[p.first + row] = row_lse;
        entropy[p.first + row] = log_sum - sums[0].y / sums[0].x;
    }
    let end = starts[p.first + row + 1u];
    for (var k = starts[p.first + row] + lane; k < end; k += LANES) {
        let target_token = targets[k];
        var value = 0.0;
        if target_token < p.vocab {
            value = logits[base + target_token] - row_lse;
        }
        logp[k] = value;
    }
}
