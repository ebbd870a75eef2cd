//! SIDs drawn at random: the control, which shows what is owed to the meaning of the others.

use std::collections::HashSet;

use crate::rng::{Rng, Stream};

/// `[items, levels]` codes below `codes` [levels], no SID twice before every SID is there once, and so on.
pub fn codes(items: usize, codes: &[usize], seed: u64) -> Vec<u32> {
    let space = codes.iter().map(|&k| k as u128).product::<u128>();
    let mut draws = Rng::new(seed, Stream::SemanticIds, 0, 0);
    let mut taken = HashSet::new();
    let mut drawn = Vec::with_capacity(items * codes.len());
    for _ in 0..items {
        if taken.len() as u128 == space {
            taken.clear();
        }
        let sid = loop {
            let sid: Vec<u32> = codes.iter().map(|&k| draws.below(k) as u32).collect();
            if taken.insert(sid.clone()) {
                break sid;
            }
        };
        drawn.extend(sid);
    }
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sid::collisions::count;

    #[test]
    fn sids_are_distinct_where_there_are_enough() {
        let drawn = codes(12, &[3, 2, 2], 1);
        assert_eq!(count(&drawn, 3).items, 0);
        assert!(
            drawn
                .chunks(3)
                .all(|sid| sid[0] < 3 && sid[1] < 2 && sid[2] < 2)
        );
        assert_eq!(drawn, codes(12, &[3, 2, 2], 1));
        assert_ne!(drawn, codes(12, &[3, 2, 2], 2));
        let crowded = count(&codes(25, &[3, 2, 2], 1), 3);
        assert_eq!((crowded.largest, crowded.items), (3, 25));
    }
}
