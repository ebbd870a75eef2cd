//! The packed trees against the definition: paths, prefixes, and the forest the host would pack.

use super::*;
use crate::kernels::harness::devices;
use std::collections::{BTreeMap, BTreeSet};

#[test]
fn shader_equals_twin() {
    devices::lockstep(cases);
}

/// Everything a pass over the trees relies on, checked from the candidates' tokens.
#[test]
fn trees_hold_each_prefix_once() {
    const PROMPTS: usize = 9;
    const GROUP: usize = 16;
    const LEVELS: usize = 3;
    devices::each(|h| {
        let picked = random_picked(&mut h.draws().clone(), PROMPTS, GROUP, LEVELS);
        let (case, p) = Case::record(h, PROMPTS, GROUP, LEVELS);
        let tables = h.read_u32(&case.tables).unwrap();
        let words = h.read_u32(&case.rows).unwrap();
        let rows: &[Row] = bytemuck::cast_slice(&words);
        let parent = h.read_u32(&case.parent).unwrap();
        let figures = h.read_f32(&case.figures).unwrap();
        let [tokens, nodes, scored] = [0, 1, 2].map(|i| tables[p.counts as usize + i] as usize);
        let table = |at: u32, i: usize| tables[at as usize + i];
        // Every node's path, by its row; from the parent links.
        let mut paths = BTreeMap::new();
        for k in 0..nodes {
            let row = table(p.node_row, k) as usize;
            let mut path = vec![rows[row].token];
            let mut at = parent[row];
            while at != NONE {
                path.insert(0, rows[at as usize].token);
                at = parent[at as usize];
            }
            let info = [0, 1, 2].map(|i| table(p.node_info, 4 * k + i));
            assert_eq!(info[1] as usize, path.len() - 1, "depth");
            if path.len() > 1 {
                let above = table(p.node_row, info[2] as usize);
                assert_eq!(above, parent[row], "the parent in table and forest");
            } else {
                assert_eq!(info[2], NONE);
            }
            assert_eq!(table(p.tokens, k), rows[row].token);
            paths.insert(row, (info[0] as usize, path));
        }
        assert_eq!(paths.len(), nodes, "each row is one node");
        let rows_of_trees = p.tree_begin as usize..tokens;
        assert!(paths.keys().copied().eq(rows_of_trees), "rows are dense");
        let mut all = BTreeSet::new();
        for b in 0..PROMPTS {
            let candidates = Paths::of(&picked, b, GROUP, LEVELS);
            let mut own = BTreeSet::new();
            for c in 0..GROUP {
                for l in 0..LEVELS {
                    let node = table(p.cand_node, (b * GROUP + c) * LEVELS + l);
                    if c >= candidates.count() {
                        assert_eq!(node, NONE);
                        continue;
                    }
                    let row = table(p.node_row, node as usize) as usize;
                    let path = candidates.tokens(c)[..=l].to_vec();
                    assert_eq!(paths[&row], (b, path.clone()));
                    own.insert(path);
                }
            }
            let figures = &figures[b * (FIGURES + LEVELS)..][..FIGURES + LEVELS];
            assert_eq!(figures[5] as usize, own.len());
            for l in 0..LEVELS {
                let mut children: BTreeMap<&[u32], usize> = BTreeMap::new();
                for path in own.iter().filter(|path| path.len() == l + 1) {
                    *children.entry(&path[..l]).or_default() += 1;
                }
                let usable = children.values().filter(|&&n| n > 1).count();
                assert_eq!(figures[FIGURES + l] as usize, usable, "sibling groups");
            }
            all.extend(own.into_iter().map(|path| (b, path)));
        }
        assert_eq!(all.len(), nodes, "no node but the candidates'");
        // Who attends to whom, as the rows' ranges of queries say.
        for (row, (b, path)) in &paths {
            let record = rows[*row];
            assert_eq!((record.slot, record.chain), (*row as u32, *row as u32));
            let below: Vec<usize> = paths
                .iter()
                .filter(|(_, (other, p))| other == b && p.starts_with(path))
                .map(|(row, _)| *row)
                .collect();
            let range = record.q_begin as usize..record.q_end as usize;
            assert_eq!(below, range.collect::<Vec<_>>());
            let prompt = rows[record.kv_begin as usize];
            assert_eq!(
                record.position,
                record.kv_end - record.kv_begin + path.len() as u32 - 1
            );
            let tree = prompt.tree_begin as usize..prompt.tree_end as usize;
            assert!(tree.contains(row));
        }
        // Targets hang from the rows that score them.
        for r in 0..scored {
            let row = table(p.scored, r) as usize;
            for k in table(p.starts, r)..table(p.starts, r + 1) {
                let target = table(p.node_row, k as usize) as usize;
                match paths.get(&row) {
                    Some((b, path)) => {
                        let (other, child) = &paths[&target];
                        assert_eq!((b, path.as_slice()), (other, &child[..path.len()]));
                        assert_eq!(parent[target] as usize, row);
                    }
                    None => assert_eq!(rows[target].kv_end as usize, row + 1),
                }
            }
        }
        assert_eq!(table(p.starts, scored) as usize, nodes);
    });
}
