// One round of value-guided search (src/kernels/ved_select.rs). One invocation per prompt: a round is a few hundred
// dependent steps on a tree of some fifty nodes.
struct Params { prompts: u32, nodes: u32, slot_base: u32, width: u32, tokens_at: u32, fanout: u32, levels: u32,
                run_levels: u32, budget: u32, goal: u32, leaves: u32, rounds_left: u32, first: u32,
                table: u32, key: u32, step: u32, eta: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> child_logp: array<f32>;
@group(0) @binding(2) var<storage, read> trie: array<u32>;
@group(0) @binding(3) var<storage, read> table: array<f32>;
@group(0) @binding(4) var<storage, read_write> tree: array<u32>;
@group(0) @binding(5) var<storage, read_write> stats: array<f32>;
@group(0) @binding(6) var<storage, read_write> rows: array<u32>;
@group(0) @binding(7) var<storage, read_write> parent: array<u32>;
@group(0) @binding(8) var<storage, read_write> entry: array<u32>;

//!include grid
//!include rng
//!include search
//!include grow
//!include settled

const MAX_LEVELS: u32 = 16u;
const MAX_DEAD_ENDS: u32 = 16u;
const SLACK: f32 = 1e-6;

// The prompt, and the first word of its header.
var<private> b: u32;
var<private> header: u32;
// Per depth: unexpanded children that cost a forward; mean of G.
var<private> open: array<u32, MAX_LEVELS>;
var<private> mean: array<f32, MAX_LEVELS>;
// SIDs that need no further forward; leaves in the tree.
var<private> reachable: u32;
var<private> leaves: u32;

fn legal(node: u32) -> u32 {
    let at = tree[node_at(b, node) + TRIE];
    return trie[at + 1u] - trie[at];
}

// Whether prefixes that a single SID begins with are not run.
fn settles() -> bool {
    return p.run_levels < p.levels;
}

// Whether a node is complete: an SID, or the only way to one. The root is neither.
fn is_settled(node: u32) -> bool {
    return node > 0u && is_settled_at(tree[node_at(b, node) + TRIE], settles());
}

fn is_run(node: u32) -> bool {
    return !settles() || !is_settled(node);
}

// Children that complete an SID without a forward.
fn free_children(node: u32) -> u32 {
    return select(0u, settled_children(tree[node_at(b, node) + TRIE]), settles());
}

fn is_closed(node: u32) -> bool {
    return is_settled(node) || tree[node_at(b, node) + CLOSED] == legal(node);
}

// Backup: one more visit to the node and its ancestors.
fn visit(node: u32) {
    var at = node;
    while at != NONE {
        tree[node_at(b, at) + VISITS] += 1u;
        at = tree[node_at(b, at) + PARENT];
    }
}

// Enters a node in its parent's list of children, closes what it completes, backs up its visit.
fn link(node: u32) {
    let at = node_at(b, node);
    var up = tree[at + PARENT];
    tree[at + NEXT] = tree[node_at(b, up) + FIRST];
    tree[node_at(b, up) + FIRST] = node;
    tree[node_at(b, up) + CHILDREN] += 1u;
    if is_settled(node) {
        while up != NONE {
            tree[node_at(b, up) + CLOSED] += 1u;
            if !is_closed(up) {
                break;
            }
            up = tree[node_at(b, up) + PARENT];
        }
    }
    visit(node);
}

// Counts a node that is in the tree: its children are unexpanded or, where they cost nothing, within reach.
fn count_children(node: u32) {
    if is_settled(node) {
        leaves += 1u;
        // One that was not run is among its parent's free children.
        reachable += select(0u, 1u, is_run(node));
    } else {
        reachable += free_children(node);
        open[tree[node_at(b, node) + DEPTH]] += legal(node) - free_children(node);
    }
}

fn survey(count: u32) {
    var first: array<f32, MAX_LEVELS>;
    var sum: array<f32, MAX_LEVELS>;
    var members: array<u32, MAX_LEVELS>;
    for (var d = 0u; d < p.levels; d++) {
        open[d] = 0u;
        sum[d] = 0.0;
        members[d] = 0u;
    }
    reachable = 0u;
    leaves = 0u;
    for (var node = 0u; node < count; node++) {
        let at = node_at(b, node);
        let d = tree[at + DEPTH];
        count_children(node);
        if node > 0u && is_run(node) {
            open[d - 1u] -= 1u;
        }
        if is_settled(node) {
            continue;
        }
        // Relative to the first, so that the mean of equal scores is that score.
        let g = stats[stat_at(b, node) + SCORE];
        if members[d] == 0u {
            first[d] = g;
        }
        sum[d] += g - first[d];
        members[d] += 1u;
    }
    for (var d = 0u; d < p.levels; d++) {
        mean[d] = first[d] + sum[d] / f32(max(members[d], 1u));
    }
}

// Forwards that suffice to reach `goal` SIDs, taking the deepest open prefixes first.
fn reserve() -> u32 {
    var need = select(0u, p.goal - reachable, p.goal > reachable);
    var total = 0u;
    for (var d = p.run_levels; d > 0u; d--) {
        let some = min(need, open[d - 1u]);
        total += some * (p.run_levels + 1u - d);
        need -= some;
    }
    return total + need * p.run_levels;
}

fn is_taken(node: u32, edge: u32) -> bool {
    var child = tree[node_at(b, node) + FIRST];
    while child != NONE {
        if tree[node_at(b, child) + TRIE] == edge + 1u {
            return true;
        }
        child = tree[node_at(b, child) + NEXT];
    }
    return false;
}

// Greedy completion: of the deepest nodes with an unexpanded child that costs a forward, the child with the best V + eta
// logp. (node, edge); NONE when the nodes of this round, once they are scored, lead to enough SIDs by shorter ways.
fn best_open(frontier: u32) -> vec2<u32> {
    var chosen = vec2<u32>(NONE, NONE);
    var depth = 0u;
    var best = 0.0;
    for (var node = 0u; node < frontier; node++) {
        let at = node_at(b, node);
        let d = tree[at + DEPTH];
        let children = legal(node);
        if d >= p.run_levels || d < depth || tree[at + CHILDREN] == children {
            continue;
        }
        let begin = trie[tree[at + TRIE]];
        let value = stats[stat_at(b, node) + VALUE];
        for (var c = 0u; c < children; c++) {
            let score = value + p.eta * child_logp[(b * p.nodes + node) * p.fanout + c];
            if (chosen.x == NONE || d > depth || score > best)
                && !(settles() && is_settled_at(begin + c + 1u, true)) && !is_taken(node, begin + c) {
                chosen = vec2<u32>(node, begin + c);
                depth = d;
                best = score;
            }
        }
    }
    var nearer = reachable;
    for (var d = depth + 1u; d < p.run_levels; d++) {
        nearer += open[d];
    }
    if nearer >= p.goal {
        return vec2<u32>(NONE, NONE);
    }
    return chosen;
}

fn is_expandable(node: u32) -> bool {
    let at = node_at(b, node);
    let d = tree[at + DEPTH];
    let children = tree[at + CHILDREN];
    let widening = table[min(tree[at + VISITS], p.table - 1u)];
    return children < legal(node)
        && f32(children) < widening
        && (free_children(node) == 0u || leaves < p.leaves)
        && stats[stat_at(b, node) + SCORE] + SLACK * abs(mean[d]) >= mean[d];
}

// The node to expand, or NONE at a dead end (which counts a visit, so that the next try goes elsewhere).
fn select_node(frontier: u32) -> u32 {
    var node = 0u;
    loop {
        if is_expandable(node) {
            return node;
        }
        let root_visits = tree[node_at(b, 0u) + VISITS];
        let explore = table[p.table + min(root_visits, p.table - 1u)];
        var next = NONE;
        var best = 0.0;
        var child = tree[node_at(b, node) + FIRST];
        while child != NONE {
            let at = node_at(b, child);
            if child < frontier && !is_closed(child) {
                let u = stats[stat_at(b, child) + SCORE]
                    + explore * table[2u * p.table + min(tree[at + VISITS], p.table - 1u)];
                if next == NONE || u > best || (u == best && child < next) {
                    next = child;
                    best = u;
                }
            }
            child = tree[at + NEXT];
        }
        if next == NONE {
            break;
        }
        node = next;
    }
    visit(node);
    tree[header + DEAD_ENDS] += 1u;
    return NONE;
}

// Gumbel-max over the unexpanded children: the edge.
fn draw(node: u32) -> u32 {
    let begin = trie[tree[node_at(b, node) + TRIE]];
    let children = legal(node);
    let index = tree[header + DRAWS];
    tree[header + DRAWS] = index + children;
    var edge = NONE;
    var best = 0.0;
    for (var c = 0u; c < children; c++) {
        let word = pcg4d(vec4<u32>(p.key, p.step, tree[header + DOCUMENT], index + c)).x;
        let drawn = child_logp[(b * p.nodes + node) * p.fanout + c] + gumbel(word);
        if (edge == NONE || drawn > best) && !is_taken(node, begin + c) {
            edge = begin + c;
            best = drawn;
        }
    }
    return edge;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    b = group_number(group) * 64u + lane;
    if b >= p.prompts { return; }
    header = b * (1u + p.nodes) * RECORD;
    // What the last forward ran has its scores; what this round makes has none yet.
    let frontier = tree[header + COUNT];
    tree[header + FRONTIER] = frontier;
    if p.first != 0u {
        for (var node = 1u; node < frontier; node++) {
            link(node);
        }
    }
    survey(frontier);
    var row = 0u;
    var dead_ends = 0u;
    while row < p.width && dead_ends < MAX_DEAD_ENDS && tree[header + COST] < p.budget
        && tree[header + COUNT] < p.nodes && !is_closed(0u) {
        // Complete prefixes when what is left of the budget or of the rounds is needed for `goal` SIDs.
        let kept = reserve();
        let left = p.budget - tree[header + COST];
        let late = p.rounds_left + 1u <= (kept + p.width - 1u) / p.width + p.run_levels;
        var best = vec2<u32>(NONE, NONE);
        if kept > 0u && (left <= kept || late) {
            best = best_open(frontier);
            if best.x == NONE && left <= kept {
                break;
            }
        }
        if best.x == NONE {
            best.x = select_node(frontier);
            if best.x == NONE {
                dead_ends += 1u;
                continue;
            }
            best.y = draw(best.x);
        }
        let under = best.x;
        let edge = best.y;
        let begin = trie[tree[node_at(b, under) + TRIE]];
        let node = tree[header + COUNT];
        tree[header + COUNT] = node + 1u;
        make(b, node, under, edge, child_logp[(b * p.nodes + under) * p.fanout + edge - begin]);
        link(node);
        count_children(node);
        if is_run(node) {
            open[tree[node_at(b, node) + DEPTH] - 1u] -= 1u;
            run(b, row, node, trie[p.tokens_at + edge]);
            tree[header + COST] += 1u;
            row += 1u;
        }
    }
    for (; row < p.width; row++) {
        idle(b, row);
    }
}
