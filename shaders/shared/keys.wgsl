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
}

fn keys_of(begin: u32, end: u32, chain: u32) -> Keys {
    return Keys(begin, end - begin, chain, 0u, 0u);
}

// The next tile; `count` 0 when there is none. Every lane walks the chain, so that all agree on where it stands. The lane's
// key, or NONE, goes to `own`: a browser takes a struct for as uniform as its least uniform member, and barriers depend on
// `count`.
fn next_keys(keys: Keys, own: ptr<function, u32>, lane: u32) -> Keys {
    var k = keys;
    k.base += k.count;
    *own = NONE;
    k.count = min(k.prompt - min(k.base, k.prompt), 64u);
    if lane < k.count {
        *own = k.begin + k.base + lane;
    }
    while k.count < 64u && k.ancestor != NONE {
        if lane == k.count {
            *own = k.ancestor;
        }
        k.ancestor = parent[k.ancestor];
        k.count++;
    }
    return k;
}
