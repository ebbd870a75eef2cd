//! Once warm, the CPU device runs its launches without asking for memory. Alone in its program: it counts what every
//! thread asks for.

#[path = "support/toy.rs"]
mod toy;
#[path = "support/train.rs"]
mod train;
#[path = "support/watched.rs"]
mod watched;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use train::{config, dataset, engine};
use vstar::decode::search::{Decoding, Searcher};
use vstar::device::cpu::Cpu;
use vstar::device::{DeviceRef, Stream};
use vstar::forest::{Forest, PromptAttention};
use vstar::learn::engine::Targets;
use vstar::learn::sequences::{Window, push_window, windows};
use vstar::learn::sft::Trainer;
use vstar::model::optimiser::Update;
use watched::Watched;

/// The system's allocator, counting.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: the system's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, SeqCst);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, SeqCst);
        // SAFETY: as the caller promised.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations within streams, and launches, so far.
static WITHIN: AtomicU64 = AtomicU64::new(0);
static LAUNCHES: AtomicU64 = AtomicU64::new(0);

/// The fewest allocations of ten calls of `f`: a thread may come to a kernel late and need its scratch then.
fn fewest(mut f: impl FnMut()) -> u64 {
    let mut once = || {
        let (before, launches) = (WITHIN.load(SeqCst), LAUNCHES.load(SeqCst));
        f();
        assert!(LAUNCHES.load(SeqCst) > launches);
        WITHIN.load(SeqCst) - before
    };
    (0..10).map(|_| once()).min().unwrap()
}

#[test]
fn launches_ask_for_no_memory() {
    let run = |cpu: &DeviceRef, stream: &Stream| {
        let before = ALLOCATIONS.load(SeqCst);
        let outcome = cpu.run(stream);
        WITHIN.fetch_add(ALLOCATIONS.load(SeqCst) - before, SeqCst);
        LAUNCHES.fetch_add(stream.launches.len() as u64, SeqCst);
        outcome
    };
    let device = Arc::new(Cpu::new());
    let device: DeviceRef = Arc::new(Watched { device, run });
    let (data, config) = (dataset(), config(&[]));
    let engine = engine(&device, &config, &data);

    let attention = PromptAttention::Causal;
    let documents = windows(&data.train, 7, attention);
    let pack = |&window: &Window, forest: &mut Forest, targets: &mut Targets| {
        let items = &data.train[window.sequence as usize];
        push_window(&data.catalog, items, window, attention, (forest, targets));
    };
    let update = Update {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.98,
        eps: 1e-8,
        weight_decay: 0.01,
        clip_norm: 1.0,
    };
    let mut trainer = Trainer::new(&engine, 4).unwrap();
    let fine_tuning = fewest(|| {
        let result = trainer.step(&engine, &documents[..4], pack, &update);
        assert!(result.unwrap().finite);
    });
    assert_eq!(fine_tuning, 0, "allocations in a step of fine-tuning");

    let asked = &data.test[..config.rl.prompts];
    let histories: Vec<&[u32]> = asked.iter().map(|e| &e.history[..]).collect();
    for decode in ["ved", "beam", "sample"] {
        let config = train::config(&[&format!("rl.decode={decode}")]);
        let decoding = Decoding::rollout(&config, &data, asked.len());
        let mut searcher = Searcher::new(&engine.model, &data, &decoding).unwrap();
        let search = || {
            let found = searcher.search(&engine.model, &data.catalog, &histories, 0, 0);
            assert_eq!(found.unwrap().len(), histories.len());
        };
        let searching = fewest(search);
        assert_eq!(searching, 0, "allocations in a rollout by {decode}");
    }
    assert!(ALLOCATIONS.load(SeqCst) > 0, "nothing is counted");
}
