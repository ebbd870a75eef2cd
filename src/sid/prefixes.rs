//! The prefixes of a catalog's SIDs at one depth, with what lies under each, and how alike it is.

use std::ops::Range;

use rayon::prelude::*;

use crate::catalog::{Catalog, Embeddings};

/// The SIDs that share their first codes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    pub codes: Vec<u32>,
    pub sids: Range<u32>,
    /// Number of items on them.
    pub items: usize,
}

impl Prefix {
    /// The items under the prefix, by SID.
    pub fn items<'a>(&self, catalog: &'a Catalog) -> impl Iterator<Item = u32> + 'a {
        self.sids
            .clone()
            .flat_map(|sid| catalog.items_of(sid).iter().copied())
    }

    /// The mean of the vectors under the prefix, how many they are, and the sum of their squared distances from it;
    /// vectors of zeros say nothing and are left out.
    pub fn centre(&self, catalog: &Catalog, embeddings: &Embeddings) -> Centre {
        let vectors = || {
            self.items(catalog)
                .map(|item| embeddings.row(item))
                .filter(|row| row.iter().any(|&x| x != 0.0))
        };
        let mut mean = vec![0.0f64; embeddings.dim];
        let mut count = 0;
        for vector in vectors() {
            mean.iter_mut()
                .zip(vector)
                .for_each(|(m, &x)| *m += x as f64);
            count += 1;
        }
        mean.iter_mut().for_each(|m| *m /= (count as f64).max(1.0));
        let spread = vectors()
            .map(|vector| -> f64 {
                let pairs = mean.iter().zip(vector);
                pairs.map(|(m, &x)| (x as f64 - m).powi(2)).sum()
            })
            .sum();
        Centre {
            mean,
            count,
            spread,
        }
    }
}

/// See [`Prefix::centre`].
#[derive(Clone, Debug, PartialEq)]
pub struct Centre {
    pub mean: Vec<f64>,
    pub count: usize,
    pub spread: f64,
}

/// The prefixes of length `depth` (0 ..= L) in lexicographic order, which is that of the trie's nodes at that depth.
pub fn prefixes(catalog: &Catalog, depth: usize) -> Vec<Prefix> {
    let mut found: Vec<Prefix> = Vec::with_capacity(catalog.trie().level(depth).len());
    for sid in 0..catalog.sids() as u32 {
        let codes = &catalog.sid_codes(sid)[..depth];
        let items = catalog.items_of(sid).len();
        match found.last_mut() {
            Some(last) if last.codes == codes => {
                last.sids.end = sid + 1;
                last.items += items;
            }
            _ => found.push(Prefix {
                codes: codes.into(),
                sids: sid..sid + 1,
                items,
            }),
        }
    }
    found
}

/// `[prefixes]`: [`Prefix::centre`] of each.
pub fn centres(catalog: &Catalog, prefixes: &[Prefix], embeddings: &Embeddings) -> Vec<Centre> {
    prefixes
        .par_iter()
        .map(|prefix| prefix.centre(catalog, embeddings))
        .collect()
}
