// One level of ancestral sampling (src/kernels/sample.rs): one workgroup per prompt, one lane per sample.
struct Params { prompts: u32, nodes: u32, slot_base: u32, width: u32, tokens_at: u32, entries: u32, fanout: u32, run: u32,
                key: u32, step: u32, sharpness: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> child_logp: array<f32>;
@group(0) @binding(2) var<storage, read> trie: array<u32>;
@group(0) @binding(3) var<storage, read_write> tree: array<u32>;
@group(0) @binding(4) var<storage, read_write> stats: array<f32>;
@group(0) @binding(5) var<storage, read_write> rows: array<u32>;
@group(0) @binding(6) var<storage, read_write> parent: array<u32>;
@group(0) @binding(7) var<storage, read_write> entry: array<u32>;

//!include grid
//!include rng
//!include search
//!include grow

const LANES: u32 = 64u;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let b = group_number(group);
    let valid = b < p.prompts;
    let header = select(0u, b, valid) * (1u + p.nodes) * RECORD;
    let frontier = tree[header + FRONTIER];
    let count = tree[header + COUNT];
    let draws = tree[header + DRAWS];
    let document = tree[header + DOCUMENT];
    let samples = select(0u, p.width, valid);
    for (var j = lane; j < samples; j += LANES) {
        let e = j % p.entries;
        let at = tree[node_at(b, frontier + e) + TRIE];
        let begin = trie[at];
        let children = trie[at + 1u] - begin;
        let logps = (b * p.entries + e) * p.fanout;
        var chosen = 0u;
        var best = 0.0;
        for (var c = 0u; c < children; c++) {
            let word = pcg4d(vec4<u32>(p.key, p.step, document, draws + j * p.fanout + c)).x;
            let drawn = child_logp[logps + c] * p.sharpness + gumbel(word);
            if c == 0u || drawn > best {
                best = drawn;
                chosen = c;
            }
        }
        make(b, count + j, frontier + e, begin + chosen, child_logp[logps + chosen]);
        run(b, j, count + j, trie[p.tokens_at + begin + chosen]);
    }
    // Every lane has read the header.
    storageBarrier();
    if valid && lane == 0u {
        tree[header + COUNT] = count + p.width;
        tree[header + FRONTIER] = count;
        tree[header + COST] += select(0u, p.width, p.run != 0u);
        tree[header + DRAWS] = draws + p.width * p.fanout;
    }
}
