//! What is kept of the interactions: the time window, the first of each pair of user and item, the k-core.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::card::Step;

/// One interaction, its user and item numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Interaction {
    pub user: u32,
    pub item: u32,
    /// Unix seconds.
    pub time: i64,
}

/// From the first instant, which is in it, to the last, which is not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Window {
    /// Unix seconds.
    pub from: Option<i64>,
    /// Unix seconds.
    pub until: Option<i64>,
}

impl Window {
    /// Whether an instant, in unix seconds, is in the window.
    pub fn holds(&self, time: i64) -> bool {
        self.from.is_none_or(|from| from <= time) && self.until.is_none_or(|until| time < until)
    }
}

/// How often each id occurs in the window; every id counts, those outside it with 0. Ids are told apart by 64 bits of
/// their hash, which is less to hold than the ids: two that are one here may keep rows too many, never too few.
#[derive(Default)]
struct Occurrences(HashMap<u64, u32>);

impl Occurrences {
    fn add(&mut self, id: &str, in_window: bool) {
        let count = self.0.entry(hash(id)).or_default();
        *count = count.saturating_add(in_window.into());
    }

    fn of(&self, id: &str) -> u32 {
        self.0.get(&hash(id)).copied().unwrap_or(0)
    }

    /// Number of ids that occur at least `least` times.
    fn distinct(&self, least: u32) -> usize {
        self.0.values().filter(|&&count| count >= least).count()
    }
}

fn hash(id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish()
}

/// What the first reading finds: which rows the second need not hold.
pub(super) struct FirstCount {
    window: Window,
    k: u32,
    users: Occurrences,
    items: Occurrences,
    rows: u64,
    rows_in_window: u64,
}

impl FirstCount {
    pub fn new(window: Window, k: u32) -> FirstCount {
        FirstCount {
            window,
            k,
            users: Occurrences::default(),
            items: Occurrences::default(),
            rows: 0,
            rows_in_window: 0,
        }
    }

    pub fn add(&mut self, user: &str, item: &str, time: i64) {
        let inside = self.window.holds(time);
        self.users.add(user, inside);
        self.items.add(item, inside);
        self.rows += 1;
        self.rows_in_window += u64::from(inside);
    }

    /// Whether a row may be in the k-core: it is in the window, and user and item have k rows there.
    pub fn may_stay(&self, user: &str, item: &str, time: i64) -> bool {
        self.window.holds(time) && self.users.of(user) >= self.k && self.items.of(item) >= self.k
    }

    /// What was read, and what of it is in the window.
    pub fn steps(&self) -> [Step; 2] {
        let step = |name: &str, least, interactions| Step {
            step: name.into(),
            users: self.users.distinct(least),
            items: self.items.distinct(least),
            interactions,
        };
        [
            step("read", 0, self.rows),
            step("in the time window", 1, self.rows_in_window),
        ]
    }
}

/// Keeps the first interaction of each user with each item. Leaves them ordered by user, then item.
pub(super) fn keep_firsts(log: &mut Vec<Interaction>) {
    log.sort_unstable();
    log.dedup_by_key(|row| (row.user, row.item));
}

/// One round towards the k-core: drops the rows of all users and of all items that have fewer than k. False when there
/// were none: what is left is the k-core.
pub(super) fn core_round(log: &mut Vec<Interaction>, k: u32) -> bool {
    let (users, items) = (counts(log, |row| row.user), counts(log, |row| row.item));
    let before = log.len();
    log.retain(|row| users[row.user as usize] >= k && items[row.item as usize] >= k);
    log.len() < before
}

/// Number of rows by user or item.
pub(super) fn counts(log: &[Interaction], id: impl Fn(&Interaction) -> u32) -> Vec<u32> {
    let mut counts = vec![
        0;
        log.iter()
            .map(&id)
            .max()
            .map_or(0, |last| last as usize + 1)
    ];
    for row in log {
        counts[id(row) as usize] += 1;
    }
    counts
}

/// The figures of a step.
pub(super) fn step(name: String, log: &[Interaction]) -> Step {
    let distinct = |counts: Vec<u32>| counts.into_iter().filter(|&count| count > 0).count();
    Step {
        step: name,
        users: distinct(counts(log, |row| row.user)),
        items: distinct(counts(log, |row| row.item)),
        interactions: log.len() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Rng, Stream};

    fn graph(seed: u32, users: usize, items: usize, rows: usize) -> Vec<Interaction> {
        let mut rng = Rng::new(5, Stream::Test, seed, 0);
        (0..rows)
            .map(|_| Interaction {
                user: rng.below(users) as u32,
                // Skewed, so that the core is not all or nothing.
                item: (rng.below(items) * rng.below(items) / items) as u32,
                time: rng.below(9) as i64,
            })
            .collect()
    }

    /// The k-core by its definition: one vertex with fewer than k edges goes, until there is none.
    fn brute_force(mut edges: Vec<(u32, u32)>, k: usize) -> Vec<(u32, u32)> {
        loop {
            let degree = |side: fn(&(u32, u32)) -> u32, of: u32| {
                edges.iter().filter(|edge| side(edge) == of).count()
            };
            let weak = edges.iter().find_map(|edge| {
                let user = (degree(|e| e.0, edge.0) < k).then_some((Some(edge.0), None));
                user.or_else(|| (degree(|e| e.1, edge.1) < k).then_some((None, Some(edge.1))))
            });
            match weak {
                None => return edges,
                Some((user, item)) => {
                    edges.retain(|edge| Some(edge.0) != user && Some(edge.1) != item);
                }
            }
        }
    }

    #[test]
    fn the_k_core_is_that_of_brute_force() {
        let (mut partial, mut rounds) = (0, 0);
        for seed in 0..60 {
            let k = 1 + seed % 6;
            let (users, items) = (7 + seed as usize % 23, 5 + seed as usize % 13);
            let mut log = graph(seed, users, items, 160);
            keep_firsts(&mut log);
            let edges: Vec<_> = log.iter().map(|row| (row.user, row.item)).collect();
            let all = log.len();
            while core_round(&mut log, k) {
                rounds += 1;
            }
            let core: Vec<_> = log.iter().map(|row| (row.user, row.item)).collect();
            assert_eq!(core, brute_force(edges, k as usize), "seed {seed}, k {k}");
            partial += usize::from(!log.is_empty() && log.len() < all);
        }
        assert!(partial > 10 && rounds > 60, "too easy: {partial} {rounds}");
    }

    /// Dropping rows by the first count changes nothing of the core, though it counts repeated rows too.
    #[test]
    fn the_first_count_drops_only_what_is_outside_the_core() {
        let mut dropped = 0;
        for seed in 100..130 {
            let log = graph(seed, 20, 9, 120);
            let window = Window {
                from: Some(2),
                until: Some(8),
            };
            let mut count = FirstCount::new(window, 4);
            let id = |id: u32| id.to_string();
            for row in &log {
                count.add(&id(row.user), &id(row.item), row.time);
            }
            let core = |mut rows: Vec<Interaction>| {
                keep_firsts(&mut rows);
                while core_round(&mut rows, 4) {}
                rows
            };
            let inside = || log.iter().filter(|row| (2..8).contains(&row.time)).copied();
            let stay = |row: &Interaction| count.may_stay(&id(row.user), &id(row.item), row.time);
            let kept: Vec<_> = inside().filter(stay).collect();
            dropped += inside().count() - kept.len();
            assert_eq!(core(kept), core(inside().collect()));
            let [read, window] = count.steps();
            let in_window: Vec<_> = inside().collect();
            assert_eq!(read, step("read".into(), &log));
            assert_eq!(window, step("in the time window".into(), &in_window));
        }
        assert!(dropped > 50, "{dropped}");
    }
}
