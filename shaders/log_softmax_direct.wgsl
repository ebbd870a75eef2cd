// As log_softmax.wgsl, for SIMD on the host's processor: one invocation per row, so no barrier. The sums are those of
// every fourth column.
struct Params { rows: u32, vocab: u32, first: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;            // [rows, vocab]
@group(0) @binding(2) var<storage, read> starts: array<u32>;            // [first + rows + 1]
@group(0) @binding(3) var<storage, read> targets: array<u32>;           // [K]
@group(0) @binding(4) var<storage, read_write> lse: array<f32>;         // [first + rows]
@group(0) @binding(5) var<storage, read_write> entropy: array<f32>;     // [first + rows]
@group(0) @binding(6) var<storage, read_write> logp: array<f32>;        // [K]

//!include grid

@compute @workgroup_size(32)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group_number(group) * 32u + lane;
    if row >= p.rows {
        return;
    }
    let base = row * p.vocab;
    let fours = p.vocab / 4u * 4u;
    var tops = vec4<f32>(-1e30);
    for (var v = 0u; v < fours; v += 4u) {
        let at = base + v;
        tops = max(tops, vec4<f32>(logits[at], logits[at + 1u], logits[at + 2u], logits[at + 3u]));
    }
    var largest = max(max(tops.x, tops.y), max(tops.z, tops.w));
    for (var v = fours; v < p.vocab; v++) {
        largest = max(largest, logits[base + v]);
    }
    // Sums of e^d and of e^d d, d = logit - max.
    var sums = vec4<f32>();
    var weighted = vec4<f32>();
    for (var v = 0u; v < fours; v += 4u) {
        let at = base + v;
        let d = vec4<f32>(logits[at], logits[at + 1u], logits[at + 2u], logits[at + 3u]) - largest;
        let e = exp(d);
        sums += e;
        weighted = fma(e, d, weighted);
    }
    var sum = (sums.x + sums.y) + (sums.z + sums.w);
    var mean = (weighted.x + weighted.y) + (weighted.z + weighted.w);
    for (var v = fours; v < p.vocab; v++) {
        let d = logits[base + v] - largest;
        let e = exp(d);
        sum += e;
        mean = fma(e, d, mean);
    }
    let log_sum = log(sum);
    let row_lse = largest + log_sum;
    lse[p.first + row] = row_lse;
    entropy[p.first + row] = log_sum - mean / sum;
    let end = starts[p.first + row + 1u];
    for (var k = starts[p.first + row]; k < end; k++) {
        let target_token = targets[k];
        var value = 0.0;
        if target_token < p.vocab {
            value = logits[base + target_token] - row_lse;
        }
        logp[k] = value;
    }
}
