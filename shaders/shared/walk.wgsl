// The slots a row attends to, one after the other: first its prompt, then its chain. Needs `rows.wgsl` and a binding
// `parent`.
struct Walk {
    slot: u32,
    end: u32,
    // The next slot of the chain.
    ancestor: u32,
}

fn walk_of(row: u32) -> Walk {
    return Walk(rows[row + KV_BEGIN], rows[row + KV_END], rows[row + CHAIN]);
}

// The next slot; NONE after the last.
fn next_slot(walk: ptr<function, Walk>) -> u32 {
    if (*walk).slot < (*walk).end {
        (*walk).slot++;
        return (*walk).slot - 1u;
    }
    let slot = (*walk).ancestor;
    if slot != NONE {
        (*walk).ancestor = parent[slot];
    }
    return slot;
}

fn next_slots(walk: ptr<function, Walk>) -> vec4<u32> {
    let a = next_slot(walk);
    let b = next_slot(walk);
    let c = next_slot(walk);
    let d = next_slot(walk);
    return vec4<u32>(a, b, c, d);
}
