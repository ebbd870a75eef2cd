//! From item histories to forests: the documents of fine-tuning, the trees of candidates.

use super::engine::Targets;
use crate::catalog::Catalog;
use crate::forest::{Forest, NONE, Node, PromptAttention};

use crate::rng::{Rng, Stream};

/// A piece of one training history: items `begin..end`, of which those from `fresh` on are learnt here (the ones before
/// are context that an earlier piece has learnt).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub sequence: u32,
    pub begin: u32,
    pub fresh: u32,
    pub end: u32,
}

impl Window {
    /// A random stretch of its items, at least two, the last of them learnt. What is new in a stretch is learnt but for its
    /// first item, unless the history begins with it.
    pub fn cropped(self, draws: &mut Rng) -> Window {
        // The first item that the stretch may end with.
        let least = self.fresh.max(self.begin + 1);
        if least >= self.end {
            return self;
        }
        let end = least + 1 + draws.below((self.end - least) as usize) as u32;
        let begin = self.begin + draws.below((end - 1 - self.begin) as usize) as u32;
        let fresh = match begin > self.begin {
            true => self.fresh.max(begin + 1),
            false => self.fresh,
        };
        Window {
            begin,
            fresh,
            end,
            ..self
        }
    }
}

/// Cuts training histories into documents.
///
/// Causal prompts: every item is learnt once; a history longer than `window` items slides by half a window, so that no
/// item after the first half-window has less than half a window of context. Full prompts (loss on the tree only): every
/// prefix is a document of its own, its last item the tree.
pub fn windows(train: &[Vec<u32>], window: usize, attention: PromptAttention) -> Vec<Window> {
    let window = window.max(2) as u32;
    let mut out = Vec::new();
    for (i, sequence) in train.iter().enumerate() {
        let (sequence, n) = (i as u32, sequence.len() as u32);
        let piece = |begin, fresh, end| Window {
            sequence,
            begin,
            fresh,
            end,
        };
        match attention {
            PromptAttention::Causal => {
                let mut end = n.min(window);
                out.push(piece(0, 0, end));
                while end < n {
                    let next = (end + window / 2).min(n);
                    out.push(piece(next - window, end, next));
                    end = next;
                }
            }
            PromptAttention::Full => {
                out.extend(
                    (1..n).map(|last| piece((last + 1).saturating_sub(window), last, last + 1)),
                );
            }
        }
    }
    out
}

/// Packs a window as a document and lists its targets.
pub fn push_window(
    catalog: &Catalog,
    items: &[u32],
    w: Window,
    attention: PromptAttention,
    (forest, targets): (&mut Forest, &mut Targets),
) {
    let levels = catalog.levels();
    match attention {
        PromptAttention::Causal => {
            let document = catalog.prompt(&items[w.begin as usize..w.end as usize]);
            let first = forest.len();
            // The last token of the last item scores nothing: it is a target only.
            let tokens = &document[..document.len() - 1];
            forest.push_prompt(tokens, attention);
            let learnt = 1 + (w.fresh - w.begin) as usize * levels;
            for (i, &target) in document.iter().enumerate().skip(learnt) {
                targets.push((first + i - 1) as u32, target);
            }
        }
        PromptAttention::Full => {
            let history = catalog.prompt(&items[w.begin as usize..w.fresh as usize]);
            let code = catalog.sid_tokens(catalog.item_sid(items[w.fresh as usize]));
            let nodes: Vec<Node> = (0..levels - 1)
                .map(|l| Node {
                    token: code[l],
                    parent: if l == 0 { NONE } else { l as u32 - 1 },
                })
                .collect();
            push_tree(&history, &nodes, attention, false, (forest, targets));
            // The tree holds all but the last token, which is a target only.
            let end = forest.len() as u32 - 1;
            targets.push(end, code[levels - 1]);
        }
    }
}

/// Packs a prompt and its tree and lists every node as a target of its parent's row, rows ascending. With
/// `score_leaves` the rows of childless nodes are scored too (their logits are wanted although nothing hangs from them).
/// Returns (target, row) of each node, in the order given.
pub fn push_tree(
    prompt: &[u32],
    nodes: &[Node],
    attention: PromptAttention,
    score_leaves: bool,
    (forest, targets): (&mut Forest, &mut Targets),
) -> Vec<(u32, u32)> {
    let rows = forest.push(prompt, nodes, attention);
    let root = forest.documents.last().expect("just pushed").root() as u32;
    let mut children: Vec<Vec<u32>> = vec![Vec::new(); nodes.len() + 1];
    for (n, node) in nodes.iter().enumerate() {
        let parent = (node.parent as usize).min(nodes.len());
        children[parent].push(n as u32);
    }
    let mut scored: Vec<(u32, usize)> = rows.iter().enumerate().map(|(n, &row)| (row, n)).collect();
    scored.push((root, nodes.len()));
    scored.sort();
    let mut out: Vec<(u32, u32)> = rows.iter().map(|&row| (NONE, row)).collect();
    for (row, number) in scored {
        if score_leaves {
            targets.push_row(row);
        }
        for &child in &children[number] {
            out[child as usize].0 = targets.len() as u32;
            targets.push(row, nodes[child as usize].token);
        }
    }
    out
}

/// The order of the documents of an epoch.
pub fn epoch_order(documents: usize, seed: u64, epoch: u32) -> Vec<u32> {
    let mut order: Vec<u32> = (0..documents as u32).collect();
    Rng::new(seed, Stream::Data, epoch, 0).shuffle(&mut order);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_learnt_once_and_with_context() {
        let train: Vec<Vec<u32>> = (1..60).map(|n| (0..n).collect()).collect();
        let cut = windows(&train, 11, PromptAttention::Causal);
        for (i, sequence) in train.iter().enumerate() {
            let mut learnt = vec![0; sequence.len()];
            for w in cut.iter().filter(|w| w.sequence == i as u32) {
                assert!(w.end - w.begin <= 11);
                assert!(w.fresh == 0 || w.fresh - w.begin >= 5, "{w:?}");
                (w.fresh..w.end).for_each(|k| learnt[k as usize] += 1);
            }
            assert!(learnt.iter().all(|&n| n == 1), "{learnt:?}");
        }
    }

    #[test]
    fn crops_are_stretches_with_something_to_learn() {
        let whole = Window {
            sequence: 3,
            begin: 2,
            fresh: 5,
            end: 9,
        };
        let mut seen = std::collections::HashSet::new();
        for document in 0..2_000 {
            let mut draws = Rng::new(1, Stream::Test, 0, document);
            let w = whole.cropped(&mut draws);
            assert!(w.begin >= 2 && w.end <= 9 && w.sequence == 3);
            assert!(w.begin < w.fresh && w.fresh < w.end, "{w:?}");
            assert!(w.fresh >= 5, "what an earlier piece has learnt is context");
            seen.insert((w.begin, w.end));
        }
        // Ends from 6 to 9, each with every beginning before its last item.
        assert_eq!(seen.len(), (6..=9).map(|end| end - 1 - 2).sum::<usize>());
        let single = Window {
            begin: 0,
            fresh: 0,
            end: 1,
            ..whole
        };
        assert_eq!(single.cropped(&mut Rng::new(1, Stream::Test, 0, 0)), single);
    }

    #[test]
    fn full_prompts_learn_each_item_but_the_first() {
        let cut = windows(&[vec![4, 5, 6]], 2, PromptAttention::Full);
        let spans: Vec<_> = cut.iter().map(|w| (w.begin, w.fresh, w.end)).collect();
        assert_eq!(spans, [(0, 1, 2), (1, 2, 3)]);
    }

    #[test]
    fn epochs_differ_and_repeat() {
        assert_eq!(epoch_order(50, 1, 2), epoch_order(50, 1, 2));
        assert_ne!(epoch_order(50, 1, 2), epoch_order(50, 1, 3));
        let mut sorted = epoch_order(50, 1, 2);
        sorted.sort();
        assert_eq!(sorted, (0..50).collect::<Vec<u32>>());
    }
}
