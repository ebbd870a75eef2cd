// Attention in tiles, for workgroups of 8 x 8 invocations (x, y) = (lane / 8, lane % 8) that own ROWS rows of a head and go
// over other rows ROWS at a time. Needs `rows.wgsl` and bindings `q` and `kv` in fours.
//
// Operands pass through workgroup memory in pieces of eight columns of four numbers: column c of row r is
// tiles[NEAR or FAR + c * PITCH + r], with a PITCH by which eight neighbours in c, as in r, lie in different banks. An
// invocation has the rows x + 8 i, i below 4: element or component i of what it keeps. Other rows are its y + 8 j.
const SIDE = 8u;
const LANES = 64u;
const ROWS = 32u;
const PITCH = 33u;
const NEAR = 0u;
const FAR = 264u;
const OFFSETS = vec4<u32>(0u, 8u, 16u, 24u);
// Pieces of the widest head, and how many of them there may be at all: registers are for the former.
override PIECES: u32 = 2u;
const MOST_PIECES = 4u;
// Element i: own row x + 8 i.
alias Block = array<vec4<f32>, 4>;

var<workgroup> tiles: array<vec4<f32>, 528>;
var<workgroup> parts: array<vec4<u32>, 8>;
var<workgroup> whole: vec4<u32>;

// Where column `lane % 8` of a piece of an invocation's row i lies.
fn place(to: u32, i: u32, lane: u32) -> u32 {
    return to + lane % SIDE * PITCH + lane / SIDE + SIDE * i;
}

// Where it comes from in a matrix of `heads` heads a row; NONE from row `end` on, and past the head.
fn origin(row: u32, end: u32, heads: u32, head: u32, piece: u32, lane: u32) -> u32 {
    let width = p.head_dim / 4u;
    let column = piece * SIDE + lane % SIDE;
    return select(NONE, (row * heads + head) * width + column, row < end && column < width);
}

// Piece `piece` of head `head` of the queries first .. first + ROWS; zeros from `end` on, and past the head.
fn load_queries(to: u32, first: u32, end: u32, head: u32, piece: u32, lane: u32) {
    for (var i = 0u; i < 4u; i++) {
        let at = origin(first + lane / SIDE + SIDE * i, end, p.heads, head, piece, lane);
        var v = vec4<f32>();
        if at != NONE {
            v = vec4<f32>(q[at]);
        }
        tiles[place(to, i, lane)] = v;
    }
}

// The same of keys or values: `head` counts through both.
fn load_keys(to: u32, first: u32, end: u32, head: u32, piece: u32, lane: u32) {
    for (var i = 0u; i < 4u; i++) {
        let at = origin(first + lane / SIDE + SIDE * i, end, 2u * p.kv_heads, head, piece, lane);
        var v = vec4<f32>();
        if at != NONE {
            v = vec4<f32>(kv[at]);
        }
        tiles[place(to, i, lane)] = v;
    }
}

// sums[i][j] += near row x + 8 i . far row y + 8 j, of one piece.
fn multiply(sums: ptr<function, Block>, lane: u32) {
    for (var c = 0u; c < SIDE; c++) {
        let at = FAR + c * PITCH + lane % SIDE;
        let f0 = tiles[at];
        let f1 = tiles[at + 8u];
        let f2 = tiles[at + 16u];
        let f3 = tiles[at + 24u];
        let xs = vec4<f32>(f0.x, f1.x, f2.x, f3.x);
        let ys = vec4<f32>(f0.y, f1.y, f2.y, f3.y);
        let zs = vec4<f32>(f0.z, f1.z, f2.z, f3.z);
        let ws = vec4<f32>(f0.w, f1.w, f2.w, f3.w);
        for (var i = 0u; i < 4u; i++) {
            let own = tiles[NEAR + c * PITCH + lane / SIDE + SIDE * i];
            var sum = fma(own.xxxx, xs, (*sums)[i]);
            sum = fma(own.yyyy, ys, sum);
            sum = fma(own.zzzz, zs, sum);
            (*sums)[i] = fma(own.wwww, ws, sum);
        }
    }
}

// Makes weights[i][j], of own row x + 8 i and far row y + 8 j, the near operand of `weigh`.
fn store_weights(weights: Block, lane: u32) {
    for (var i = 0u; i < 4u; i++) {
        tiles[place(NEAR, i, lane)] = weights[i];
    }
}

// sums[i] += the far rows' column y of one piece, weighted.
fn weigh(sums: Block, lane: u32) -> Block {
    var all = sums;
    for (var u = 0u; u < SIDE; u++) {
        let at = FAR + lane % SIDE * PITCH + u;
        let f0 = tiles[at];
        let f1 = tiles[at + 8u];
        let f2 = tiles[at + 16u];
        let f3 = tiles[at + 24u];
        for (var i = 0u; i < 4u; i++) {
            let weights = tiles[NEAR + u * PITCH + lane / SIDE + SIDE * i];
            var sum = fma(weights.xxxx, f0, all[i]);
            sum = fma(weights.yyyy, f1, sum);
            sum = fma(weights.zzzz, f2, sum);
            all[i] = fma(weights.wwww, f3, sum);
        }
    }
    return all;
}

// For all rows of the tile the least x, greatest y, sum of z and greatest w of what each invocation says of its own.
fn over_rows(own: vec4<u32>, lane: u32) -> vec4<u32> {
    if lane % SIDE == 0u {
        parts[lane / SIDE] = own;
    }
    workgroupBarrier();
    if lane == 0u {
        var all = parts[0];
        for (var i = 1u; i < SIDE; i++) {
            let part = parts[i];
            all = vec4<u32>(min(all.x, part.x), max(all.y, part.y), all.z + part.z, max(all.w, part.w));
        }
        whole = all;
    }
    return workgroupUniformLoad(&whole);
}

// What is left of the rows' ranges from `base` on: where it begins and ends, and its places, of all rows together (0: none).
// `more` is passed through.
fn ahead(begin: vec4<u32>, end: vec4<u32>, base: u32, more: u32, lane: u32) -> vec4<u32> {
    let start = max(begin, vec4<u32>(base));
    let left = start < end;
    let begins = select(vec4<u32>(NONE), start, left);
    let ends = select(vec4<u32>(), end, left);
    let counts = select(vec4<u32>(), end - start, left);
    return over_rows(vec4<u32>(min(min(begins.x, begins.y), min(begins.z, begins.w)),
                               max(max(ends.x, ends.y), max(ends.z, ends.w)),
                               counts.x + counts.y + counts.z + counts.w, more), lane);
}

// Which of the far rows base + y + 8 j lie in begin .. end.
fn seen(begin: u32, end: u32, base: u32, lane: u32) -> vec4<bool> {
    let far = base + lane % SIDE + OFFSETS;
    return (far >= vec4<u32>(begin)) & (far < vec4<u32>(end));
}
