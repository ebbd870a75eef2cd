//! Token forests: the one form of input the model is run on (spec 3).
//!
//! A forest is B documents packed without padding. A document is a prompt (a chain) and a tree of nodes that hangs from
//! the prompt's end; fine-tuning uses bare prompts, policy optimisation puts the candidates of a prompt into one tree so
//! that a shared prefix is computed once. Nodes are packed in depth-first pre-order, so that the rows that attend to any
//! given row are contiguous: what makes the backward pass deterministic and gather-free.

/// No slot, no parent.
pub const NONE: u32 = u32::MAX;

/// Whether prompt tokens see the tokens after them in the prompt (`model.prompt_attention`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptAttention {
    Causal,
    Full,
}

/// One token as the kernels see it. It attends to the slots `kv_begin..kv_end` (prompt) and, if `chain` is a slot, to
/// `chain`, `parent[chain]`, ... until [`NONE`]. Its own key and value go to `slot`. In a packed forest slots are row
/// numbers; the rows that attend to it are `q_begin..q_end` and `tree_begin..tree_end`: where a document's tree lies apart
/// from its prompt, the second range is the tree, for the prompt's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Row {
    pub token: u32,
    pub position: u32,
    pub kv_begin: u32,
    pub kv_end: u32,
    pub slot: u32,
    pub chain: u32,
    pub q_begin: u32,
    pub q_end: u32,
    pub tree_begin: u32,
    pub tree_end: u32,
}

impl Row {
    pub const WORDS: usize = 10;

    /// A row that attends to nothing and that nothing attends to.
    pub const INACTIVE: Row = Row {
        token: 0,
        position: 0,
        kv_begin: 0,
        kv_end: 0,
        slot: NONE,
        chain: NONE,
        q_begin: 0,
        q_end: 0,
        tree_begin: 0,
        tree_end: 0,
    };

    /// The rows from `first` on that attend to this one.
    pub fn queries(&self, first: u32) -> [std::ops::Range<u32>; 2] {
        [
            self.q_begin.max(first)..self.q_end.max(first),
            self.tree_begin..self.tree_end,
        ]
    }
}

/// Where a document lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First row.
    pub begin: usize,
    /// Tokens in the prompt.
    pub prompt: usize,
    /// One past the last row.
    pub end: usize,
}

impl Span {
    /// The row of the prompt's last token, from which the tree hangs.
    pub fn root(&self) -> usize {
        self.begin + self.prompt - 1
    }
}

/// A tree node to be packed: its token and its parent among the nodes before it ([`NONE`]: the prompt's end).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    pub token: u32,
    pub parent: u32,
}

/// A packed forest on the host.
#[derive(Clone, Debug, Default)]
pub struct Forest {
    pub rows: Vec<Row>,
    /// The parent's slot of each slot ([`NONE`] for prompt tokens and for nodes right under the prompt).
    pub parent: Vec<u32>,
    pub documents: Vec<Span>,
}

impl Forest {
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of tokens T.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Empties the forest and keeps its memory.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.parent.clear();
        self.documents.clear();
    }

    /// Packs a prompt without a tree.
    pub fn push_prompt(&mut self, prompt: &[u32], attention: PromptAttention) {
        self.push(prompt, &[], attention);
    }

    /// Packs a document; returns the row of each node, in the order given. A parent must come before its children;
    /// children keep their order. The prompt holds at least one token.
    pub fn push(&mut self, prompt: &[u32], nodes: &[Node], attention: PromptAttention) -> Vec<u32> {
        assert!(
            !prompt.is_empty(),
            "a document's prompt holds at least one token"
        );
        let begin = self.rows.len();
        let prompt_end = begin + prompt.len();
        let end = prompt_end + nodes.len();
        for (i, &token) in prompt.iter().enumerate() {
            let row = (begin + i) as u32;
            let full = attention == PromptAttention::Full;
            self.rows.push(Row {
                token,
                position: i as u32,
                kv_begin: begin as u32,
                kv_end: if full { prompt_end as u32 } else { row + 1 },
                slot: row,
                chain: NONE,
                q_begin: if full { begin as u32 } else { row },
                q_end: end as u32,
                ..Row::INACTIVE
            });
            self.parent.push(NONE);
        }
        let mut row_of = vec![NONE; nodes.len()];
        self.push_subtrees(prompt.len(), begin, nodes, &mut row_of);
        debug_assert_eq!(self.rows.len(), end, "every node hangs from the prompt");
        self.documents.push(Span {
            begin,
            prompt: prompt.len(),
            end,
        });
        row_of
    }

    /// Appends the nodes in depth-first pre-order.
    fn push_subtrees(&mut self, prompt: usize, begin: usize, nodes: &[Node], row_of: &mut [u32]) {
        // Last child first on the stack, so that children come off in their given order.
        let mut children: Vec<Vec<u32>> = vec![Vec::new(); nodes.len() + 1];
        for (i, node) in nodes.iter().enumerate() {
            assert!(
                node.parent == NONE || (node.parent as usize) < i,
                "node {i}'s parent must come before it"
            );
            let slot = if node.parent == NONE {
                nodes.len()
            } else {
                node.parent as usize
            };
            children[slot].push(i as u32);
        }
        let mut stack: Vec<u32> = children[nodes.len()].iter().rev().copied().collect();
        // Nodes whose subtree is still open, to be told where it ends.
        let mut open: Vec<u32> = Vec::new();
        while let Some(i) = stack.pop() {
            let node = nodes[i as usize];
            let parent_row = if node.parent == NONE {
                NONE
            } else {
                row_of[node.parent as usize]
            };
            while let Some(&last) = open.last() {
                if last == parent_row {
                    break;
                }
                self.close(last);
                open.pop();
            }
            let row = self.rows.len() as u32;
            row_of[i as usize] = row;
            self.rows.push(Row {
                token: node.token,
                position: (prompt + open.len()) as u32,
                kv_begin: begin as u32,
                kv_end: (begin + prompt) as u32,
                slot: row,
                chain: row,
                q_begin: row,
                q_end: row + 1,
                ..Row::INACTIVE
            });
            self.parent.push(parent_row);
            open.push(row);
            stack.extend(children[i as usize].iter().rev());
        }
        while let Some(last) = open.pop() {
            self.close(last);
        }
    }

    fn close(&mut self, row: u32) {
        self.rows[row as usize].q_end = self.rows.len() as u32;
    }

    /// Its exact size.
    pub fn size(&self) -> ForestSize {
        // A node sees its prompt and its ancestors, so as many keys as its position says.
        let seen = |r: &Row| (r.kv_end - r.kv_begin).max(r.position + 1) as u64;
        ForestSize {
            rows: self.len() as u64,
            keys: self.len() as u64,
            pairs: self.rows.iter().map(seen).sum(),
        }
    }

    /// The rows as words, ready for upload.
    pub fn row_words(&self) -> &[u32] {
        bytemuck::cast_slice(&self.rows)
    }

    /// Largest position + 1.
    pub fn max_positions(&self) -> usize {
        self.rows
            .iter()
            .map(|r| r.position as usize + 1)
            .max()
            .unwrap_or(0)
    }
}

/// How much a pass runs over, or bounds on it: what attention costs depends on it, and it is in no launch's parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ForestSize {
    /// Tokens T.
    pub rows: u64,
    /// Distinct slots that the rows attend to.
    pub keys: u64,
    /// Attended (row, key) pairs A.
    pub pairs: u64,
}

impl ForestSize {
    /// The last rows alone of `prompts` prompts.
    pub fn ends(self, prompts: usize) -> ForestSize {
        ForestSize {
            rows: prompts as u64,
            pairs: self.keys,
            ..self
        }
    }

    /// The trees alone that hang from `prompts` prompts, if each has `widths[l]` nodes at depth l + 1.
    pub fn trees(self, prompts: usize, widths: &[usize]) -> ForestSize {
        let prompts = prompts as u64;
        let nodes = prompts * widths.iter().map(|&n| n as u64).sum::<u64>();
        let seen = |(depth, &n): (u64, &usize)| n as u64 * (self.keys + prompts * depth);
        ForestSize {
            rows: nodes,
            keys: self.keys + nodes,
            pairs: (1..).zip(widths).map(seen).sum(),
        }
    }

    /// The rows alone that have a node below them in [`ForestSize::trees`].
    pub fn scored(self, prompts: usize, widths: &[usize]) -> ForestSize {
        let inner = &widths[..widths.len() - 1];
        self.ends(prompts).and(self.trees(prompts, inner))
    }

    /// Prompts together with trees that hang from them.
    pub fn and(self, trees: ForestSize) -> ForestSize {
        ForestSize {
            rows: self.rows + trees.rows,
            keys: trees.keys,
            pairs: self.pairs + trees.pairs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ancestors(forest: &Forest, row: usize) -> Vec<u32> {
        let mut found = Vec::new();
        let mut at = forest.rows[row].chain;
        while at != NONE {
            found.push(at);
            at = forest.parent[at as usize];
        }
        found
    }

    #[test]
    fn nodes_are_packed_depth_first_with_their_positions() {
        let mut forest = Forest::new();
        forest.push_prompt(&[9, 9], PromptAttention::Causal);
        // a(b(d), c), e given breadth-first.
        let nodes = [
            Node {
                token: 1,
                parent: NONE,
            },
            Node {
                token: 5,
                parent: NONE,
            },
            Node {
                token: 2,
                parent: 0,
            },
            Node {
                token: 3,
                parent: 0,
            },
            Node {
                token: 4,
                parent: 2,
            },
        ];
        let rows = forest.push(&[7, 8, 9], &nodes, PromptAttention::Causal);
        assert_eq!(rows, [5, 9, 6, 8, 7]);
        let tokens: Vec<u32> = forest.rows.iter().map(|r| r.token).collect();
        assert_eq!(tokens, [9, 9, 7, 8, 9, 1, 2, 4, 3, 5]);
        let positions: Vec<u32> = forest.rows[2..].iter().map(|r| r.position).collect();
        assert_eq!(positions, [0, 1, 2, 3, 4, 5, 4, 3]);
        assert_eq!(ancestors(&forest, 7), [7, 6, 5]);
        assert_eq!(
            forest.documents[1],
            Span {
                begin: 2,
                prompt: 3,
                end: 10
            }
        );
        assert_eq!(forest.documents[1].root(), 4);
    }

    #[test]
    fn query_ranges_are_the_converse_of_attention() {
        for attention in [PromptAttention::Causal, PromptAttention::Full] {
            let mut forest = Forest::new();
            let mut rng = crate::rng::Rng::new(3, crate::rng::Stream::Test, 0, 0);
            for _ in 0..20 {
                let prompt = vec![1; 1 + rng.below(6)];
                let nodes: Vec<Node> = (0..rng.below(12))
                    .map(|i| Node {
                        token: 2,
                        parent: if i == 0 || rng.below(3) == 0 {
                            NONE
                        } else {
                            rng.below(i) as u32
                        },
                    })
                    .collect();
                forest.push(&prompt, &nodes, attention);
            }
            let mut pairs = 0;
            for (i, query) in forest.rows.iter().enumerate() {
                let chain = ancestors(&forest, i);
                for (j, key) in forest.rows.iter().enumerate() {
                    let attends = (query.kv_begin..query.kv_end).contains(&(j as u32))
                        || chain.contains(&(j as u32));
                    let listed = (key.q_begin..key.q_end).contains(&(i as u32));
                    assert_eq!(attends, listed, "{attention:?}: row {i} and row {j}");
                    pairs += attends as u64;
                }
            }
            assert_eq!(forest.size().pairs, pairs);
        }
    }
}
