//! A dataset and a model small enough to train in seconds: 60 items on 58 semantic IDs, walks that can be learnt.

use std::fmt::Write;
use std::path::Path;
use vstar::rng::{Rng, Stream};

/// Settings of a two-layer model and of short stages.
pub const SETTINGS: &[&str] = &[
    "data.max_history=6",
    "model.layers=2",
    "model.hidden_size=32",
    "model.heads=4",
    "model.kv_heads=2",
    "model.init_std=0.1",
    "sft.batch=16",
    "sft.lr=0.003",
    "sft.warmup_steps=2",
    "rl.prompts=6",
    "rl.group=8",
    "rl.lr=0.001",
    "rl.warmup_steps=0",
    "ved.init_beam=4",
    "ved.round=2",
    "reward.semantic=0.5",
    "eval.beam=10",
    "eval.batch=16",
    "eval.bootstrap=50",
];

const ITEMS: usize = 60;
const USERS: usize = 48;

/// Writes the dataset in this program's own format.
pub fn write(folder: &Path) {
    let mut items = String::new();
    for item in 0..ITEMS {
        // The last two items share the IDs of the first two; some parents have three children, some four.
        let code = item % 58;
        let (a, b, c) = (code % 4, code / 4 % 4, code / 16);
        let (angle, worth) = (item as f64 * 0.4, 1 + item % 3);
        let (x, y) = (angle.cos(), angle.sin());
        let _ = writeln!(
            items,
            r#"{{"id": "item {item}", "sid": [{a}, {b}, {c}], "worth": {worth}, "embedding": [{x:.4}, {y:.4}, {a}]}}"#
        );
    }
    let mut log = String::new();
    for user in 0..USERS {
        let mut rng = Rng::new(11, Stream::Test, user as u32, 0);
        let mut item = rng.below(ITEMS);
        let mut walk = Vec::new();
        for _ in 0..5 + rng.below(5) {
            walk.push(format!("\"item {item}\""));
            item = (item * 7 + 3 + 11 * rng.below(2)) % ITEMS;
        }
        let _ = writeln!(log, r#"{{"user": {user}, "items": [{}]}}"#, walk.join(", "));
    }
    std::fs::write(folder.join("items.jsonl"), items).unwrap();
    std::fs::write(folder.join("interactions.jsonl"), log).unwrap();
}
