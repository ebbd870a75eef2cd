// The slots a row attends to, 64 at a time: first its prompt, then its chain. Needs `rows.wgsl` and a binding `parent`.
struct Keys {
    begin: u32,
    prompt: u32,
    // The next slot of the chain.
    ancestor: u32,
    // Keys handed out so far.
    base: u32,
    // Keys of the current tile.
    count: u32,
    // This lane's key of the current tile, or NONE.
    own: u32,
}

fn keys_of(begin: u32, end: u32, chain: u32) -> Keys {
    return Keys(begin, end - begin, chain, 0u, 0u, NONE);
}

// The next tile; `count` 0 when there is none. Every lane walks the chain, so that all agree on where it stands.
fn next_keys(keys: Keys, lane: u32) -> Keys {
    var k = keys;
    k.base += k.count;
    k.own = NONE;
    k.count = min(k.prompt - min(k.base, k.prompt), 64u);
    if lane < k.count {
        k.own = k.begin + k.base + lane;
    }
    while k.count < 64u && k.ancestor != NONE {
        if lane == k.count {
            k.own = k.ancestor;
        }
        k.ancestor = parent[k.ancestor];
        k.count++;
    }
    return k;
}
