// Plants a root per prompt: header, root record, its stats and its entry. One invocation per prompt.
struct Params { prompts: u32, nodes: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> prompt: array<u32>;
@group(0) @binding(2) var<storage, read_write> tree: array<u32>;
@group(0) @binding(3) var<storage, read_write> stats: array<f32>;
@group(0) @binding(4) var<storage, read_write> entry: array<u32>;

//!include grid
//!include search

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let b = group_number(group) * 64u + lane;
    if b >= p.prompts { return; }
    let header = b * (1u + p.nodes) * RECORD;
    tree[header + KV_BEGIN] = prompt[b * 3u];
    tree[header + KV_END] = prompt[b * 3u + 1u];
    tree[header + DOCUMENT] = prompt[b * 3u + 2u];
    tree[header + COUNT] = 1u;
    tree[header + FRONTIER] = 0u;
    tree[header + COST] = 1u;
    tree[header + DRAWS] = 0u;
    tree[header + DEAD_ENDS] = 0u;
    let root = header + RECORD;
    tree[root + TRIE] = 0u;
    tree[root + PARENT] = NONE;
    tree[root + DEPTH] = 0u;
    tree[root + VISITS] = 1u;
    tree[root + CHILDREN] = 0u;
    tree[root + CLOSED] = 0u;
    tree[root + FIRST] = NONE;
    tree[root + NEXT] = NONE;
    for (var i = 0u; i < STATS; i++) {
        stats[b * p.nodes * STATS + i] = 0.0;
    }
    entry[2u * b] = b * p.nodes;
    entry[2u * b + 1u] = 0u;
}
