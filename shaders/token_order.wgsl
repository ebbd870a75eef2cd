// order = the entries of a list sorted by token, those of one token ascending: an entry's place is the number of entries
// before it. One invocation per entry; a tile of 64 tokens at a time is shared.
struct Params { count: u32, stride: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> tokens: array<u32>;            // [count, stride]: first of each
@group(0) @binding(2) var<storage, read_write> order: array<u32>;       // [count]

//!include grid

const LANES = 64u;
var<workgroup> tile: array<u32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = group_number(group) * LANES;
    if first >= p.count {
        return;
    }
    let entry = first + lane;
    let own = tokens[min(entry, p.count - 1u) * p.stride];
    var before = 0u;
    for (var base = 0u; base < p.count; base += LANES) {
        tile[lane] = tokens[min(base + lane, p.count - 1u) * p.stride];
        workgroupBarrier();
        for (var i = 0u; i < min(LANES, p.count - base); i++) {
            let earlier = tile[i] < own || (tile[i] == own && base + i < entry);
            before += select(0u, 1u, earlier);
        }
        workgroupBarrier();
    }
    if entry < p.count {
        order[before] = entry;
    }
}
