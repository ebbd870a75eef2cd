// sizes[b] = nodes of prompt b's tree, rows whose logits are read, whether its rewards differ, candidates. One invocation
// per prompt.
struct Params { prompts: u32, group: u32, levels: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> picked: array<u32>;
@group(0) @binding(2) var<storage, read> rewards: array<f32>;           // [B, G]
@group(0) @binding(3) var<storage, read_write> sizes: array<u32>;       // [B, 4]

//!include grid
//!include paths

@compute @workgroup_size(32)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let b = group_number(group) * 32u + lane;
    if b >= p.prompts {
        return;
    }
    let count = picked[summary(b)];
    var nodes = 0u;
    var inner = 0u;
    var before = NO_CANDIDATE;
    var c = next_candidate(b, count, before);
    while c != NO_CANDIDATE {
        let level = shared_levels(b, before, c);
        nodes += p.levels - level;
        inner += max(p.levels, level + 1u) - 1u - level;
        before = c;
        c = next_candidate(b, count, before);
    }
    var varied = 0u;
    for (var c = 1u; c < count; c++) {
        if rewards[b * p.group + c] != rewards[b * p.group] {
            varied = 1u;
        }
    }
    sizes[4u * b] = nodes;
    sizes[4u * b + 1u] = select(0u, 1u + inner, count > 0u);
    sizes[4u * b + 2u] = varied;
    sizes[4u * b + 3u] = count;
}
