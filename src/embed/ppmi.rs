//! Which items are bought near each other: positive pointwise mutual information of co-occurrence in training sequences
//! (Levy & Goldberg, "Neural word embedding as implicit matrix factorization", NeurIPS 2014; the smoothing is of Levy,
//! Goldberg & Dagan, TACL 2015).

use rayon::prelude::*;

use super::matrix::Csr;

/// Items at most this many steps apart in a sequence are a pair.
const WINDOW: usize = 5;
/// Exponent of the context counts: below 1, rare items get less of the mutual information that rarity alone gives.
const SMOOTHING: f64 = 0.75;

/// `[items, items]`: max(0, ln(#(i, c) Z / (#(i) #(c)^a))), with #(i, c) how often item i stands within [`WINDOW`] of
/// context item c, #(i) its sum over c, a the smoothing and Z the sum of #(c)^a. An item is not its own context.
pub fn matrix(items: usize, sequences: &[Vec<u32>]) -> Csr {
    let pairs = pairs(sequences);
    let mut marginal = vec![0.0f64; items];
    for &(pair, count) in &pairs {
        marginal[(pair >> 32) as usize] += count as f64;
    }
    let context: Vec<f64> = marginal.iter().map(|count| count.powf(SMOOTHING)).collect();
    let total: f64 = context.iter().sum();
    let mut rows = vec![Vec::new(); items];
    for (pair, count) in pairs {
        let (item, other) = ((pair >> 32) as usize, pair as u32);
        let expected = marginal[item] * context[other as usize];
        let information = (count as f64 * total / expected).ln();
        if information > 0.0 {
            rows[item].push((other, information as f32));
        }
    }
    Csr::from_rows(items, rows)
}

/// How often each ordered pair (item << 32 | context) occurs, by rising pair.
fn pairs(sequences: &[Vec<u32>]) -> Vec<(u64, u32)> {
    let mut all = Vec::new();
    for sequence in sequences {
        for (at, &item) in sequence.iter().enumerate() {
            for &next in sequence[at + 1..].iter().take(WINDOW) {
                if next != item {
                    all.push((item as u64) << 32 | next as u64);
                    all.push((next as u64) << 32 | item as u64);
                }
            }
        }
    }
    all.par_sort_unstable();
    let runs = all.chunk_by(|a, b| a == b);
    runs.map(|run| (run[0], run.len() as u32)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worked_example() {
        // Pairs: 0-1 twice, 1-2 once; 3 alone. #(0) = 2, #(1) = 3, #(2) = 1.
        let matrix = matrix(4, &[vec![0, 1], vec![1, 0], vec![2, 1], vec![3], vec![]]);
        let smoothed = |count: f64| count.powf(0.75);
        let z = smoothed(2.0) + smoothed(3.0) + smoothed(1.0);
        let pmi = |pair: f64, item: f64, context: f64| (pair * z / (item * smoothed(context))).ln();
        let wanted = [
            vec![(1, pmi(2.0, 2.0, 3.0))],
            vec![(0, pmi(2.0, 3.0, 2.0)), (2, pmi(1.0, 3.0, 1.0))],
            vec![(1, pmi(1.0, 1.0, 3.0))],
            vec![],
        ];
        for (item, wanted) in wanted.iter().enumerate() {
            let found: Vec<_> = matrix.row(item).collect();
            assert_eq!(found.len(), wanted.len(), "{item}: {found:?}");
            for ((column, found), (other, wanted)) in found.iter().zip(wanted) {
                assert_eq!(column, other);
                assert!((*found as f64 - wanted).abs() < 1e-6, "{found} {wanted}");
                assert!(*wanted > 0.0);
            }
        }
        // Without the smoothing it would be another number.
        let plain = (2.0f64 * 6.0 / (2.0 * 3.0)).ln();
        assert!((matrix.row(0).next().unwrap().1 as f64 - plain).abs() > 0.01);
    }

    #[test]
    fn pairs_reach_as_far_as_the_window_and_no_item_pairs_with_itself() {
        let sequence: Vec<u32> = (0..=WINDOW as u32 + 1).collect();
        let found = pairs(&[sequence, vec![9, 9]]);
        let has = |i: u64, c: u64| found.iter().any(|&(pair, _)| pair == i << 32 | c);
        assert!(has(0, WINDOW as u64) && has(WINDOW as u64, 0));
        assert!(!has(0, WINDOW as u64 + 1));
        assert!(!has(9, 9));
    }

    #[test]
    fn what_occurs_less_than_expected_is_zero() {
        // 0 and 1 are everywhere but meet once only.
        let mut sequences = vec![vec![0, 1]];
        for other in 2..12 {
            sequences.extend([vec![0, other], vec![1, other + 10]]);
        }
        let matrix = matrix(22, &sequences);
        assert!(matrix.row(0).all(|(column, _)| column != 1));
        assert!(matrix.row(0).any(|(column, _)| column == 2));
    }
}
