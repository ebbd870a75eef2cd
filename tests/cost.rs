//! What steps cost: the launches they record against the formulas of `docs/performance.md`.

use std::sync::Arc;
use vstar::bench::formula::{self, DecodePass, Work};
use vstar::bench::workload::{FineTuning, LEVELS, Reinforcement, Shape};
use vstar::config::{Candidates, Config};
use vstar::decode::Plan;
use vstar::decode::search::Decoding;
use vstar::device::cpu::Cpu;
use vstar::device::recorder::Recorder;
use vstar::device::{ALIGN_WORDS, Cost, DeviceRef, Launch, Precision, Stream};
use vstar::forest::ForestSize;
use vstar::model::Family;

fn cpu() -> DeviceRef {
    Arc::new(Cpu::new())
}

fn recorder() -> (Arc<Recorder>, DeviceRef) {
    let recorder = Arc::new(Recorder::new(cpu()));
    (recorder.clone(), recorder)
}

/// What the launches say: operations of matrix products, of attention, of the rest; bytes.
fn launched(streams: &[Stream]) -> [u64; 4] {
    let mut sums = [0; 4];
    for (name, of) in streams.iter().flat_map(Stream::cost) {
        let kind = match name {
            name if name.starts_with("matmul") => 0,
            name if name.starts_with("attention") => 1,
            _ => 2,
        };
        sums[kind] += of.cost.operations;
        sums[3] += of.cost.bytes;
    }
    sums
}

fn predicted(work: &Work) -> [u64; 4] {
    [
        work.products,
        work.attention,
        work.elementwise,
        work.bytes(),
    ]
}

/// Odd sizes throughout.
fn small(family: Family) -> Shape {
    Shape {
        family,
        hidden: 36,
        layers: 3,
        heads: 2,
        codes: 19,
        documents: 5,
        tokens: 14,
        parts: 1,
        prompts: 3,
        history: 4,
        precision: Precision::F32,
        dropout: false,
    }
}

const FAMILIES: [Family; 3] = [Family::Llama, Family::Qwen2, Family::Qwen3];

#[test]
fn a_fine_tuning_step_costs_what_the_formula_says() {
    // The last has two parts, each with more logits than a buffer has room for.
    let wide = Shape {
        codes: 60_002,
        documents: 47,
        tokens: 10,
        parts: 2,
        layers: 1,
        ..small(Family::Llama)
    };
    let dropping = Shape {
        dropout: true,
        ..small(Family::Llama)
    };
    for (shape, parts) in FAMILIES
        .map(|family| (small(family), 1))
        .into_iter()
        .chain([(wide, 2), (dropping, 1)])
    {
        let (recorder, device) = recorder();
        let mut step = FineTuning::new(&device, &shape).unwrap();
        step.step().unwrap();
        let streams = recorder.take();
        assert_eq!(streams.len(), 1, "a step is one submission");
        let sizes = step.sizes();
        assert_eq!(parts == 2, sizes[0].head.rows > sizes[0].head.chunk);
        let work = formula::fine_tuning(
            &shape.letters(),
            step.engine.layout(),
            &sizes,
            shape.dropout,
        );
        assert_eq!(predicted(&work), launched(&streams), "{shape:?}");
    }
}

/// Both kinds of operations that dominate are exact; the rest, and the bytes, are without search and candidates' tables.
fn assert_close(work: &Work, streams: &[Stream]) {
    let (want, got) = (predicted(work), launched(streams));
    assert_eq!(want[..2], got[..2]);
    for (want, got) in want.into_iter().zip(got).skip(2) {
        let missing = (got as f64 - want as f64) / got as f64;
        assert!((0.0..0.05).contains(&missing), "{want} of {got}");
    }
}

#[test]
fn a_reinforcement_step_costs_what_the_formula_says() {
    let mut config = Config::default();
    config.rl.group = 8;
    config.ved.init_beam = 4;
    for (family, decode) in [
        (Family::Llama, Candidates::Ved),
        (Family::Qwen2, Candidates::Ved),
        (Family::Qwen3, Candidates::Beam),
    ] {
        config.rl.decode = decode;
        let shape = Shape {
            hidden: 128,
            ..small(family)
        };
        let (recorder, device) = recorder();
        let mut step = Reinforcement::new(&device, &shape, &config).unwrap();
        step.step().unwrap();
        let streams = recorder.take();
        assert_eq!(streams.len(), 1, "a step is one submission");
        let [rollout, update] = at_packing(&streams[0]);
        let letters = shape.letters();

        let valued = decode == Candidates::Ved;
        let (prefill, passes) = passes(&shape, &config);
        let prompts = shape.prompts as u64;
        let work = formula::rollout(&letters, prefill, prompts, &passes, valued);
        assert_close(&work, &[rollout]);

        let (trees, layout) = (step.trees(prefill), step.engine.layout());
        let work = formula::policy_update(&letters, layout, trees, true, config.value.detach);
        assert_close(&work, &[update]);
    }
}

/// A step cut where the trees are packed.
fn at_packing(step: &Stream) -> [Stream; 2] {
    let packs = |launch: &Launch| launch.kernel.name == "tree_pack";
    let at = step.launches.iter().position(packs).unwrap();
    let (rollout, update) = step.launches.split_at(at + 1);
    [rollout, update].map(|part| Stream {
        launches: part.to_vec(),
        ..Stream::default()
    })
}

/// The prompts, and the nodes that a decode runs after them, level by level and round by round.
fn passes(shape: &Shape, config: &Config) -> (ForestSize, Vec<DecodePass>) {
    let data = shape.dataset().unwrap();
    let trie = data.catalog.trie();
    let sizes: Vec<usize> = (0..=LEVELS).map(|depth| trie.level(depth).len()).collect();
    let method = Decoding::rollout(config, &data, shape.prompts)
        .config
        .method;
    let plan = Plan::new(&method, &sizes).unwrap();
    let (prompts, prompt) = (shape.prompts as u64, shape.prompt() as u64);
    let tokens = prompts * prompt;
    let prefill = ForestSize {
        rows: tokens.next_multiple_of(ALIGN_WORDS as u64),
        keys: tokens,
        pairs: prompts * prompt * (prompt + 1) / 2,
    };
    let pass = |width: usize, depth: usize| {
        let rows = prompts * width as u64;
        DecodePass {
            forest: ForestSize {
                rows,
                keys: tokens + prompts * plan.nodes as u64,
                pairs: rows * (prompt + depth as u64),
            },
            scored: rows,
        }
    };
    let levels = (1..=plan.run_levels).map(|depth| DecodePass {
        scored: if depth < LEVELS {
            prompts * plan.widths[depth - 1] as u64
        } else {
            0
        },
        ..pass(plan.widths[depth - 1], depth)
    });
    let rounds = (0..plan.rounds).map(|_| pass(plan.round, plan.run_levels));
    (prefill, levels.chain(rounds).collect())
}

/// The comparison notices a launch more or less, and one of another size.
#[test]
fn a_changed_step_is_noticed() {
    let (recorder, device) = recorder();
    let shape = small(Family::Llama);
    let mut step = FineTuning::new(&device, &shape).unwrap();
    step.step().unwrap();
    let mut streams = recorder.take();
    let whole = launched(&streams);
    let product = streams[0]
        .launches
        .iter()
        .position(|launch| launch.kernel.name.starts_with("matmul"))
        .unwrap();
    let removed = streams[0].launches.remove(product);
    assert_ne!(removed.cost(), Cost::default());
    let less = launched(&streams);
    assert_eq!(whole[0] - less[0], removed.cost().operations);
    assert_eq!(whole[3] - less[3], removed.cost().bytes);
    let shorter = Shape {
        tokens: 13,
        ..shape
    };
    let other = FineTuning::new(&cpu(), &shorter).unwrap();
    let work = formula::fine_tuning(
        &shape.letters(),
        other.engine.layout(),
        &other.sizes(),
        false,
    );
    assert_ne!(work.products, whole[0]);
    assert_ne!(work.attention, whole[1]);
}
