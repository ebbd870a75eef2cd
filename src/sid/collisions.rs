//! Items that share an SID: counted, told apart by one more code, or moved.

use std::collections::{HashMap, HashSet};

use anyhow::{Result, ensure};

use super::kmeans::square_distance;
use crate::catalog::Collisions;

/// Counts the collisions of `codes` [items, levels].
pub fn count(codes: &[u32], levels: usize) -> Collisions {
    let mut sizes: HashMap<&[u32], usize> = HashMap::new();
    for sid in codes.chunks_exact(levels) {
        *sizes.entry(sid).or_default() += 1;
    }
    let shared = || sizes.values().filter(|&&size| size > 1);
    Collisions {
        sids: shared().count(),
        items: shared().sum(),
        largest: sizes.values().copied().max().unwrap_or(0),
    }
}

/// `codes` [items, levels] with one code more, that numbers the items on an SID from 0 in the order they come (Rajput et
/// al., "TIGER", arXiv 2305.05065).
///
/// # Errors
/// More items on an SID than the largest codebook has codes, `most`.
pub fn digit(codes: &[u32], levels: usize, most: usize) -> Result<Vec<u32>> {
    let largest = count(codes, levels).largest;
    ensure!(
        largest <= most,
        "{largest} items share an SID, more than the {most} codes of a level can number: give --codes or --levels more, or \
         --collisions keep (items with equal embeddings share one however many there are)"
    );
    let mut next: HashMap<&[u32], u32> = HashMap::new();
    let mut numbered = Vec::with_capacity(codes.len() / levels * (levels + 1));
    for sid in codes.chunks_exact(levels) {
        let number = next.entry(sid).or_default();
        numbered.extend(sid);
        numbered.push(*number);
        *number += 1;
    }
    Ok(numbered)
}

/// What the last level quantised.
#[derive(Clone, Debug)]
pub struct LastLevel {
    pub width: usize,
    /// [items, width].
    pub points: Vec<f32>,
    /// [codes, width].
    pub centroids: Vec<f32>,
}

impl LastLevel {
    fn distances(&self, item: usize) -> impl Iterator<Item = f32> {
        let point = &self.points[item * self.width..][..self.width];
        let centroids = self.centroids.chunks_exact(self.width);
        centroids.map(move |centroid| square_distance(point, centroid))
    }
}

/// Gives every item an SID of its own: of the items on one the nearest to its centroid stays, and the others, the nearer
/// first, take the nearest last code that is free behind their other codes.
///
/// # Errors
/// More items behind the same codes than the last level has codes.
pub fn move_to_nearest(codes: &mut [u32], levels: usize, last: &LastLevel) -> Result<()> {
    let places = last.centroids.len() / last.width;
    let mut behind: HashMap<&[u32], usize> = HashMap::new();
    for sid in codes.chunks_exact(levels) {
        *behind.entry(&sid[..levels - 1]).or_default() += 1;
    }
    let most = behind.into_values().max().unwrap_or(0);
    ensure!(
        most <= places,
        "{most} items share their first {} codes, more than the last level's {places}: give --codes or --levels more, or --collisions digit or keep",
        levels - 1
    );
    let own = |item: usize| {
        let code = codes[item * levels + levels - 1] as usize;
        last.distances(item)
            .nth(code)
            .expect("a code has a centroid")
    };
    let mut order: Vec<(f32, usize)> = (0..codes.len() / levels)
        .map(|item| (own(item), item))
        .collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut taken = HashSet::new();
    let mut without = Vec::new();
    for (_, item) in order {
        if !taken.insert(codes[item * levels..][..levels].to_vec()) {
            without.push(item);
        }
    }
    for item in without {
        let mut nearest: Vec<(f32, u32)> = last.distances(item).zip(0..).collect();
        nearest.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let sid = &mut codes[item * levels..][..levels];
        for (_, code) in nearest {
            sid[levels - 1] = code;
            if taken.insert(sid.to_vec()) {
                break;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODES: [u32; 12] = [0, 1, 0, 1, 2, 2, 0, 1, 2, 0, 2, 2];

    #[test]
    fn collisions_are_counted_and_numbered() {
        let counted = count(&CODES, 2);
        let want = Collisions {
            sids: 2,
            items: 5,
            largest: 3,
        };
        assert_eq!(counted, want);
        let numbered = digit(&CODES, 2, 3).unwrap();
        let want = [0, 1, 0, 0, 1, 1, 2, 2, 0, 0, 1, 2, 2, 0, 0, 2, 2, 1];
        assert_eq!(numbered, want);
        assert_eq!(count(&numbered, 3).items, 0);
        let error = digit(&CODES, 2, 2).unwrap_err().to_string();
        assert!(error.contains("3 items share an SID"), "{error}");
    }

    #[test]
    fn the_farther_items_take_the_nearest_free_code() {
        // On a line, with centroids 0, 1, 2, 3: three items on (0, 1), of which the second is nearest to 1.
        let last = LastLevel {
            width: 1,
            points: vec![1.4, 1.1, 0.5, 1.0],
            centroids: vec![0.0, 1.0, 2.0, 3.0],
        };
        let mut codes = [0, 1, 0, 1, 0, 1, 7, 1];
        move_to_nearest(&mut codes, 2, &last).unwrap();
        assert_eq!(codes, [0, 2, 0, 1, 0, 0, 7, 1]);
    }

    #[test]
    fn too_few_codes_are_told() {
        let last = LastLevel {
            width: 1,
            points: vec![0.0; 3],
            centroids: vec![0.0, 1.0],
        };
        let mut codes = [4, 0, 4, 1, 4, 0];
        let error = move_to_nearest(&mut codes, 2, &last)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("3 items share their first 1 codes"),
            "{error}"
        );
        assert_eq!(codes, [4, 0, 4, 1, 4, 0]);
    }
}
