//! The launches of `vstar bench kernels` under Divan, each with its submission and the wait for it:
//! `VSTAR_DEVICE=gpu cargo bench --bench kernels -- matmul`. Items are operations.

mod support;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use std::sync::LazyLock;
use support::WATCH;
use vstar::bench::kernels::{Cases, cases};
use vstar::bench::workload::Shape;

static CASES: LazyLock<Cases> =
    LazyLock::new(|| cases(&WATCH.device, &Shape::default(), "").expect("steps"));

fn names() -> impl Iterator<Item = String> {
    let name = |case: &vstar::bench::kernels::Case| format!("{} {}", case.step, case.name);
    CASES.list.iter().map(name)
}

#[divan::bench(args = names(), sample_count = 10, sample_size = 1)]
fn launch(bencher: Bencher, name: &str) {
    let at = names().position(|known| known == name).expect("a name");
    let case = &CASES.list[at];
    bencher
        .counter(ItemsCount::new(case.cost.operations))
        .counter(BytesCount::new(case.cost.bytes))
        .with_inputs(|| case.prepare(&WATCH).expect("a launch"))
        .bench_local_values(|()| case.run(&WATCH).expect("a launch"));
}

fn main() {
    println!("{}", WATCH.device.info());
    divan::main();
}
