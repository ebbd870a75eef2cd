//! Which items are nearest in an embedding, by cosine.

use rayon::prelude::*;

use crate::catalog::Embeddings;

/// Embeddings prepared for the search: rows of length 1, or of zeros.
pub struct Neighbours {
    unit: Embeddings,
}

impl Neighbours {
    pub fn new(embeddings: &Embeddings) -> Neighbours {
        let mut unit = embeddings.clone();
        unit.data.par_chunks_exact_mut(unit.dim).for_each(normalise);
        Neighbours { unit }
    }

    /// Whether an item has a vector other than zero, and so neighbours.
    pub fn has(&self, item: u32) -> bool {
        self.unit.row(item).iter().any(|&x| x != 0.0)
    }

    /// The `count` items nearest to `item`, itself and items without a vector left out, with their cosines; nearest
    /// first, the lower item first among equals.
    pub fn nearest(&self, item: u32, count: usize) -> Vec<(u32, f32)> {
        let own = self.unit.row(item);
        let items = (self.unit.data.len() / self.unit.dim) as u32;
        let mut others: Vec<(u32, f32)> = (0..items)
            .filter(|&other| other != item && self.has(other))
            .map(|other| (other, dot(own, self.unit.row(other))))
            .collect();
        let by_cosine = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if others.len() > count {
            others.select_nth_unstable_by(count, by_cosine);
            others.truncate(count);
        }
        others.sort_by(by_cosine);
        others
    }
}

/// Scales a vector to length 1; one of zeros stays.
pub fn normalise(vector: &mut [f32]) {
    let square: f64 = vector.iter().map(|&x| x as f64 * x as f64).sum();
    if square > 0.0 {
        let scale = 1.0 / square.sqrt();
        vector
            .iter_mut()
            .for_each(|x| *x = (*x as f64 * scale) as f32);
    }
}

/// The dot product, as eight partial sums so that it runs on vector units.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; 8];
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        for (lane, (x, y)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += x * y;
        }
    }
    lanes.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_by_cosine_not_by_length() {
        let embeddings = Embeddings {
            dim: 2,
            data: vec![1.0, 0.0, 9.0, 9.0, 0.0, 0.0, 0.1, 0.0, 0.1, 0.0, -1.0, 0.0],
        };
        let neighbours = Neighbours::new(&embeddings);
        let found = neighbours.nearest(0, 3);
        let items: Vec<u32> = found.iter().map(|&(item, _)| item).collect();
        assert_eq!(items, [3, 4, 1]);
        assert!((found[2].1 - 0.5f32.sqrt()).abs() < 1e-6);
        assert!(!neighbours.has(2) && neighbours.has(3));
        assert_eq!(neighbours.nearest(0, 9).len(), 4);
    }
}
