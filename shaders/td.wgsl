// Temporal-difference targets per candidate and level, and the value gradient per tree node. Invocation i does entry i
// of the targets and node i of the tree.
struct Params {
    prompts: u32, group: u32, levels: u32, nodes: u32, gamma: f32, scale: f32, weight: f32
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> value: array<f32>;             // [K]
@group(0) @binding(2) var<storage, read> step_reward: array<f32>;       // [B, G, L]
@group(0) @binding(3) var<storage, read> cand_node: array<u32>;         // [B, G, L]
@group(0) @binding(4) var<storage, read> node_info: array<u32>;         // [K, 4]
@group(0) @binding(5) var<storage, read_write> td_target: array<f32>;   // [B, G, L]
@group(0) @binding(6) var<storage, read_write> dvalue: array<f32>;      // [K]
@group(0) @binding(7) var<storage, read_write> terms: array<f32>;       // [K]

//!include grid

const NONE = 0xffffffffu;

// The target of a present candidate's entry.
fn bootstrapped(entry: u32) -> f32 {
    if entry % p.levels + 1u == p.levels {
        return step_reward[entry];
    }
    return step_reward[entry] + p.gamma * value[cand_node[entry + 1u]];
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_number(group) * 64u + lane;
    if i < p.prompts * p.group * p.levels {
        var at = 0.0;
        if cand_node[i] != NONE {
            at = bootstrapped(i);
        }
        td_target[i] = at;
    }
    if i < p.nodes {
        let prompt = node_info[4u * i];
        var error = 0.0;
        var squares = 0.0;
        if prompt < p.prompts {
            let depth = node_info[4u * i + 1u];
            var present = 0.0;
            for (var c = prompt * p.group; c < (prompt + 1u) * p.group; c++) {
                if cand_node[c * p.levels] != NONE {
                    present += 1.0;
                }
                let entry = c * p.levels + depth;
                if cand_node[entry] == i {
                    let d = value[i] - bootstrapped(entry);
                    error += d;
                    squares += d * d;
                }
            }
            let scale = p.scale / max(present, 1.0);
            error *= 2.0 * scale * p.weight;
            squares *= scale;
        }
        dvalue[i] = error;
        terms[i] = squares;
    }
}
