// The final selection (src/kernels/candidates.rs). One workgroup per prompt: lanes stride over the children of a node, and
// agree on the best.
struct Params { prompts: u32, nodes: u32, levels: u32, tokens_at: u32, fanout: u32, first_leaf: u32, goal: u32,
                ordered: u32, score_leaves: u32, eta: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> tree: array<u32>;
@group(0) @binding(2) var<storage, read> stats: array<f32>;
@group(0) @binding(3) var<storage, read> child_logp: array<f32>;
@group(0) @binding(4) var<storage, read> trie: array<u32>;
@group(0) @binding(5) var<storage, read_write> picked: array<u32>;
@group(0) @binding(6) var<storage, read_write> scores: array<f32>;

//!include grid
//!include search
//!include settled

// Lanes agree in two steps, 8 x 8, then 8.
const LANES: u32 = 64u;
const PARTS: u32 = 8u;
const SUMMARY: u32 = 4u;
// A leaf of the tree comes before every completion.
const NOTHING: u32 = 0u;
const COMPLETION: u32 = 1u;
const LEAF: u32 = 2u;
const BEFORE_ALL: u32 = 3u;

// What would be picked: `edge` under node `under`, or leaf `under`, which `edge` leads to.
struct Choice { kind: u32, under: u32, edge: u32, value: f32 }

var<workgroup> choice_of: array<Choice, LANES>;
var<workgroup> choice_of_part: array<Choice, PARTS>;
var<private> b: u32;
// Where this prompt's candidates begin.
var<private> list: u32;

fn word(node: u32, field: u32) -> u32 {
    return tree[(b * (1u + p.nodes) + 1u + node) * RECORD + field];
}

fn stat(node: u32, field: u32) -> f32 {
    return stats[(b * p.nodes + node) * STATS + field];
}

// Whether prefixes that a single SID begins with are complete as they are.
fn settles() -> bool {
    return p.ordered == 0u && p.score_leaves == 0u;
}

// The SID that trie node `at` is, or the only one below it.
fn sid_below(at: u32) -> u32 {
    var leaf = at;
    while trie[leaf + 1u] > trie[leaf] {
        leaf = trie[leaf] + 1u;
    }
    return leaf - p.first_leaf;
}

// Whether the SID below `edge` is among the first `found` candidates.
fn is_picked(edge: u32, found: u32) -> bool {
    let sid = sid_below(edge + 1u);
    for (var i = 0u; i < found; i++) {
        if picked[list + i * (1u + p.levels)] == sid {
            return true;
        }
    }
    return false;
}

// Makes the SID that `edge` under node `under` leads to candidate `place`; tokens that nothing else could be have log-prob 0.
fn pick(place: u32, under: u32, edge: u32, logp: f32, value: f32) {
    let out = list + place * (1u + p.levels);
    let out_scores = (b * p.goal + place) * (2u + p.levels);
    let depth = word(under, DEPTH) + 1u;
    scores[out_scores] = stat(under, CUMULATIVE) + logp;
    scores[out_scores + 1u] = value;
    picked[out + depth] = trie[p.tokens_at + edge];
    scores[out_scores + 1u + depth] = logp;
    var at = edge + 1u;
    for (var level = depth + 1u; level <= p.levels; level++) {
        picked[out + level] = trie[p.tokens_at + trie[at]];
        scores[out_scores + 1u + level] = 0.0;
        at = trie[at] + 1u;
    }
    picked[out] = at - p.first_leaf;
    var node = under;
    for (var level = depth - 1u; level > 0u; level--) {
        picked[out + level] = trie[p.tokens_at + word(node, TRIE) - 1u];
        scores[out_scores + 1u + level] = stat(node, LOGP);
        node = word(node, PARENT);
    }
}

fn child_logp_of(under: u32, edge: u32) -> f32 {
    return child_logp[(b * p.nodes + under) * p.fanout + edge - trie[word(under, TRIE)]];
}

// The value of an SID that was not run.
fn promise(under: u32, logp: f32) -> f32 {
    return stat(under, VALUE) + p.eta * (stat(under, CUMULATIVE) + logp);
}

// The value of a leaf in the tree.
fn leaf_value(leaf: u32) -> f32 {
    if settles() {
        return promise(word(leaf, PARENT), stat(leaf, LOGP));
    }
    return stat(leaf, VALUE);
}

fn is_leaf(node: u32) -> bool {
    return node > 0u && is_settled_at(word(node, TRIE), settles());
}

fn is_before(a: Choice, other: Choice) -> bool {
    if a.kind != other.kind {
        return a.kind > other.kind;
    }
    if a.value != other.value {
        return a.value > other.value;
    }
    return a.under < other.under || (a.under == other.under && a.edge < other.edge);
}

// The best that this lane finds after `last`.
fn best_of_lane(lane: u32, count: u32, last: Choice) -> Choice {
    var best = Choice(NOTHING, NONE, NONE, 0.0);
    for (var leaf = lane; leaf < count; leaf += LANES) {
        if is_leaf(leaf) {
            let choice = Choice(LEAF, leaf, word(leaf, TRIE) - 1u, leaf_value(leaf));
            if is_before(last, choice) && is_before(choice, best) {
                best = choice;
            }
        }
    }
    if best.kind == LEAF {
        return best;
    }
    for (var node = 0u; node < count; node++) {
        if is_leaf(node) || (!settles() && word(node, DEPTH) + 1u != p.levels) {
            continue;
        }
        let at = word(node, TRIE);
        for (var edge = trie[at] + lane; edge < trie[at + 1u]; edge += LANES) {
            let choice = Choice(COMPLETION, node, edge, promise(node, child_logp_of(node, edge)));
            if is_before(last, choice) && is_before(choice, best) && is_settled_at(edge + 1u, settles()) {
                best = choice;
            }
        }
    }
    return best;
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let prompt = group_number(group);
    let valid = prompt < p.prompts;
    b = select(0u, prompt, valid);
    let header = b * (1u + p.nodes) * RECORD;
    let count = tree[header + COUNT];
    let frontier = tree[header + FRONTIER];
    let summary = b * (SUMMARY + p.levels + 1u + p.goal * (1u + p.levels));
    list = summary + SUMMARY + p.levels + 1u;
    var found = 0u;
    var searched = 0u;
    if p.ordered != 0u {
        found = min(count - frontier, p.goal);
        searched = found;
        for (var i = lane; valid && i < found; i += LANES) {
            let leaf = frontier + i;
            pick(i, word(leaf, PARENT), word(leaf, TRIE) - 1u, stat(leaf, LOGP), stat(leaf, VALUE));
        }
    } else {
        // In their order. Completions are looked at when fewer leaves than `goal` have been picked, all there are; as many of
        // them may be those leaves.
        var best = Choice(BEFORE_ALL, NONE, NONE, 0.0);
        for (var i = 0u; i < 2u * p.goal; i++) {
            if found < p.goal {
                choice_of[lane] = best_of_lane(lane, count, best);
            }
            storageBarrier();
            workgroupBarrier();
            if found < p.goal && lane < PARTS {
                var own = choice_of[lane];
                for (var other = lane + PARTS; other < LANES; other += PARTS) {
                    if is_before(choice_of[other], own) {
                        own = choice_of[other];
                    }
                }
                choice_of_part[lane] = own;
            }
            storageBarrier();
            workgroupBarrier();
            if found < p.goal {
                best = choice_of_part[0];
                for (var part = 1u; part < PARTS; part++) {
                    if is_before(choice_of_part[part], best) {
                        best = choice_of_part[part];
                    }
                }
                if best.kind == LEAF || (best.kind == COMPLETION && !is_picked(best.edge, found)) {
                    if valid && lane == 0u {
                        if best.kind == LEAF {
                            pick(found, word(best.under, PARENT), best.edge, stat(best.under, LOGP), best.value);
                        } else {
                            pick(found, best.under, best.edge, child_logp_of(best.under, best.edge), best.value);
                        }
                    }
                    found += 1u;
                    searched += select(0u, 1u, best.kind == LEAF);
                }
            }
            // The pick is written, and every lane has seen the choices.
            storageBarrier();
            workgroupBarrier();
        }
    }
    if !valid {
        return;
    }
    if lane == 0u {
        picked[summary] = found;
        picked[summary + 1u] = searched;
        picked[summary + 2u] = tree[header + COST];
        picked[summary + 3u] = tree[header + DEAD_ENDS];
    }
    for (var depth = lane; depth <= p.levels; depth += LANES) {
        var members = 0u;
        for (var node = 0u; node < count; node++) {
            members += select(0u, 1u, word(node, DEPTH) == depth);
        }
        picked[summary + SUMMARY + depth] = members;
    }
}
