// order = the rows sorted by token, rows of one token ascending: a row's place is the number of rows before it. One
// invocation per row; a tile of 64 tokens at a time is shared.
struct Params { tokens: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> rows: array<u32>;              // [T, ROW]
@group(0) @binding(2) var<storage, read_write> order: array<u32>;       // [T]

//!include grid
//!include rows

const LANES = 64u;
var<workgroup> tile: array<u32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let first = group_number(group, groups) * LANES;
    if first >= p.tokens {
        return;
    }
    let row = first + lane;
    let own = rows[min(row, p.tokens - 1u) * ROW];
    var before = 0u;
    for (var base = 0u; base < p.tokens; base += LANES) {
        tile[lane] = rows[min(base + lane, p.tokens - 1u) * ROW];
        workgroupBarrier();
        for (var i = 0u; i < min(LANES, p.tokens - base); i++) {
            let earlier = tile[i] < own || (tile[i] == own && base + i < row);
            before += select(0u, 1u, earlier);
        }
        workgroupBarrier();
    }
    if row < p.tokens {
        order[before] = row;
    }
}
