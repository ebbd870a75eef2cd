//! Draws follow the policy: chi-square tests with fixed seeds, each with a distribution it must refuse.

use super::*;
use crate::forest::Row;
use crate::kernels::harness::Harness;
use crate::kernels::search::{RECORD, STATS, SearchSlices, search_begin, trie_words};
use crate::kernels::ved_select::{Params, table, ved_select};

/// Pearson's statistic of counts against expected shares.
fn chi_square(counts: &[usize], shares: &[f64]) -> f64 {
    let total: usize = counts.iter().sum();
    let terms = counts.iter().zip(shares).map(|(&n, share)| {
        let expected = share * total as f64;
        (n as f64 - expected).powi(2) / expected
    });
    terms.sum()
}

#[test]
fn samples_follow_the_policy() {
    let mut draws = Rng::new(8, rng::Stream::Test, 0, 0);
    let catalog = Catalog::random(&mut draws, 2, 3, 20);
    let sids: Vec<&Vec<u32>> = catalog.sids.iter().collect();
    let temperature = 0.5;
    let method = Method::Sample {
        count: 4000,
        temperature,
    };
    let prompts = [(1, vec![3, 1])];
    let (_, decoded) = decode(&cpu(), &catalog, &config(method), &prompts);
    check_candidates(&catalog, &decoded[0], false);
    let mut counts = vec![0; sids.len()];
    for candidate in &decoded[0].candidates {
        counts[candidate.sid as usize] += 1;
    }
    let (levels, vocab) = (catalog.levels, catalog.vocab);
    let (sids_of, prompt) = (&catalog.sids, prompts[0].1.as_slice());
    let world = World {
        sids: sids_of,
        vocab,
        levels,
        renormalise: true,
        prompt,
    };
    // The product over levels of the tempered shares among siblings.
    let share = |sid: &[u32], temperature: f64| -> f64 {
        (0..levels)
            .map(|l| {
                let weight = |tokens: &[u32]| (world.logp(tokens) / temperature).exp();
                let siblings: BTreeSet<&[u32]> = sids
                    .iter()
                    .filter(|other| other.starts_with(&sid[..l]))
                    .map(|other| &other[..=l])
                    .collect();
                weight(&sid[..=l]) / siblings.into_iter().map(weight).sum::<f64>()
            })
            .product()
    };
    let shares: Vec<f64> = sids
        .iter()
        .map(|sid| share(sid, temperature as f64))
        .collect();
    assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    // The 99.9% point for up to 8 degrees of freedom is 26.1.
    assert!(sids.len() <= 9);
    assert!(chi_square(&counts, &shares) < 26.1, "{counts:?} {shares:?}");
    // Negative control: other shares are refused.
    let flat: Vec<f64> = sids.iter().map(|sid| share(sid, 1.0)).collect();
    assert!(chi_square(&counts, &flat) > 26.1);
}

#[test]
fn expansions_follow_the_policy_without_replacement() {
    // A root with four leaves gets two of them; every prompt is a document of its own.
    let (prompts, nodes, fanout) = (6000, 3, 4);
    let shares = [0.1f64, 0.2, 0.3, 0.4];
    let logps: Vec<f32> = (0..prompts * nodes)
        .flat_map(|_| shares.map(|s| s.ln() as f32))
        .collect();
    let mut h = Harness::new(cpu());
    let spans: Vec<u32> = (0..prompts as u32).flat_map(|b| [0, 1, b]).collect();
    let prompt = h.u32("prompt", &spans);
    let tree = h.u32("tree", &vec![0; prompts * (1 + nodes) * RECORD]);
    let stats = h.f32("stats", &vec![0.0; prompts * nodes * STATS]);
    let rows = h.u32("rows", &vec![0; prompts * 2 * Row::WORDS]);
    let parent = h.u32("parent", &vec![0; 1 + prompts * nodes]);
    let entry = h.u32("entry", &vec![0; prompts * 2 * 2]);
    let trie = h.u32("trie", &trie_words(&[0, 4, 4, 4, 4, 4], &[5, 6, 7, 8]));
    let child_logp = h.f32("child_logp", &logps);
    let tables = h.f32("table", &table(8, 1.0, 8.0, 0.5));
    let inputs = [child_logp.slice(), trie.slice(), tables.slice()];
    let on = SearchSlices {
        tree: tree.slice(),
        stats: stats.slice(),
        rows: rows.slice(),
        parent: parent.slice(),
        entry: entry.slice(),
    };
    let params = Params {
        prompts: prompts as u32,
        nodes: nodes as u32,
        slot_base: 1,
        width: 2,
        tokens_at: 6,
        fanout: fanout as u32,
        levels: 1,
        run_levels: 1,
        budget: 3,
        goal: 0,
        leaves: u32::MAX,
        rounds_left: 1,
        first: 1,
        table: 8,
        key: rng::key(5, rng::Stream::Decode),
        step: 0,
        eta: 0.0,
    };
    let entries = entry.slice();
    search_begin(
        h.stream(),
        prompt.slice(),
        tree.slice(),
        stats.slice(),
        entries,
        prompts,
        nodes,
    );
    ved_select(h.stream(), inputs, on, params);
    h.run().unwrap();
    // Each row's token names the child it runs.
    let mut counts = vec![0; fanout * fanout];
    for pair in h.read_u32(&rows).unwrap().chunks_exact(2 * Row::WORDS) {
        counts[(pair[0] - 5) as usize * fanout + (pair[Row::WORDS] - 5) as usize] += 1;
    }
    let pairs = (0..fanout * fanout).map(|i| (i / fanout, i % fanout));
    let (counts, want): (Vec<usize>, Vec<f64>) = pairs
        .zip(&counts)
        .filter(|((a, b), _)| a != b)
        .map(|((a, b), &n)| (n, shares[a] * shares[b] / (1.0 - shares[a])))
        .unzip();
    assert_eq!(counts.iter().sum::<usize>(), prompts);
    // The 99.9% point for 11 degrees of freedom is 31.3.
    assert!(chi_square(&counts, &want) < 31.3, "{counts:?} {want:?}");
    assert!(chi_square(&counts, &[1.0 / 12.0; 12]) > 31.3);
}
