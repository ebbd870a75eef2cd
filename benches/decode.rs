//! The searches of `vstar bench decode` under Divan: `VSTAR_DEVICE=gpu cargo bench --bench decode`. Items are nodes.

mod support;

use divan::Bencher;
use divan::counter::ItemsCount;
use support::WATCH;
use vstar::bench::decode::methods;
use vstar::bench::workload::{Search, Shape};

fn names() -> impl Iterator<Item = String> {
    methods().into_iter().map(|(name, _)| name)
}

#[divan::bench(args = names(), sample_count = 10, sample_size = 1)]
fn search(bencher: Bencher, name: &str) {
    let shape = Shape {
        hidden: 256,
        prompts: 64,
        ..Shape::default()
    };
    let (_, config) = methods()
        .into_iter()
        .find(|(known, _)| known == name)
        .expect("a name");
    let mut search = Search::new(&WATCH.device, &shape, &config).expect("buffers");
    let found = search.run().expect("candidates");
    let nodes: usize = found.iter().map(|decoded| decoded.cost).sum();
    bencher
        .counter(ItemsCount::new(nodes))
        .bench_local(|| search.run().expect("candidates"));
}

fn main() {
    println!("{}", WATCH.device.info());
    divan::main();
}
