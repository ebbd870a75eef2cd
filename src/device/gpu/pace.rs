//! Cutting what runs so that no driver's watchdog is woken.
//!
//! A driver takes a GPU that does not answer for a few seconds for hung and resets it. So neither a dispatch nor a submission
//! is to last longer than [`super::GpuOptions::max_launch`]: a launch that would is dispatched in several pieces of its grid,
//! a stream that would in several submissions. The same workgroups run on the same data, so the results are the same bits.
//!
//! How long a launch lasts follows from its floor and from how many seconds a unit of the floor took when a launch of its
//! shape class and form was timed. One that was not is taken to run at a rate below that of any device; only if it might be
//! long at that rate is it timed, where it first occurs, in pieces that grow from one that is short even so.

use crate::device::stream::Launch;
use crate::device::tuning::Class;
use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

/// Watchdogs wait for two seconds and more.
pub const MAX_LAUNCH: Duration = Duration::from_millis(250);

/// Workgroups of one dispatch: every adapter's limit.
const MAX_GROUPS: u32 = 65_535;

/// Seconds per unit of a floor where nothing is known: ten times what products take on the slowest adapter met so far, an
/// old lavapipe on one core.
const SLOWEST: f64 = 1e-8;

/// A piece is to last the limit over this: not all workgroups of a launch take as long, and clocks vary.
const MARGIN: f64 = 2.0;

/// A launch that lasts less than this share of the limit, even at the slowest rate, need not be timed.
const SHORT: f64 = 0.125;

/// A launch over less than this share of the most it could run over, which the device knew, says nothing of its rate.
const TELLING: f64 = 1.0 / 64.0;

/// A piece under way may be this much longer than the last.
const GROWTH: u32 = 8;

/// Pieces of one submission that begin behind their grid's first workgroup.
pub(super) const SLOTS: usize = 1024;

/// What lasts: a shape class in a form.
pub(super) type Kind = (Class, usize);

/// Part of a launch's grid: one dispatch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Piece {
    pub launch: usize,
    pub first: u32,
    pub groups: u32,
    /// No piece of the launch follows.
    pub last: bool,
    pub seconds: f64,
}

/// What is known of how long launches last.
pub(super) struct Pace {
    /// Seconds that a dispatch and a submission may last, if there is a limit.
    limit: Option<f64>,
    /// Most workgroups of a dispatch.
    pub most: u32,
    /// Seconds per unit of the floor, and the most of them.
    rates: HashMap<Kind, f64>,
    slowest: f64,
    /// How long each launch of the stream being run will last.
    expected: Vec<f64>,
}

impl Pace {
    pub fn new(limit: Option<Duration>, most: Option<u32>) -> Pace {
        Pace {
            limit: limit.map(|limit| limit.as_secs_f64()),
            most: most.unwrap_or(MAX_GROUPS).clamp(1, MAX_GROUPS),
            rates: HashMap::new(),
            slowest: 0.0,
            expected: Vec::new(),
        }
    }

    pub fn clear(&mut self) {
        self.expected.clear();
    }

    /// Notes the next launch of the stream, of so much work; whether it has to be timed.
    pub fn expect(&mut self, kind: Kind, work: u64) -> bool {
        let work = work as f64;
        let rate = self.rates.get(&kind).copied();
        // What was not timed is no slower than what was.
        let unknown = match self.rates.is_empty() {
            true => SLOWEST,
            false => self.slowest.min(SLOWEST),
        };
        self.expected.push(work * rate.unwrap_or(unknown));
        let long = |limit: f64| work * SLOWEST > SHORT * limit;
        rate.is_none() && self.limit.is_some_and(long)
    }

    /// Learns how long work of a kind lasted, of which the device says that it was so much of what it could have been.
    pub fn learn(&mut self, kind: Kind, (done, most): (u64, u64), seconds: f64) {
        let telling = done as f64 >= TELLING * most as f64;
        let rate = match telling {
            true => seconds / done as f64,
            false => SLOWEST,
        };
        self.rates.insert(kind, rate);
        self.slowest = self.slowest.max(rate);
    }

    /// Workgroups of a piece of a grid of `groups`, all of which last so many seconds.
    pub fn groups_of_piece(&self, groups: u32, seconds: f64) -> u32 {
        let Some(limit) = self.limit else {
            return self.most;
        };
        match MARGIN * seconds > limit {
            true => self.groups_in(limit / MARGIN, seconds / groups as f64),
            false => self.most,
        }
    }

    /// Workgroups that take so many seconds, each of them.
    fn groups_in(&self, seconds: f64, each: f64) -> u32 {
        ((seconds / each) as u32).clamp(1, self.most)
    }

    /// Workgroups of the first piece of a launch that was not timed, of so much work in `groups`.
    pub fn first_piece(&self, groups: u32, work: u64) -> u32 {
        let limit = self.limit.unwrap_or(f64::INFINITY);
        let each = SLOWEST * work as f64 / groups as f64;
        self.groups_in(SHORT * limit, each).min(groups)
    }

    /// Workgroups of the piece behind one of `last`, where one takes `each` seconds so far.
    pub fn next_piece(&self, last: u32, each: f64) -> u32 {
        let limit = self.limit.unwrap_or(f64::INFINITY);
        self.groups_in(limit / MARGIN, each)
            .min(last.saturating_mul(GROWTH))
    }

    /// Cuts launch `launch` of the stream, of so many workgroups.
    pub fn cut(&self, launch: usize, groups: u32, pieces: &mut Vec<Piece>) {
        let seconds = self.expected[launch];
        let most = self.groups_of_piece(groups, seconds);
        pieces.extend(parts(0..groups, most).map(|part| Piece {
            launch,
            first: part.start,
            groups: part.len() as u32,
            last: part.end == groups,
            seconds: seconds * part.len() as f64 / groups as f64,
        }));
    }

    /// How many of these pieces one submission takes.
    pub fn submission(&self, pieces: &[Piece]) -> usize {
        let limit = self.limit.unwrap_or(f64::INFINITY);
        let (mut slots, mut seconds) = (0, 0.0);
        let full = |piece: &Piece| {
            slots += (piece.first > 0) as usize;
            seconds += piece.seconds;
            slots > SLOTS || seconds > limit
        };
        let fit = pieces.iter().position(full);
        // One that is too long alone goes alone.
        fit.map_or(pieces.len(), |fit| fit.max(1))
    }
}

/// Cuts a range into parts of at most so many.
pub(super) fn parts(range: Range<u32>, most: u32) -> impl Iterator<Item = Range<u32>> {
    let end = range.end;
    let firsts = range.step_by(most as usize);
    firsts.map(move |first| first..end.min(first.saturating_add(most)))
}

/// The unit of work is an operation, or a byte moved, whichever there are more of.
pub(super) fn work(launch: &Launch) -> u64 {
    let cost = launch.cost();
    cost.operations.max(cost.bytes).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Slice, Stream};
    use crate::kernels::fill;

    /// Two kinds of launch.
    fn kinds() -> [Kind; 2] {
        let mut stream = Stream::new();
        let slice = Slice {
            buffer: 0,
            offset: 0,
            len: 64,
            half: false,
        };
        fill::fill_u32(&mut stream, slice, 1);
        let class = Class::of(&stream.launches[0], 1);
        [(class, 0), (class, 1)]
    }

    /// What a launch of this kind and so much work, in 1000 workgroups, is cut in.
    fn cut(pace: &mut Pace, kind: Kind, work: u64) -> Vec<Piece> {
        pace.clear();
        pace.expect(kind, work);
        let mut pieces = Vec::new();
        pace.cut(0, 1000, &mut pieces);
        pieces
    }

    #[test]
    fn what_is_short_at_any_rate_is_neither_timed_nor_cut() {
        let (mut pace, [kind, _]) = (Pace::new(Some(MAX_LAUNCH), None), kinds());
        assert!(!pace.expect(kind, 3_000_000));
        assert!(pace.expect(kind, 4_000_000));
        assert_eq!(cut(&mut pace, kind, 3_000_000).len(), 1);
        let mut free = Pace::new(None, None);
        assert!(!free.expect(kind, u64::MAX));
        assert_eq!(cut(&mut free, kind, u64::MAX).len(), 1);
    }

    #[test]
    fn a_rate_that_was_learnt_says_how_to_cut() {
        let (mut pace, [kind, other]) = (Pace::new(Some(MAX_LAUNCH), None), kinds());
        // A unit takes a nanosecond, so this a second: eight pieces of half the limit.
        pace.learn(kind, (1_000_000, 1_000_000), 1e-3);
        assert!(!pace.expect(kind, u64::MAX));
        let pieces = cut(&mut pace, kind, 1_000_000_000);
        assert_eq!(pieces.len(), 8);
        let mut next = 0;
        for piece in &pieces {
            assert_eq!(piece.first, next);
            assert_eq!(piece.last, piece.first + piece.groups == 1000);
            next += piece.groups;
        }
        assert_eq!(next, 1000);
        // Two of them fill a submission.
        assert_eq!(pace.submission(&pieces), 2);
        // A tenth of that fits.
        assert_eq!(cut(&mut pace, kind, 100_000_000).len(), 1);
        // What was not timed is expected to be no slower.
        assert!(pace.expect(other, 1_000_000_000));
        pace.learn(other, (1_000_000, 1_000_000), 1e-9);
        assert_eq!(cut(&mut pace, other, 1_000_000_000).len(), 1);
    }

    #[test]
    fn what_is_learnt_leaves_the_launches_before_alone() {
        let (mut pace, [kind, other]) = (Pace::new(Some(MAX_LAUNCH), None), kinds());
        pace.learn(kind, (1_000_000, 1_000_000), 1e-3);
        pace.expect(kind, 1_000_000);
        pace.learn(other, (1, 1), 9.0);
        let mut pieces = Vec::new();
        pace.cut(0, 1000, &mut pieces);
        assert_eq!(pieces.len(), 1);
    }

    #[test]
    fn a_launch_over_next_to_nothing_says_nothing_of_its_rate() {
        let (mut pace, [kind, _]) = (Pace::new(Some(MAX_LAUNCH), None), kinds());
        pace.learn(kind, (10, 100_000_000), 1e-6);
        assert_eq!(cut(&mut pace, kind, 100_000_000).len(), 8);
        pace.learn(kind, (50_000_000, 100_000_000), 0.01);
        assert_eq!(cut(&mut pace, kind, 100_000_000).len(), 1);
    }

    #[test]
    fn a_group_that_is_too_long_goes_alone_and_slots_bound_a_submission() {
        let (mut pace, [kind, _]) = (Pace::new(Some(MAX_LAUNCH), None), kinds());
        pace.learn(kind, (1, 1), 1.0);
        let pieces = cut(&mut pace, kind, 1000);
        assert_eq!(pieces.len(), 1000);
        assert_eq!(pace.submission(&pieces), 1);
        let mut pace = Pace::new(None, Some(1));
        pace.expect(kind, 1);
        let mut pieces = Vec::new();
        pace.cut(0, 3000, &mut pieces);
        assert_eq!(pieces.len(), 3000);
        assert_eq!(pace.submission(&pieces), 1 + SLOTS);
    }
}
