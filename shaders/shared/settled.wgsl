// Prefixes that a single SID begins with: nothing is left to decide, so a search that does not score complete SIDs need not
// run them. After the children's tokens the trie holds, by node, how many children are such prefixes. Needs p.tokens_at and
// `trie`.
fn settled_children(at: u32) -> u32 {
    return trie[2u * p.tokens_at - 2u + at];
}

// Whether trie node `at` spells a single SID; without `settle`, whether it is one.
fn is_settled_at(at: u32, settle: bool) -> bool {
    let children = trie[at + 1u] - trie[at];
    return children == 0u || (settle && children == 1u && settled_children(at) == 1u);
}
