// Forest attention, forward, for GPUs: a workgroup owns a tile of 32 neighbouring rows of one query head (tile.wgsl). What
// the rows' prompts cover is gone through 32 keys at a time, every key loaded once for the tile and what a row does not
// attend to masked; stretches that no row attends to are skipped. Then each row's chain, eight slots at a time.
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
//!include walk
//!include tile
//!include tile_lists
//!include total

const MASKED: f32 = -1e30;
// What the eight invocations of a row tell each other, a component for each of their rows.
const TOLD = 9u;
var<workgroup> told: array<vec4<f32>, 72>;

fn tell(what: vec4<f32>, lane: u32) {
    told[lane / SIDE * TOLD + lane % SIDE] = what;
    workgroupBarrier();
}

// The rows' largest scores so far, with those that the invocations tell.
fn tops(before: vec4<f32>, lane: u32) -> vec4<f32> {
    var top = before;
    for (var u = 0u; u < SIDE; u++) {
        top = max(top, told[lane / SIDE * TOLD + u]);
    }
    return top;
}

// q . k, scaled; masked where there is no key.
fn score(row: u32, head: u32, slot: u32, key: u32) -> f32 {
    if slot == NONE {
        return MASKED;
    }
    let width = p.head_dim / 4u;
    let query = (row * p.heads + head) * width;
    let at = (slot * 2u * p.kv_heads + key) * width;
    var sum = 0.0;
    for (var d = 0u; d < width; d++) {
        let a = vec4<f32>(q[query + d]);
        let b = vec4<f32>(kv[at + d]);
        sum = fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
    }
    return sum * p.scale;
}

fn highest(v: vec4<f32>) -> f32 {
    return max(max(v.x, v.y), max(v.z, v.w));
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let number = group_number(group);
    let head = number % p.heads;
    let first = number / p.heads * ROWS;
    let key = head / (p.heads / p.kv_heads);
    let value = key + p.kv_heads;
    let width = p.head_dim / 4u;
    let own = own_rows(first, lane);
    var left = ahead(own.begin, own.end, 0u, own.chained, lane);
    let dense = is_dense(left);
    var listing = left.w > 0u || (left.z > 0u && !dense);

    // The sums of weights are the invocation's own until the end.
    var top = vec4<f32>(MASKED);
    var sum = vec4<f32>();
    var out: array<Block, MOST_PIECES>;
    while dense && left.z > 0u {
        var weights = Block();
        for (var piece = 0u; piece * SIDE < width; piece++) {
            load_queries(NEAR, first, p.tokens, head, piece, lane);
            load_keys(FAR, left.x, left.y, key, piece, lane);
            workgroupBarrier();
            multiply(&weights, lane);
            workgroupBarrier();
        }
        for (var i = 0u; i < 4u; i++) {
            weights[i] = select(vec4<f32>(MASKED), weights[i] * p.scale, seen(own.begin[i], own.end[i], left.x, lane));
        }
        tell(vec4<f32>(highest(weights[0]), highest(weights[1]), highest(weights[2]), highest(weights[3])), lane);
        let before = top;
        top = tops(before, lane);
        let keep = exp(before - top);
        for (var i = 0u; i < 4u; i++) {
            let weight = exp(weights[i] - top[i]);
            weights[i] = select(vec4<f32>(), weight, seen(own.begin[i], own.end[i], left.x, lane));
        }
        let added = vec4<f32>(total(weights[0]), total(weights[1]), total(weights[2]), total(weights[3]));
        sum = fma(sum, keep, added);
        store_weights(weights, lane);
        for (var piece = 0u; piece < PIECES; piece++) {
            if piece * SIDE < width {
                load_keys(FAR, left.x, left.y, value, piece, lane);
                workgroupBarrier();
                var sums = out[piece];
                for (var i = 0u; i < 4u; i++) {
                    sums[i] *= keep[i];
                }
                out[piece] = weigh(sums, lane);
                workgroupBarrier();
            }
        }
        left = ahead(own.begin, own.end, left.x + ROWS, 0u, lane);
    }
    var walk = to_list(first + lane, dense);
    while listing {
        list(&walk, lane);
        let slot = listed(lane % SIDE, lane);
        let scores = vec4<f32>(score(own.row.x, head, slot.x, key), score(own.row.y, head, slot.y, key),
                               score(own.row.z, head, slot.z, key), score(own.row.w, head, slot.w, key));
        tell(scores, lane);
        let before = top;
        top = tops(before, lane);
        let keep = exp(before - top);
        let weights = select(vec4<f32>(), exp(scores - top), slot != vec4<u32>(NONE));
        sum = fma(sum, keep, weights);
        for (var piece = 0u; piece < PIECES; piece++) {
            for (var i = 0u; i < 4u; i++) {
                out[piece][i] *= keep[i];
            }
        }
        weigh_listed(&out, weights, value, lane);
        listing = is_more(lane);
    }

    tell(sum, lane);
    var sums = vec4<f32>();
    for (var u = 0u; u < SIDE; u++) {
        sums += told[lane / SIDE * TOLD + u];
    }
    let share = select(vec4<f32>(), 1.0 / max(sums, vec4<f32>(1e-30)), sums > vec4<f32>());
    let logs = select(vec4<f32>(MASKED), top + log(max(sums, vec4<f32>(1e-30))), sums > vec4<f32>());
    for (var i = 0u; i < 4u; i++) {
        if own.row[i] < p.tokens {
            let unit = own.row[i] * p.heads + head;
            if lane % SIDE == 0u {
                lse[unit] = logs[i];
            }
            for (var piece = 0u; piece < PIECES; piece++) {
                let column = piece * SIDE + lane % SIDE;
                if column < width {
                    o[unit * width + column] = vec4<o_t>(out[piece][i] * share[i]);
                }
            }
        }
    }
}
