// How much more of a prompt another model would give each candidate than the policy does, and what it would give to each
// prefix (src/kernels/shares.rs). One workgroup per prompt, lanes stride over the candidates.
struct Params { prompts: u32, group: u32, levels: u32, dim: u32, skip_held: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> picked: array<u32>;
@group(0) @binding(2) var<storage, read> scores: array<f32>;            // [B, G, 2 + L]: log-prob first
@group(0) @binding(3) var<storage, read> asked: array<u32>;             // [B, ASKED + L]
@group(0) @binding(4) var<storage, read> rows: array<u32>;              // [T, ROW]
@group(0) @binding(5) var<storage, read> queries: array<f32>;           // [B, D]
@group(0) @binding(6) var<storage, read> keys: array<f32>;              // [S, D]
@group(0) @binding(7) var<storage, read_write> shares: array<f32>;      // [B, G]
@group(0) @binding(8) var<storage, read_write> steps: array<f32>;       // [B, G, L]

//!include grid
//!include paths
//!include rows
//!include asked

const LANES: u32 = 64u;
const MAX_GROUP: u32 = 1024u;
// The logit of what gets no share.
const NO_SHARE: f32 = -3.4e38;

// Of the candidates: the other model's logits, then what it would give them; the policy's log-probs.
var<workgroup> logits: array<f32, MAX_GROUP>;
var<workgroup> logps: array<f32, MAX_GROUP>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let b = group_number(group);
    let valid = b < p.prompts;
    let count = select(0u, picked[summary(select(0u, b, valid))], valid);
    for (var c = lane; c < count; c += LANES) {
        var logit = NO_SHARE;
        if p.skip_held == 0u || !is_in_prompt(b, c) {
            logit = 0.0;
            let key = picked[path(b, c)] * p.dim;
            for (var i = 0u; i < p.dim; i++) {
                logit += queries[b * p.dim + i] * keys[key + i];
            }
        }
        logits[c] = logit;
        logps[c] = scores[(b * p.group + c) * (2u + p.levels)];
    }
    workgroupBarrier();
    var most = vec2<f32>(NO_SHARE);
    for (var c = 0u; c < count; c++) {
        most = max(most, vec2<f32>(logits[c], logps[c]));
    }
    var total = vec2<f32>(0.0);
    for (var c = 0u; c < count; c++) {
        if logits[c] > NO_SHARE {
            total.x += exp(logits[c] - most.x);
        }
        total.y += exp(logps[c] - most.y);
    }
    workgroupBarrier();
    for (var c = lane; c < count; c += LANES) {
        if logits[c] > NO_SHARE {
            logits[c] = exp(logits[c] - most.x) / total.x;
        } else {
            logits[c] = 0.0;
        }
    }
    workgroupBarrier();
    for (var c = lane; c < select(0u, p.group, valid); c += LANES) {
        var more = 0.0;
        if c < count {
            more = logits[c] - exp(logps[c] - most.y) / total.y;
        }
        let i = b * p.group + c;
        shares[i] = more;
        for (var l = 0u; l < p.levels; l++) {
            var under = 0.0;
            for (var other = 0u; other < select(0u, count, c < count); other++) {
                if starts_with(b, other, c, l + 1u) {
                    under += logits[other];
                }
            }
            steps[i * p.levels + l] = under;
        }
    }
}
