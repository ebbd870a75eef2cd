//! Once warm, the CPU device runs its launches without asking for memory. Alone in its program: it counts what every
//! thread asks for.

#[path = "support/toy.rs"]
mod toy;
#[path = "support/train.rs"]
mod train;

use anyhow::Result;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use train::{config, dataset, engine};
use vstar::decode::search::{Decoding, Searcher};
use vstar::device::cpu::Cpu;
use vstar::device::{Counters, Device, DeviceInfo, DeviceRef, Memory, Reading, Slice, Stream};
use vstar::forest::{Forest, PromptAttention};
use vstar::learn::engine::Targets;
use vstar::learn::sequences::{Window, push_window, windows};
use vstar::learn::sft::Trainer;
use vstar::model::optimiser::Update;

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

/// The CPU device, adding up the allocations within `run` and its launches.
struct Watched {
    cpu: Cpu,
    allocations: AtomicU64,
    launches: AtomicU64,
}

impl Device for Watched {
    fn info(&self) -> &DeviceInfo {
        self.cpu.info()
    }

    fn allocate(&self, label: &str, words: usize) -> Result<u32> {
        self.cpu.allocate(label, words)
    }

    fn release(&self, buffer: u32) {
        self.cpu.release(buffer);
    }

    fn write(&self, to: Slice, data: &[u32]) -> Result<()> {
        self.cpu.write(to, data)
    }

    fn begin_reading(&self, from: &[Slice]) -> Result<Reading> {
        self.cpu.begin_reading(from)
    }

    fn run(&self, stream: &Stream) -> Result<()> {
        let before = ALLOCATIONS.load(SeqCst);
        let outcome = self.cpu.run(stream);
        let here = ALLOCATIONS.load(SeqCst) - before;
        self.allocations.fetch_add(here, SeqCst);
        self.launches
            .fetch_add(stream.launches.len() as u64, SeqCst);
        outcome
    }

    fn counters(&self) -> Counters {
        self.cpu.counters()
    }

    fn memory(&self) -> Memory {
        self.cpu.memory()
    }
}

impl Watched {
    /// The fewest allocations of ten calls of `f`: a thread may come to a kernel late and need its scratch then.
    fn fewest(&self, mut f: impl FnMut()) -> u64 {
        let mut once = || {
            let before = self.allocations.load(SeqCst);
            let launches = self.launches.load(SeqCst);
            f();
            assert!(self.launches.load(SeqCst) > launches);
            self.allocations.load(SeqCst) - before
        };
        (0..10).map(|_| once()).min().unwrap()
    }
}

#[test]
fn launches_ask_for_no_memory() {
    let watched = Arc::new(Watched {
        cpu: Cpu::new(),
        allocations: AtomicU64::new(0),
        launches: AtomicU64::new(0),
    });
    let device: DeviceRef = watched.clone();
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
    let fine_tuning = watched.fewest(|| {
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
        let searching = watched.fewest(search);
        assert_eq!(searching, 0, "allocations in a rollout by {decode}");
    }
    assert!(ALLOCATIONS.load(SeqCst) > 0, "nothing is counted");
}
