//! From item histories to forests: the prompt of a history, the documents of fine-tuning, the trees of candidates.

use super::engine::Targets;
use crate::catalog::{BOS, Catalog};
use crate::forest::{Forest, NONE, Node, PromptAttention};

use crate::rng::{Rng, Stream};

/// The prompt of a history: `<bos>` and the items' SIDs, oldest first.
pub fn prompt(catalog: &Catalog, items: &[u32], out: &mut Vec<u32>) {
    out.clear();
    out.push(BOS);
    for &item in items {
        out.extend_from_slice(catalog.sid_tokens(catalog.item_sid(item)));
    }
}

/// A piece of one training history: items `begin..end`, of which those from `fresh` on are learnt here (the ones before
/// are context that an earlier piece has learnt).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub sequence: u32,
    pub begin: u32,
    pub fresh: u32,
    pub end: u32,
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
                out.extend((1..n).map(|last| {
                    piece((last + 1).saturating_sub(window), last, last + 1)
                }));
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
    scratch: &mut Vec<u32>,
) {
    let levels = catalog.levels();
    match attention {
        PromptAttention::Causal => {
            prompt(catalog, &items[w.begin as usize..w.end as usize], scratch);
            let first = forest.len();
            // The last token of the last item scores nothing: it is a target only.
            let tokens = &scratch[..scratch.len() - 1];
            forest.push_prompt(tokens, attention);
            let learnt = 1 + (w.fresh - w.begin) as usize * levels;
            for (i, &target) in scratch.iter().enumerate().skip(learnt) {
                targets.push((first + i - 1) as u32, target);
            }
        }
        PromptAttention::Full => {
            prompt(catalog, &items[w.begin as usize..w.fresh as usize], scratch);
            let code = catalog.sid_tokens(catalog.item_sid(items[w.fresh as usize]));
            let nodes: Vec<Node> = (0..levels - 1)
                .map(|l| Node {
                    token: code[l],
                    parent: if l == 0 { NONE } else { l as u32 - 1 },
                })
                .collect();
            push_tree(scratch, &nodes, attention, false, (forest, targets));
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
