// A prompt's candidates as paths, in the order of their SIDs, so that equal prefixes follow each other. The kernel
// declares p.levels, p.group and the binding `picked` (src/kernels/candidates.rs). SUMMARY words come before the nodes
// per depth.
const SUMMARY: u32 = 4u;
const NO_CANDIDATE: u32 = 0xffffffffu;

fn summary(b: u32) -> u32 {
    return b * (SUMMARY + p.levels + 1u + p.group * (1u + p.levels));
}

// The words of candidate c of prompt b: SID, then its tokens.
fn path(b: u32, c: u32) -> u32 {
    return summary(b) + SUMMARY + p.levels + 1u + c * (1u + p.levels);
}

// Whether candidate `other` starts with the first `len` tokens of candidate c.
fn starts_with(b: u32, other: u32, c: u32, len: u32) -> bool {
    var same = true;
    for (var l = 0u; l < len; l++) {
        same = same && picked[path(b, other) + 1u + l] == picked[path(b, c) + 1u + l];
    }
    return same;
}

// The candidate after `last` (NO_CANDIDATE: the first) in the order of SIDs, ties by number; NO_CANDIDATE at the end.
fn next_candidate(b: u32, count: u32, last: u32) -> u32 {
    var best = NO_CANDIDATE;
    for (var c = 0u; c < count; c++) {
        let sid = picked[path(b, c)];
        var after = true;
        if last != NO_CANDIDATE {
            let before = picked[path(b, last)];
            after = sid > before || (sid == before && c > last);
        }
        if after && (best == NO_CANDIDATE || sid < picked[path(b, best)]) {
            best = c;
        }
    }
    return best;
}

// Levels that candidate c has in common with the one before it in that order.
fn shared_levels(b: u32, before: u32, c: u32) -> u32 {
    if before == NO_CANDIDATE {
        return 0u;
    }
    var level = 0u;
    while level < p.levels && picked[path(b, before) + 1u + level] == picked[path(b, c) + 1u + level] {
        level++;
    }
    return level;
}
