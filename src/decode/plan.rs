//! What a decode will do, known before it starts: the width of each level, the number of rounds, the sizes of buffers.
//! The search itself happens on the device, so the host must bound it here.

use super::{Method, Ved};
use crate::kernels::ved_select::{MAX_DEAD_ENDS, MAX_LEVELS};
use anyhow::{Result, ensure};

/// The course of a decode over a trie.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Nodes made per prompt at depth `1 ..= L` of the beam search, the sampling or VED's first tree. The last is 0 when
    /// VED's budget does not reach that far.
    pub widths: Vec<usize>,
    /// The last depth that is run through the model: L if complete SIDs have a value of their own, else L - 1.
    pub run_levels: usize,
    /// Whether prefixes that a single SID begins with count as that SID and are not run: in VED, where complete SIDs have no
    /// value of their own. What a decode costs is then known afterwards only, and at most what this plan says.
    pub settles: bool,
    /// Rounds of VED after the first tree.
    pub rounds: usize,
    /// Nodes per prompt a round may run.
    pub round: usize,
    /// Backbone tokens per prompt that may be run (the root counts 1).
    pub budget: usize,
    /// Complete SIDs and settled prefixes the tree may hold, when they are not run.
    pub free_leaves: usize,
    /// M: nodes the tree may hold.
    pub nodes: usize,
    /// Candidates returned per prompt, at most.
    pub goal: usize,
}

impl Plan {
    /// Plans `method` over a trie with `level_sizes[d]` nodes at depth `d`.
    ///
    /// # Errors
    /// VED's budget cannot spell one SID, or its SIDs are too long.
    pub fn new(method: &Method, level_sizes: &[usize]) -> Result<Plan> {
        match *method {
            Method::Beam { width } => {
                let widths: Vec<usize> = level_sizes[1..].iter().map(|&n| n.min(width)).collect();
                Ok(Plan::levels(widths))
            }
            Method::Sample { count, .. } => Ok(Plan::levels(vec![count; level_sizes.len() - 1])),
            Method::Ved(ref ved) => Plan::ved(ved, level_sizes),
        }
    }

    fn levels(widths: Vec<usize>) -> Plan {
        let run: usize = widths[..widths.len() - 1].iter().sum();
        Plan {
            run_levels: widths.len() - 1,
            settles: false,
            rounds: 0,
            round: 0,
            budget: 1 + run,
            free_leaves: 0,
            nodes: 1 + widths.iter().sum::<usize>(),
            goal: *widths.last().expect("a trie has levels"),
            widths,
        }
    }

    /// A level of the first tree has `init_beam` nodes or, if it is smaller, all of them: when the level above was cut
    /// to `init_beam` nodes, each has a child; when it was not, it was whole. So the first tree's cost is known here, or,
    /// where prefixes settle, the most it can be. A budget below that cost is shared evenly by the levels.
    ///
    /// The rounds are as many as it takes to spend the rest of the budget, `round` nodes at a time. A round in which
    /// selections end nowhere spends less; what is left over at the end is not spent. That does not endanger the number
    /// of candidates (see [`crate::kernels::ved_select`]). With R the last depth that is run, the first tree has a
    /// complete SID for each of its nodes at depth R, or all there are. Each further one is a chain of at most R
    /// forwards, and chains of `work` forwards together, W side by side, take at most `ceil(work / W) + R - 1` rounds:
    /// there are at least that many. So `goal` is reached whenever `budget >= first tree + (goal - init_beam) R`; with
    /// the defaults (G = 2 b0, budget twice the first tree's cost) for every L.
    fn ved(ved: &Ved, level_sizes: &[usize]) -> Result<Plan> {
        let levels = level_sizes.len() - 1;
        let sids = level_sizes[levels];
        ensure!(
            levels <= MAX_LEVELS,
            "value-guided decoding takes SIDs of at most {MAX_LEVELS} tokens, these have {levels}: decode by beam search"
        );
        ensure!(
            ved.budget == 0 || ved.budget >= levels,
            "ved.budget = {} cannot spell one SID of {levels} tokens: give at least {levels}",
            ved.budget
        );
        let run_levels = if ved.score_leaves { levels } else { levels - 1 };
        let run_sizes = &level_sizes[1..=run_levels];
        let first_tree = 1 + run_sizes
            .iter()
            .map(|&n| n.min(ved.init_beam))
            .sum::<usize>();
        let budget = if ved.budget == 0 {
            2 * first_tree
        } else {
            ved.budget
        };
        let budget = budget.min(1 + run_sizes.iter().sum::<usize>());
        let mut left = budget - 1;
        let mut widths = Vec::with_capacity(levels);
        for (depth, &size) in run_sizes.iter().enumerate() {
            let share = (left / (run_levels - depth)).max(1).min(left);
            widths.push(size.min(ved.init_beam).min(share));
            left -= widths[depth];
        }
        if !ved.score_leaves {
            widths.push(sids.min(ved.init_beam));
        }
        let goal = ved.candidates.min(sids);
        // Complete SIDs after the first tree: what was made at the last depth that is run, or all.
        let made = if run_levels > 0 {
            widths[run_levels - 1]
        } else {
            1
        };
        let whole = made == level_sizes[run_levels];
        let missing = if whole { 0 } else { goal.saturating_sub(made) };
        let work = (missing * run_levels).min(left);
        let chains = if work > 0 {
            work.div_ceil(ved.round) + run_levels - 1
        } else {
            0
        };
        let free_leaves = if ved.score_leaves {
            0
        } else {
            budget.max(ved.init_beam).min(sids)
        };
        Ok(Plan {
            widths,
            run_levels,
            settles: !ved.score_leaves,
            rounds: left.div_ceil(ved.round).max(chains),
            round: ved.round,
            budget,
            free_leaves,
            nodes: budget + free_leaves,
            goal,
        })
    }

    /// Rows per prompt of the largest forward after prefill.
    pub fn rows(&self) -> usize {
        let round = if self.rounds > 0 { self.round } else { 0 };
        self.widths.iter().copied().fold(round, usize::max)
    }

    /// More visits than any node of a VED tree can have: one for each node, one for each dead end.
    pub fn visits(&self) -> usize {
        self.nodes + self.rounds * MAX_DEAD_ENDS as usize + 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOP: &[usize] = &[1, 50, 2400, 3840];

    #[test]
    fn the_default_spends_twice_the_first_tree() {
        let plan = Plan::new(&Method::Ved(Ved::default()), SHOP).unwrap();
        assert_eq!(plan.widths, [8, 8, 8]);
        // 1 + 2 x 8 + 8 leaves, twice; 25 left, of which 8 chains of 3 forwards take 6 + 2 rounds of 4.
        assert_eq!(
            (plan.budget, plan.nodes, plan.rounds, plan.goal),
            (50, 50, 8, 16)
        );
        let free = Ved {
            score_leaves: false,
            ..Ved::default()
        };
        let plan = Plan::new(&Method::Ved(free), SHOP).unwrap();
        assert_eq!((plan.budget, plan.nodes, plan.rounds), (34, 68, 5));
    }

    #[test]
    fn a_small_budget_still_reaches_the_last_level() {
        let widths = |budget, score_leaves| {
            let ved = Ved {
                budget,
                score_leaves,
                ..Ved::default()
            };
            Plan::new(&Method::Ved(ved), SHOP).unwrap().widths
        };
        assert_eq!(widths(10, true), [3, 3, 3]);
        assert_eq!(widths(3, true), [1, 1, 0]);
        assert_eq!(widths(3, false), [1, 1, 8]);
        let ved = Ved {
            budget: 2,
            ..Ved::default()
        };
        let error = Plan::new(&Method::Ved(ved), SHOP).unwrap_err().to_string();
        assert!(error.contains("ved.budget = 2"), "{error}");
    }

    #[test]
    fn small_catalogs_bound_everything() {
        let plan = Plan::new(&Method::Ved(Ved::default()), &[1, 2, 3]).unwrap();
        assert_eq!(
            (plan.widths.as_slice(), plan.budget, plan.rounds),
            ([2, 3].as_slice(), 6, 0)
        );
        let plan = Plan::new(&Method::Beam { width: 4 }, &[1, 2, 9]).unwrap();
        assert_eq!(
            (plan.widths.as_slice(), plan.nodes, plan.budget),
            ([2, 4].as_slice(), 7, 3)
        );
    }
}
