// The slots that the rows of a tile (`tile.wgsl`) attend to, eight of each row at a time: of the chains, which are no
// ranges; of the prompts too, where going through them tile by tile would be mostly masked. Needs `walk.wgsl`.
var<workgroup> slots: array<u32, 256>;

// An invocation's rows: their numbers, their prompts (empty past the last row), and whether one has a chain.
struct Own {
    row: vec4<u32>,
    begin: vec4<u32>,
    end: vec4<u32>,
    chained: u32,
}

fn own_rows(first: u32, lane: u32) -> Own {
    var own: Own;
    own.row = first + lane / SIDE + OFFSETS;
    for (var i = 0u; i < 4u; i++) {
        if own.row[i] < p.tokens {
            let record = own.row[i] * ROW;
            own.begin[i] = rows[record + KV_BEGIN];
            own.end[i] = rows[record + KV_END];
            own.chained |= u32(rows[record + CHAIN] != NONE);
        }
    }
    return own;
}

// Whether a tile's prompts, as `ahead` describes them, are better gone through together. By estimate an element of a tile
// costs an eighth of one that is fetched alone: a row of the tile should attend to an eighth of the range at least.
fn is_dense(all: vec4<u32>) -> bool {
    return all.z > 0u && 8u * all.z >= ROWS * (all.y - all.x);
}

// What is left to be listed of row `row`: nothing of its prompt if the tile is dense.
fn to_list(row: u32, dense: bool) -> Walk {
    if row >= p.tokens {
        return Walk(0u, 0u, NONE);
    }
    var walk = walk_of(row * ROW);
    if dense {
        walk.slot = walk.end;
    }
    return walk;
}

// The next eight: slots[u * ROWS + r] for row r of the tile, whose lane walks, NONE past the last.
fn list(walk: ptr<function, Walk>, lane: u32) {
    if lane < ROWS {
        for (var u = 0u; u < SIDE; u++) {
            slots[u * ROWS + lane] = next_slot(walk);
        }
    }
    workgroupBarrier();
}

// Entry `u` of the invocation's rows.
fn listed(u: u32, lane: u32) -> vec4<u32> {
    let at = u * ROWS + lane / SIDE;
    return vec4<u32>(slots[at], slots[at + 8u], slots[at + 16u], slots[at + 24u]);
}

// Whether some list of the tile was full, so that there may be more.
fn is_more(lane: u32) -> bool {
    let last = listed(SIDE - 1u, lane);
    return over_rows(vec4<u32>(0u, 0u, 0u, u32(any(last != vec4<u32>(NONE)))), lane).w > 0u;
}

// What `list` left of the rows' own entries is weighted: out[piece][i] += weights[i] * (key or value `head` of the slot),
// column y of each piece. `weights` belongs to entry y.
fn weigh_listed(out: ptr<function, array<Block, MOST_PIECES>>, weights: vec4<f32>, head: u32, lane: u32) {
    let width = p.head_dim / 4u;
    tiles[place(NEAR, 0u, lane)] = weights;
    workgroupBarrier();
    for (var u = 0u; u < SIDE; u++) {
        let slot = listed(u, lane);
        let weight = tiles[NEAR + u * PITCH + lane / SIDE];
        for (var i = 0u; i < 4u; i++) {
            if slot[i] != NONE {
                let at = (slot[i] * 2u * p.kv_heads + head) * width;
                for (var piece = 0u; piece < PIECES; piece++) {
                    let column = piece * SIDE + lane % SIDE;
                    if column < width {
                        (*out)[piece][i] = fma(vec4<f32>(weight[i]), vec4<f32>(kv[at + column]), (*out)[piece][i]);
                    }
                }
            }
        }
    }
}
