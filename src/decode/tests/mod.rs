//! Decoders against a reference in f64, on small random catalogs under a model of exact arithmetic.

mod draws;
mod reference;
mod table_model;

use super::*;
use crate::device::DeviceRef;
use crate::device::cpu::Cpu;
use crate::kernels::harness::{devices, lockstep_pair};
use crate::rng::{self, Rng};
use reference::{Search, World};
use std::collections::BTreeSet;
use std::sync::Arc;
use table_model::TableModel;

/// Distinct SIDs of `levels` tokens with `codes` codes a level, and a vocabulary that holds them.
struct Catalog {
    sids: BTreeSet<Vec<u32>>,
    levels: usize,
    vocab: usize,
}

impl Catalog {
    fn random(draws: &mut Rng, levels: usize, codes: usize, items: usize) -> Self {
        let sid = |draws: &mut Rng| {
            (0..levels)
                .map(|l| (2 + codes * l + draws.below(codes)) as u32)
                .collect()
        };
        Catalog {
            sids: (0..items).map(|_| sid(draws)).collect(),
            levels,
            vocab: 2 + codes * levels,
        }
    }

    fn trie(&self, device: &DeviceRef) -> Arc<TrieBuffers> {
        let (mut begin, mut tokens) = (Vec::new(), Vec::new());
        let mut first_leaf = 0;
        for depth in 0..=self.levels {
            let nodes: BTreeSet<&[u32]> = self.sids.iter().map(|sid| &sid[..depth]).collect();
            first_leaf = begin.len() as u32;
            for node in nodes {
                begin.push(tokens.len() as u32);
                let children = self.sids.iter().filter(|sid| sid.starts_with(node));
                let children: BTreeSet<Option<&u32>> = children.map(|sid| sid.get(depth)).collect();
                tokens.extend(children.into_iter().flatten());
            }
        }
        begin.push(tokens.len() as u32);
        Arc::new(TrieBuffers::new(device, &begin, &tokens, first_leaf).unwrap())
    }

    fn sid(&self, tokens: &[u32]) -> u32 {
        self.sids
            .iter()
            .position(|sid| sid == tokens)
            .expect("a valid SID") as u32
    }
}

fn config(method: Method) -> DecodeConfig {
    DecodeConfig {
        method,
        renormalise: false,
        full_prompt: false,
        seed: 11,
    }
}

const STEP: u32 = 3;

/// Decodes `prompts` (document id, tokens) in one batch.
fn decode(
    device: &DeviceRef,
    catalog: &Catalog,
    config: &DecodeConfig,
    prompts: &[(u32, Vec<u32>)],
) -> (Plan, Vec<Decoded>) {
    let tokens: usize = prompts.iter().map(|p| p.1.len()).sum();
    // Room to spare, so that the slots of nodes do not begin where the prompts end.
    let capacity = Capacity {
        prompts: prompts.len() + 1,
        tokens: tokens + 5,
    };
    let trie = catalog.trie(device);
    let dims = [catalog.vocab, 3];
    let mut decoder = Decoder::new(device, trie, dims, capacity, config.clone()).unwrap();
    let rows = prompts.len() * decoder.plan().rows();
    let model_rows = rows.max(capacity.rows());
    let model = TableModel::new(device, catalog.vocab, decoder.slots(), model_rows);
    let at = PromptBuffers::new(device, capacity, capacity.rows()).unwrap();
    let batch: Vec<Prompt> = prompts
        .iter()
        .map(|(document, tokens)| Prompt {
            tokens,
            document: *document,
        })
        .collect();
    let mut stream = Stream::new();
    let uploaded = decoder.upload(&batch, &at).unwrap();
    decoder.decode(&mut stream, &model, &uploaded, STEP);
    device.run(&stream).unwrap();
    (decoder.plan().clone(), decoder.read().unwrap())
}

fn cpu() -> DeviceRef {
    Arc::new(Cpu::new())
}

fn random_prompts(draws: &mut Rng, count: usize, vocab: usize) -> Vec<(u32, Vec<u32>)> {
    (0..count as u32)
        .map(|b| {
            let length = 1 + draws.below(7);
            (
                100 + 7 * b,
                (0..length).map(|_| draws.below(vocab) as u32).collect(),
            )
        })
        .collect()
}

/// Valid, consistent with each other and, unless samples, distinct.
fn check_candidates(catalog: &Catalog, decoded: &Decoded, distinct: bool) {
    for candidate in &decoded.candidates {
        assert_eq!(candidate.sid, catalog.sid(&candidate.tokens));
        let sum: f32 = candidate.level_logp.iter().sum();
        assert!((sum - candidate.logp).abs() < 1e-4);
    }
    let sids: BTreeSet<u32> = decoded.candidates.iter().map(|c| c.sid).collect();
    assert!(!distinct || sids.len() == decoded.candidates.len());
}

#[test]
fn beam_search_equals_the_reference() {
    let mut draws = Rng::new(1, rng::Stream::Test, 0, 0);
    for (levels, codes, items, width) in [
        (1, 9, 9, 4),
        (2, 5, 12, 3),
        (3, 4, 30, 8),
        (3, 20, 70, 70),
        (4, 3, 40, 5),
    ] {
        let catalog = Catalog::random(&mut draws, levels, codes, items);
        let prompts = random_prompts(&mut draws, 3, catalog.vocab);
        for renormalise in [false, true] {
            let config = DecodeConfig {
                renormalise,
                ..config(Method::Beam { width })
            };
            let (plan, decoded) = decode(&cpu(), &catalog, &config, &prompts);
            for ((_, prompt), decoded) in prompts.iter().zip(&decoded) {
                let world = World {
                    sids: &catalog.sids,
                    vocab: catalog.vocab,
                    levels,
                    renormalise,
                    prompt,
                };
                let want = world.beam(&vec![width; levels]);
                let got: Vec<_> = decoded
                    .candidates
                    .iter()
                    .map(|c| c.tokens.clone())
                    .collect();
                assert_eq!(&got, want.last().unwrap());
                assert_eq!(
                    decoded.cost,
                    1 + want[..levels - 1].iter().flatten().count()
                );
                assert_eq!(decoded.cost, plan.budget);
                check_candidates(&catalog, decoded, true);
                for candidate in &decoded.candidates {
                    assert!((candidate.logp as f64 - world.logp(&candidate.tokens)).abs() < 1e-4);
                }
            }
        }
    }
}

#[test]
fn a_beam_as_wide_as_the_catalog_ranks_all_of_it() {
    let mut draws = Rng::new(2, rng::Stream::Test, 0, 0);
    let catalog = Catalog::random(&mut draws, 3, 5, 60);
    let prompts = random_prompts(&mut draws, 2, catalog.vocab);
    let method = Method::Beam {
        width: catalog.sids.len(),
    };
    let (_, decoded) = decode(&cpu(), &catalog, &config(method), &prompts);
    for ((_, prompt), decoded) in prompts.iter().zip(&decoded) {
        let (levels, vocab, sids) = (catalog.levels, catalog.vocab, &catalog.sids);
        let world = World {
            sids,
            vocab,
            levels,
            renormalise: false,
            prompt,
        };
        let mut all: Vec<&Vec<u32>> = catalog.sids.iter().collect();
        all.sort_by(|a, b| world.logp(b).total_cmp(&world.logp(a)));
        let got: Vec<&Vec<u32>> = decoded.candidates.iter().map(|c| &c.tokens).collect();
        assert_eq!(got, all);
    }
}

#[test]
fn a_large_vocabulary_is_scored_in_parts() {
    // Rows of 2^18 logits fit the buffer 64 at a time; three beams of 40 do not.
    let mut draws = Rng::new(12, rng::Stream::Test, 0, 0);
    let mut catalog = Catalog::random(&mut draws, 2, 50, 300);
    catalog.vocab = 1 << 18;
    let (levels, width) = (2, 40);
    let prompts = random_prompts(&mut draws, 3, catalog.vocab);
    let config = DecodeConfig {
        renormalise: true,
        ..config(Method::Beam { width })
    };
    let (_, decoded) = decode(&cpu(), &catalog, &config, &prompts);
    for ((_, prompt), decoded) in prompts.iter().zip(&decoded) {
        let (sids, vocab) = (&catalog.sids, catalog.vocab);
        let world = World {
            sids,
            vocab,
            levels,
            renormalise: true,
            prompt,
        };
        let got: Vec<_> = decoded
            .candidates
            .iter()
            .map(|c| c.tokens.clone())
            .collect();
        assert_eq!(got, world.beam(&[width; 2])[1]);
    }
}

/// A random configuration of VED and a catalog for it.
fn random_ved(draws: &mut Rng) -> (Catalog, Ved) {
    let levels = 1 + draws.below(4);
    let (codes, items) = (1 + draws.below(9), 1 + draws.below(60));
    let catalog = Catalog::random(draws, levels, codes, items);
    let budget = draws.below(3) * (levels + draws.below(40));
    let ved = Ved {
        lambda: draws.uniform(),
        beta: 2.0 * draws.uniform(),
        init_beam: 1 + draws.below(9),
        budget,
        widen_c: 0.5 + 3.0 * draws.uniform(),
        widen_a: draws.uniform(),
        score_leaves: draws.below(2) == 0,
        eta: draws.uniform(),
        round: 1 + draws.below(5),
        candidates: 1 + draws.below(20),
    };
    (catalog, ved)
}

fn reference_ved(
    catalog: &Catalog,
    ved: &Ved,
    plan: &Plan,
    (document, prompt): &(u32, Vec<u32>),
    decoded: &Decoded,
) {
    let (levels, vocab, sids) = (catalog.levels, catalog.vocab, &catalog.sids);
    let world = World {
        sids,
        vocab,
        levels,
        renormalise: false,
        prompt,
    };
    let mut search = Search::new(&world, ved, 11, STEP, *document);
    let want = search.run(plan);
    let tokens: Vec<_> = want.iter().map(|w| w.0.clone()).collect();
    let got: Vec<_> = decoded
        .candidates
        .iter()
        .map(|c| c.tokens.clone())
        .collect();
    assert_eq!(got, tokens, "{ved:?} {plan:?}");
    assert_eq!(
        (decoded.cost, decoded.dead_ends),
        (search.cost, search.dead_ends),
        "{ved:?}"
    );
    for (candidate, (sid, value)) in decoded.candidates.iter().zip(&want) {
        assert!((candidate.value as f64 - value).abs() < 1e-5);
        assert!((candidate.logp as f64 - world.logp(search.decided(sid))).abs() < 1e-4);
    }
}

#[test]
fn value_guided_search_equals_the_reference_within_every_budget() {
    let mut draws = Rng::new(3, rng::Stream::Test, 0, 0);
    for _ in 0..200 {
        let (catalog, ved) = random_ved(&mut draws);
        let prompts = random_prompts(&mut draws, 2, catalog.vocab);
        let method = Method::Ved(ved.clone());
        let (plan, decoded) = decode(&cpu(), &catalog, &config(method), &prompts);
        for (prompt, decoded) in prompts.iter().zip(&decoded) {
            assert!(ved.budget == 0 || decoded.cost <= ved.budget);
            assert!(decoded.cost <= plan.budget);
            assert!(!decoded.candidates.is_empty());
            check_candidates(&catalog, decoded, true);
            reference_ved(&catalog, &ved, &plan, prompt, decoded);
        }
    }
}

#[test]
fn the_default_always_finds_sixteen_candidates() {
    let mut draws = Rng::new(4, rng::Stream::Test, 0, 0);
    let (mut spent, mut planned) = ([0; 2], [0; 2]);
    // Bushy, like real catalogs, and so sparse that each further SID takes a path of its own.
    for (levels, codes, items) in [
        (3, 6, 150),
        (3, 40, 60),
        (3, 40, 600),
        (2, 30, 100),
        (5, 20, 50),
    ] {
        for (score_leaves, round) in [(true, 4), (false, 4), (true, 1), (false, 7)] {
            let catalog = Catalog::random(&mut draws, levels, codes, items);
            let prompts = random_prompts(&mut draws, 4, catalog.vocab);
            let ved = Ved {
                score_leaves,
                round,
                ..Ved::default()
            };
            let (plan, decoded) = decode(&cpu(), &catalog, &config(Method::Ved(ved)), &prompts);
            for decoded in &decoded {
                assert_eq!(decoded.candidates.len(), 16.min(catalog.sids.len()));
                spent[score_leaves as usize] += decoded.cost;
                planned[score_leaves as usize] += plan.budget;
                // Each with a value of its own where leaves are run.
                assert!(!score_leaves || decoded.searched == decoded.candidates.len());
            }
        }
    }
    // Dead ends leave a little of the budget; what needs no forward, more.
    let share = [0, 1].map(|i| spent[i] * 100 / planned[i]);
    assert!(share[1] >= 95 && share[0] < 90, "{share:?} percent");
}

#[test]
fn siblings_have_values_of_their_own() {
    let mut draws = Rng::new(5, rng::Stream::Test, 0, 0);
    let catalog = Catalog::random(&mut draws, 2, 8, 50);
    let prompts = random_prompts(&mut draws, 1, catalog.vocab);
    let (_, decoded) = decode(
        &cpu(),
        &catalog,
        &config(Method::Ved(Ved::default())),
        &prompts,
    );
    let values: BTreeSet<u32> = decoded[0]
        .candidates
        .iter()
        .map(|c| c.value.to_bits())
        .collect();
    assert_eq!(values.len(), decoded[0].candidates.len());
}

fn methods() -> [Method; 4] {
    let free = Ved {
        score_leaves: false,
        ..Ved::default()
    };
    [
        Method::Beam { width: 6 },
        Method::Sample {
            count: 5,
            temperature: 0.7,
        },
        Method::Ved(Ved::default()),
        Method::Ved(free),
    ]
}

#[test]
fn results_do_not_depend_on_the_batch() {
    let mut draws = Rng::new(6, rng::Stream::Test, 0, 0);
    let catalog = Catalog::random(&mut draws, 3, 7, 90);
    let prompts = random_prompts(&mut draws, 5, catalog.vocab);
    for method in methods() {
        let config = config(method);
        let (_, together) = decode(&cpu(), &catalog, &config, &prompts);
        assert_eq!(together, decode(&cpu(), &catalog, &config, &prompts).1);
        for (prompt, want) in prompts.iter().zip(&together) {
            let (_, alone) = decode(&cpu(), &catalog, &config, std::slice::from_ref(prompt));
            assert_eq!(&alone[0], want);
        }
        // Other draws under another seed, where there are draws.
        let other = DecodeConfig {
            seed: 12,
            ..config.clone()
        };
        let same = decode(&cpu(), &catalog, &other, &prompts).1 == together;
        assert_eq!(same, matches!(config.method, Method::Beam { .. }));
    }
}

#[test]
fn processor_and_gpu_find_the_same() {
    let mut draws = Rng::new(7, rng::Stream::Test, 0, 0);
    let catalog = Catalog::random(&mut draws, 3, 9, 200);
    let prompts = random_prompts(&mut draws, 3, catalog.vocab);
    let gpu = devices::bare_gpu();
    let pair: DeviceRef = lockstep_pair(devices::unchecked_gpu());
    for method in methods() {
        let config = config(method);
        let (_, want) = decode(&cpu(), &catalog, &config, &prompts);
        for device in [&gpu, &pair] {
            let (_, got) = decode(device, &catalog, &config, &prompts);
            for (want, got) in want.iter().zip(&got) {
                let sids = |d: &Decoded| d.candidates.iter().map(|c| c.sid).collect::<Vec<_>>();
                assert_eq!(sids(want), sids(got));
                assert_eq!((want.cost, want.dead_ends), (got.cost, got.dead_ends));
                for (a, b) in want.candidates.iter().zip(&got.candidates) {
                    assert!((a.value - b.value).abs() < 1e-5 && (a.logp - b.logp).abs() < 1e-4);
                }
            }
        }
    }
}

#[test]
fn refuses_what_it_cannot_hold() {
    let device = cpu();
    let catalog = Catalog::random(&mut Rng::new(10, rng::Stream::Test, 0, 0), 2, 3, 9);
    let capacity = Capacity {
        prompts: 1,
        tokens: 4,
    };
    let config = config(Method::Beam { width: 2 });
    let trie = catalog.trie(&device);
    let mut decoder = Decoder::new(&device, trie, [catalog.vocab, 3], capacity, config).unwrap();
    let at = PromptBuffers::new(&device, capacity, capacity.rows()).unwrap();
    let mut error = |tokens: &[&[u32]]| {
        let prompts: Vec<Prompt> = tokens
            .iter()
            .map(|&tokens| Prompt {
                tokens,
                document: 7,
            })
            .collect();
        let refused = decoder.upload(&prompts, &at);
        refused.unwrap_err().to_string()
    };
    assert!(error(&[&[1; 5]]).contains("1 prompts of 5 tokens"));
    assert!(error(&[&[1], &[1]]).contains("holds 1 to 1 prompts of 4 tokens"));
    assert!(error(&[&[]]).contains("prompt 7 is empty"));
    assert!(error(&[]).contains("0 prompts"));
}
