//! The steps of `vstar bench steps` under Divan: `VSTAR_DEVICE=gpu cargo bench --bench steps`. Items are tokens trained on.

mod support;

use divan::Bencher;
use divan::counter::ItemsCount;
use support::WATCH;
use vstar::bench::workload::{FineTuning, Reinforcement, Shape};
use vstar::config::Config;

const WIDTHS: [usize; 2] = [128, 256];

fn shape(hidden: usize) -> Shape {
    Shape {
        hidden,
        ..Shape::default()
    }
}

#[divan::bench(args = WIDTHS, sample_count = 10, sample_size = 1)]
fn sft(bencher: Bencher, hidden: usize) {
    let mut step = FineTuning::new(&WATCH.device, &shape(hidden)).expect("buffers");
    bencher
        .counter(ItemsCount::new(step.tokens()))
        .bench_local(|| step.step().expect("a step"));
}

#[divan::bench(args = WIDTHS, sample_count = 10, sample_size = 1)]
fn rl(bencher: Bencher, hidden: usize) {
    let config = Config::default();
    let mut step = Reinforcement::new(&WATCH.device, &shape(hidden), &config).expect("buffers");
    let tokens = step.step().expect("a step").trained;
    bencher
        .counter(ItemsCount::new(tokens))
        .bench_local(|| step.step().expect("a step"));
}

fn main() {
    println!("{}", WATCH.device.info());
    divan::main();
}
