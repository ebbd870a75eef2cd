// Making tree nodes and the rows that run them. The kernel declares p.nodes, p.slot_base, p.width and the buffers
// tree, stats, rows, parent, entry.
fn node_at(b: u32, node: u32) -> u32 {
    return (b * (1u + p.nodes) + 1u + node) * RECORD;
}

fn stat_at(b: u32, node: u32) -> u32 {
    return (b * p.nodes + node) * STATS;
}

// Writes node `new_node` of prompt b as the child of `under` along `edge`.
fn make(b: u32, new_node: u32, under: u32, edge: u32, logp: f32) {
    let at = node_at(b, new_node);
    tree[at + TRIE] = edge + 1u;
    tree[at + PARENT] = under;
    tree[at + DEPTH] = tree[node_at(b, under) + DEPTH] + 1u;
    tree[at + VISITS] = 0u;
    tree[at + CHILDREN] = 0u;
    tree[at + CLOSED] = 0u;
    tree[at + FIRST] = NONE;
    tree[at + NEXT] = NONE;
    let stat = stat_at(b, new_node);
    stats[stat + VALUE] = 0.0;
    stats[stat + ENTROPY] = 0.0;
    stats[stat + SCORE] = 0.0;
    stats[stat + LOGP] = logp;
    stats[stat + CUMULATIVE] = stats[stat_at(b, under) + CUMULATIVE] + logp;
    let slots = p.slot_base + b * p.nodes;
    parent[slots + new_node] = select(slots + under, NONE, under == 0u);
}

// Makes row `row` of prompt b's next forward run `new_node`.
fn run(b: u32, row: u32, new_node: u32, token: u32) {
    let header = b * (1u + p.nodes) * RECORD;
    let begin = tree[header + KV_BEGIN];
    let end = tree[header + KV_END];
    let at = node_at(b, new_node);
    let slot = p.slot_base + b * p.nodes + new_node;
    let record = (b * p.width + row) * ROW;
    rows[record] = token;
    rows[record + 1u] = end - begin + tree[at + DEPTH] - 1u;
    rows[record + 2u] = begin;
    rows[record + 3u] = end;
    rows[record + 4u] = slot;
    rows[record + 5u] = slot;
    for (var i = 6u; i < ROW; i++) {
        rows[record + i] = 0u;
    }
    entry[2u * (b * p.width + row)] = b * p.nodes + new_node;
    entry[2u * (b * p.width + row) + 1u] = tree[at + TRIE];
}

// Makes row `row` of prompt b inactive.
fn idle(b: u32, row: u32) {
    let record = (b * p.width + row) * ROW;
    for (var i = 0u; i < ROW; i++) {
        rows[record + i] = select(0u, NONE, i == 4u || i == 5u);
    }
    entry[2u * (b * p.width + row)] = NONE;
    entry[2u * (b * p.width + row) + 1u] = 0u;
}
