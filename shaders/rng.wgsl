// The generator's draws for the counters (key, step, document, 0..n). One invocation per index.
struct Params { n: u32, key: u32, step: u32, document: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> words: array<u32>;       // [n, 4]
@group(0) @binding(2) var<storage, read_write> units: array<f32>;       // [n]
@group(0) @binding(3) var<storage, read_write> gumbels: array<f32>;     // [n]

//!include grid
//!include rng

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_number(group) * 64u + lane;
    if i < p.n {
        let block = pcg4d(vec4<u32>(p.key, p.step, p.document, i));
        for (var j = 0u; j < 4u; j++) {
            words[4u * i + j] = block[j];
        }
        units[i] = unit(block.x);
        gumbels[i] = gumbel(block.x);
    }
}
