// As log_softmax.wgsl, for hardware: 256 invocations per row, in vec4. They reduce in two steps: sixteen of them take
// sixteen values each, then everyone takes those sixteen. Vocabulary a multiple of 4.
struct Params { rows: u32, vocab: u32, first: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> logits: array<vec4<f32>>;      // [rows, vocab]
@group(0) @binding(2) var<storage, read> starts: array<u32>;            // [first + rows + 1]
@group(0) @binding(3) var<storage, read> targets: array<u32>;           // [K]
@group(0) @binding(4) var<storage, read_write> lse: array<f32>;         // [first + rows]
@group(0) @binding(5) var<storage, read_write> entropy: array<f32>;     // [first + rows]
@group(0) @binding(6) var<storage, read_write> logp: array<f32>;        // [K]

//!include grid
//!include total

const LANES = 256u;
const STEP = 16u;
var<workgroup> maxima: array<f32, LANES>;
var<workgroup> sums: array<vec2<f32>, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group_number(group);
    if row >= p.rows {
        return;
    }
    let width = p.vocab / 4u;
    let base = row * width;

    var tops = vec4<f32>(-1e30);
    for (var v = lane; v < width; v += LANES) {
        tops = max(tops, logits[base + v]);
    }
    maxima[lane] = max(max(tops.x, tops.y), max(tops.z, tops.w));
    workgroupBarrier();
    if lane < STEP {
        for (var i = lane + STEP; i < LANES; i += STEP) {
            maxima[lane] = max(maxima[lane], maxima[i]);
        }
    }
    workgroupBarrier();
    var largest = maxima[0];
    for (var i = 1u; i < STEP; i++) {
        largest = max(largest, maxima[i]);
    }

    // x: sum of e^d; y: sum of e^d d, d = logit - max.
    var own = vec4<f32>();
    var weighted = vec4<f32>();
    for (var v = lane; v < width; v += LANES) {
        let d = logits[base + v] - largest;
        let e = exp(d);
        own += e;
        weighted = fma(e, d, weighted);
    }
    sums[lane] = vec2<f32>(total(own), total(weighted));
    workgroupBarrier();
    if lane < STEP {
        for (var i = lane + STEP; i < LANES; i += STEP) {
            sums[lane] += sums[i];
        }
    }
    workgroupBarrier();
    var sum = sums[0];
    for (var i = 1u; i < STEP; i++) {
        sum += sums[i];
    }
    let log_sum = log(sum.x);
    let row_lse = largest + log_sum;
    if lane == 0u {
        lse[p.first + row] = row_lse;
        entropy[p.first + row] = log_sum - sum.y / sum.x;
    }
    let end = starts[p.first + row + 1u];
    for (var k = starts[p.first + row] + lane; k < end; k += LANES) {
        let target_token = targets[k];
        var value = 0.0;
        if target_token < p.vocab {
            value = logits[base + target_token / 4u][target_token % 4u] - row_lse;
        }
        logp[k] = value;
    }
}
