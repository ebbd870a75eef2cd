// The candidates of every prompt as rows of a forest and as the tables of the objective (src/kernels/tree.rs). One
// invocation per prompt: it walks the candidates in the order of their SIDs and keeps the path to the current one open.
struct Params {
    prompts: u32, group: u32, levels: u32, tree_begin: u32, begin_totals: u32,
    scored: u32, starts: u32, tokens: u32, cand_node: u32, node_info: u32, node_row: u32, counts: u32, totals: u32
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> picked: array<u32>;
@group(0) @binding(2) var<storage, read> asked: array<u32>;             // [B, ASKED + L]
@group(0) @binding(3) var<storage, read> rewards: array<f32>;           // [B, G]
@group(0) @binding(4) var<storage, read> sizes: array<u32>;             // [B, 4]
@group(0) @binding(5) var<storage, read_write> tables: array<u32>;
@group(0) @binding(6) var<storage, read_write> rows: array<u32>;        // [T, ROW]
@group(0) @binding(7) var<storage, read_write> parent: array<u32>;
@group(0) @binding(8) var<storage, read_write> figures: array<f32>;     // [B, FIGURES + L]

//!include grid
//!include rows
//!include paths

const ASKED = 4u;
const FIGURES = 8u;
const MAX_LEVELS = 16u;

// Of the open path, by level: node, row; nodes made so far, the level's first node, children of the open parent.
var<private> open_node: array<u32, MAX_LEVELS>;
var<private> open_row: array<u32, MAX_LEVELS>;
var<private> made: array<u32, MAX_LEVELS>;
var<private> offset: array<u32, MAX_LEVELS>;
var<private> children: array<u32, MAX_LEVELS>;

// Counts the nodes of every level into `made` and turns them into the levels' first nodes: breadth first.
fn plan_levels(b: u32, count: u32) {
    for (var l = 0u; l < p.levels; l++) {
        made[l] = 0u;
        children[l] = 0u;
    }
    var before = NO_CANDIDATE;
    var c = next_candidate(b, count, before);
    while c != NO_CANDIDATE {
        for (var l = shared_levels(b, before, c); l < p.levels; l++) {
            made[l]++;
        }
        before = c;
        c = next_candidate(b, count, before);
    }
    var first = 0u;
    for (var l = 0u; l < p.levels; l++) {
        offset[l] = first;
        first += made[l];
        made[l] = 0u;
    }
}

// Rows of the open path from `level` on end at row `end`.
fn close(level: u32, end: u32) {
    for (var l = level; l < p.levels; l++) {
        rows[open_row[l] * ROW + Q_END] = end;
    }
}

@compute @workgroup_size(32)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let b = group_number(group) * 32u + lane;
    if b >= p.prompts {
        return;
    }
    var first_node = 0u;
    var first_scored = 0u;
    for (var i = 0u; i < b; i++) {
        first_node += sizes[4u * i];
        first_scored += sizes[4u * i + 1u];
    }
    let count = picked[summary(b)];
    let nodes = sizes[4u * b];
    let begin = asked[b * (ASKED + p.levels)];
    let end = asked[b * (ASKED + p.levels) + 1u];
    let wanted = asked[b * (ASKED + p.levels) + 2u];
    let tree = p.tree_begin + first_node;
    for (var row = begin; row < end; row++) {
        rows[row * ROW + TREE_BEGIN] = tree;
        rows[row * ROW + TREE_END] = tree + nodes;
    }
    if count > 0u {
        tables[p.scored + first_scored] = end - 1u;
        tables[p.starts + first_scored] = first_node;
    }
    let figure = b * (FIGURES + p.levels);
    for (var l = 0u; l < p.levels; l++) {
        figures[figure + FIGURES + l] = 0.0;
    }
    plan_levels(b, count);
    var next_row = tree;
    var hit = 0.0;
    var before = NO_CANDIDATE;
    var c = next_candidate(b, count, before);
    while c != NO_CANDIDATE {
        let level = shared_levels(b, before, c);
        if before != NO_CANDIDATE {
            close(level, next_row);
        }
        for (var l = level; l < p.levels; l++) {
            let local = offset[l] + made[l];
            let node = first_node + local;
            let row = next_row;
            let token = picked[path(b, c) + 1u + l];
            var above = NONE;
            var above_row = NONE;
            if l > 0u {
                above = open_node[l - 1u];
                above_row = open_row[l - 1u];
            }
            made[l]++;
            next_row++;
            children[l]++;
            if children[l] == 2u {
                figures[figure + FIGURES + l] += 1.0;
            }
            let at = row * ROW;
            rows[at] = token;
            rows[at + POSITION] = end - begin + l;
            rows[at + KV_BEGIN] = begin;
            rows[at + KV_END] = end;
            rows[at + SLOT] = row;
            rows[at + CHAIN] = row;
            rows[at + Q_BEGIN] = row;
            rows[at + TREE_BEGIN] = 0u;
            rows[at + TREE_END] = 0u;
            parent[row] = above_row;
            tables[p.tokens + node] = token;
            tables[p.node_row + node] = row;
            tables[p.node_info + 4u * node] = b;
            tables[p.node_info + 4u * node + 1u] = l;
            tables[p.node_info + 4u * node + 2u] = above;
            tables[p.node_info + 4u * node + 3u] = 0u;
            if l + 1u < p.levels {
                children[l + 1u] = 0u;
                tables[p.scored + first_scored + 1u + local] = row;
                tables[p.starts + first_scored + 1u + local] = first_node + offset[l + 1u] + made[l + 1u];
            }
            open_node[l] = node;
            open_row[l] = row;
        }
        for (var l = 0u; l < p.levels; l++) {
            tables[p.cand_node + (b * p.group + c) * p.levels + l] = open_node[l];
        }
        if picked[path(b, c)] == wanted {
            hit = 1.0;
        }
        before = c;
        c = next_candidate(b, count, before);
    }
    if count > 0u {
        close(0u, next_row);
    }
    var sum = 0.0;
    var squares = 0.0;
    for (var c = 0u; c < count; c++) {
        let reward = rewards[b * p.group + c];
        sum += reward;
        squares += reward * reward;
    }
    for (var c = count; c < p.group; c++) {
        for (var l = 0u; l < p.levels; l++) {
            tables[p.cand_node + (b * p.group + c) * p.levels + l] = NONE;
        }
    }
    figures[figure] = f32(count);
    figures[figure + 1u] = sum;
    figures[figure + 2u] = squares;
    figures[figure + 3u] = 1.0 - f32(sizes[4u * b + 2u]);
    figures[figure + 4u] = hit;
    figures[figure + 5u] = f32(nodes);
    figures[figure + 6u] = f32(picked[summary(b) + 2u]);
    figures[figure + 7u] = f32(sizes[4u * b + 1u]);
    if b + 1u == p.prompts {
        let scored = first_scored + sizes[4u * b + 1u];
        tables[p.starts + scored] = first_node + nodes;
        tables[p.counts] = p.tree_begin + first_node + nodes;
        tables[p.counts + 1u] = first_node + nodes;
        tables[p.counts + 2u] = scored;
        var varied = 0u;
        var present = 0u;
        for (var i = 0u; i < p.prompts; i++) {
            varied += sizes[4u * i + 2u];
            present += sizes[4u * i + 3u];
        }
        if p.begin_totals == 0u {
            varied += tables[p.totals];
            present += tables[p.totals + 1u];
        }
        tables[p.totals] = varied;
        tables[p.totals + 1u] = present;
    }
}
