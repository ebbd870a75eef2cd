// Forest attention, forward, for subgroups of 8 and more (SIMD on the host's processor): one invocation per (token, query
// head), eight neighbouring tokens per workgroup. Their prompts' keys are taken eight at a time: each lane loads one and
// gets the others' by a shuffle. What a token does not attend to is masked; its chain it walks alone.
struct Params { tokens: u32, heads: u32, kv_heads: u32, head_dim: u32, scale: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> rows: array<u32>;
@group(0) @binding(2) var<storage, read> parent: array<u32>;
@group(0) @binding(3) var<storage, read> q: array<vec4<q_t>>;
@group(0) @binding(4) var<storage, read> kv: array<vec4<kv_t>>;
@group(0) @binding(5) var<storage, read_write> o: array<vec4<o_t>>;
@group(0) @binding(6) var<storage, read_write> lse: array<f32>;

//!include grid
//!include rows
//!include eight

const MASKED: f32 = -1e30;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    let number = group_number(group);
    let head = number % p.heads;
    let first = number / p.heads * LANES;
    if first >= p.tokens {
        return;
    }
    let row = first + lane;
    let exists = row < p.tokens;
    let record = min(row, p.tokens - 1u) * ROW;
    let width = p.head_dim / 4u;
    let stride = 2u * p.kv_heads * width;
    let key = head / (p.heads / p.kv_heads) * width;
    let value = key + p.kv_heads * width;
    let unit = min(row, p.tokens - 1u) * p.heads + head;
    let at = unit * width;
    let begin = rows[record + KV_BEGIN];
    let end = rows[record + KV_END];
    let all = covering(begin, end);

    var query: array<vec4<f32>, WIDTH>;
    for (var d = 0u; d < width; d++) {
        query[d] = vec4<f32>(q[at + d]);
    }
    var top = MASKED;
    var sum = 0.0;
    var out: array<vec4<f32>, WIDTH>;
    for (var base = all.x; base < all.y; base += LANES) {
        let own = min(base + lane, all.y - 1u) * stride;
        var scores = array<f32, LANES>();
        for (var d = 0u; d < width; d++) {
            let keys = vec4<f32>(kv[own + key + d]);
            let own_query = query[d];
            for (var i = 0u; i < LANES; i++) {
                scores[i] = dot_onto(subgroupShuffle(keys, i), own_query, scores[i]);
            }
        }
        let before = top;
        for (var i = 0u; i < LANES; i++) {
            let seen = base + i >= begin && base + i < end;
            scores[i] = select(MASKED, scores[i] * p.scale, seen);
            top = max(top, scores[i]);
        }
        let keep = exp(before - top);
        sum *= keep;
        for (var i = 0u; i < LANES; i++) {
            let seen = base + i >= begin && base + i < end;
            scores[i] = select(0.0, exp(scores[i] - top), seen);
            sum += scores[i];
        }
        for (var c = 0u; c < width; c++) {
            let values = vec4<f32>(kv[own + value + c]);
            var v = out[c] * keep;
            for (var i = 0u; i < LANES; i++) {
                v = fma(vec4<f32>(scores[i]), subgroupShuffle(values, i), v);
            }
            out[c] = v;
        }
    }
    for (var slot = rows[record + CHAIN]; slot != NONE; slot = parent[slot]) {
        let own = slot * stride;
        var score = 0.0;
        for (var d = 0u; d < width; d++) {
            score = dot_onto(query[d], vec4<f32>(kv[own + key + d]), score);
        }
        score *= p.scale;
        let before = top;
        top = max(top, score);
        let keep = exp(before - top);
        let weight = exp(score - top);
        sum = fma(sum, keep, weight);
        for (var c = 0u; c < width; c++) {
            out[c] = fma(vec4<f32>(weight), vec4<f32>(kv[own + value + c]), out[c] * keep);
        }
    }
    if exists {
        lse[unit] = select(MASKED, top + log(max(sum, 1e-30)), sum > 0.0);
        let share = select(0.0, 1.0 / max(sum, 1e-30), sum > 0.0);
        for (var c = 0u; c < width; c++) {
            o[at + c] = vec4<o_t>(out[c] * share);
        }
    }
}
