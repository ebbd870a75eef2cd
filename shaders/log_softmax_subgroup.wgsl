// As log_softmax.wgsl, for hardware with subgroups of any size: each sums about its own maximum, so that one barrier is
// enough. Vocabulary a multiple of 4.
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

const LANES = 128u;
// Of each subgroup: maximum, sum of e^d and sum of e^d d, d = logit - maximum.
var<workgroup> parts: array<vec3<f32>, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32,
        @builtin(subgroup_id) team: u32, @builtin(num_subgroups) teams: u32) {
    let row = group_number(group);
    if row >= p.rows {
        return;
    }
    let leads = subgroupExclusiveAdd(1u) == 0u;
    let width = p.vocab / 4u;
    let base = row * width;

    // Lanes past the end stay in the loops: all take part in what follows over the subgroup.
    var tops = vec4<f32>(-1e30);
    for (var first = 0u; first < width; first += LANES) {
        tops = max(tops, logits[base + min(first + lane, width - 1u)]);
    }
    let own_top = subgroupMax(max(max(tops.x, tops.y), max(tops.z, tops.w)));
    var sums = vec4<f32>();
    var weighted = vec4<f32>();
    for (var first = 0u; first < width; first += LANES) {
        let d = logits[base + min(first + lane, width - 1u)] - own_top;
        let e = select(vec4<f32>(), exp(d), first + lane < width);
        sums += e;
        weighted = fma(e, d, weighted);
    }
    let own = vec3<f32>(own_top, subgroupAdd(total(sums)), subgroupAdd(total(weighted)));
    if leads {
        parts[team] = own;
    }
    workgroupBarrier();

    var largest = -1e30;
    for (var i = 0u; i < teams; i++) {
        largest = max(largest, parts[i].x);
    }
    var sum = 0.0;
    var mean = 0.0;
    for (var i = 0u; i < teams; i++) {
        let part = parts[i];
        let shift = part.x - largest;
        let e = exp(shift);
        sum = fma(e, part.y, sum);
        mean = fma(e, fma(part.y, shift, part.z), mean);
    }
    let log_sum = log(sum);
    let row_lse = largest + log_sum;
    if lane == 0u {
        lse[p.first + row] = row_lse;
        entropy[p.first + row] = log_sum - mean / sum;
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
