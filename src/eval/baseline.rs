//! The popularity baseline: the same list for everyone.

/// Every SID, most popular first; ties go to the lower SID.
pub(super) fn by_popularity(popularity: &[u64]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..popularity.len() as u32).collect();
    // The sort is stable, so equal counts keep the ascending order they start in.
    order.sort_by_key(|&sid| std::cmp::Reverse(popularity[sid as usize]));
    order
}

/// The `beam` most popular SIDs by training interactions (`popularity`, one count per SID), ties by lower
/// SID. Nothing is excluded, not even what the user already has: the neural decoders do not exclude it
/// either. Shorter than `beam` only if the catalog is.
pub fn popularity_ranking(popularity: &[u64], beam: usize) -> Vec<u32> {
    let mut order = by_popularity(popularity);
    order.truncate(beam);
    order
}
