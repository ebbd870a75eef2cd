//! From the interactions that are kept to sequences and splits.

use super::super::{Example, Log, Protocol, Sequence};
use super::filter::Interaction;
use crate::rng::{Rng, Stream};

/// The sequence of each user. Interactions of the same instant, of which dumps with dates only are full, have no order;
/// they get one from the seed, the user and the item, so that neither the order of a file nor of ids is learnt from.
pub(super) fn of(mut log: Vec<Interaction>, seed: u64) -> Vec<Sequence> {
    log.sort_unstable_by_key(|row| {
        let tie = Rng::new(seed, Stream::Ties, row.user, row.item).word();
        (row.user, row.time, tie, row.item)
    });
    log.chunk_by(|a, b| a.user == b.user)
        .map(|rows| Sequence {
            user: rows[0].user,
            items: rows.iter().map(|row| row.item).collect(),
            times: rows.iter().map(|row| row.time).collect(),
        })
        .collect()
}

/// The time split, as MiniOneRec makes it: every interaction that has one before it is the target of a row; the oldest
/// 80 % of the rows are for training, the next 10 % for validation, the rest for testing. Rows have the newest items of
/// their history; a user whose rows are all later does not train.
pub(super) fn time_split(mut sequences: Vec<Sequence>) -> Log {
    let mut rows: Vec<(i64, u32, u32)> = Vec::new();
    for (sequence, number) in sequences.iter().zip(0..) {
        let targets = sequence.times.iter().zip(0..).skip(1);
        rows.extend(targets.map(|(&time, at)| (time, number, at)));
    }
    rows.sort_unstable();
    let (train, later) = rows.split_at(rows.len() * 8 / 10);
    let (valid, test) = later.split_at(rows.len() * 9 / 10 - train.len());
    let examples = |rows: &[(i64, u32, u32)]| -> Vec<Example> {
        let example = |&(_, number, at): &(i64, u32, u32)| {
            let (sequence, at) = (&sequences[number as usize], at as usize);
            let oldest = at.saturating_sub(Protocol::TimeSplit.max_history());
            Example {
                user: sequence.user,
                history: sequence.items[oldest..at].to_vec(),
                target: sequence.items[at],
            }
        };
        rows.iter().map(example).collect()
    };
    let (valid, test) = (examples(valid), examples(test));
    let mut trained = vec![0; sequences.len()];
    for &(_, number, at) in train {
        // Rows of a user come in order, so the last is the newest.
        trained[number as usize] = at as usize + 1;
    }
    for (sequence, &length) in sequences.iter_mut().zip(&trained) {
        sequence.items.truncate(length);
        sequence.times.truncate(length);
    }
    sequences.retain(|sequence| !sequence.items.is_empty());
    Log::Rows {
        train: sequences,
        valid,
        test,
        whole: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> Vec<Interaction> {
        let mut rng = Rng::new(3, Stream::Test, 0, 0);
        let mut log = Vec::new();
        for user in 0..17 {
            for item in 0..40 {
                if rng.below(3) == 0 {
                    let time = rng.below(30) as i64 - 5;
                    log.push(Interaction { user, item, time });
                }
            }
        }
        log
    }

    #[test]
    fn ties_are_ordered_by_the_seed_alone() {
        let sequences = of(log(), 1);
        let mut shuffled = log();
        Rng::new(9, Stream::Test, 0, 0).shuffle(&mut shuffled);
        assert_eq!(of(shuffled, 1), sequences);
        let other = of(log(), 2);
        assert_ne!(other, sequences);
        for (a, b) in sequences.iter().zip(&other) {
            assert!(a.times.is_sorted());
            assert_eq!(a.times, b.times);
            let sorted = |s: &Sequence| {
                let mut pairs: Vec<_> = s.times.iter().zip(&s.items).collect();
                pairs.sort();
                format!("{pairs:?}")
            };
            assert_eq!(sorted(a), sorted(b));
        }
        // Not by id either.
        let rising = |s: &Sequence| (s.times.iter().zip(&s.items)).is_sorted();
        assert!(!sequences.iter().all(rising));
    }

    #[test]
    fn the_time_split_is_80_10_10_by_the_time_of_targets() {
        let sequences = of(log(), 1);
        let rows: usize = sequences.iter().map(|s| s.items.len() - 1).sum();
        let Log::Rows {
            train, valid, test, ..
        } = time_split(sequences.clone())
        else {
            panic!("rows");
        };
        let trained: usize = train.iter().map(|s| s.items.len() - 1).sum();
        assert_eq!(trained, rows * 8 / 10);
        assert_eq!(valid.len(), rows * 9 / 10 - rows * 8 / 10);
        assert_eq!(trained + valid.len() + test.len(), rows);
        let whole = |user: u32| sequences.iter().find(|s| s.user == user).unwrap();
        let mut newest = i64::MIN;
        for sequence in &train {
            let n = sequence.items.len();
            assert!(n > 1);
            assert_eq!(sequence.items, whole(sequence.user).items[..n]);
            newest = newest.max(sequence.times[n - 1]);
        }
        let mut last = newest;
        for example in valid.iter().chain(&test) {
            let sequence = whole(example.user);
            let at = (sequence.items.iter().position(|&i| i == example.target)).unwrap();
            assert_eq!(example.history, sequence.items[at.saturating_sub(10)..at]);
            assert!(
                sequence.times[at] >= last,
                "later than what comes before it"
            );
            last = sequence.times[at];
        }
        assert!(last > newest);
    }
}
