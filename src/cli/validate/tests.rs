//! Faults that must be found, and named.

use std::collections::BTreeSet;

use super::*;
use crate::device::choose::{DeviceChoice, choose_adapter};
use crate::device::{Buffer, Grid, Kernel, Stream};
use crate::kernels::fill::{FILL, Params, fill_u32};
use crate::kernels::log_softmax::{self, LOG_SOFTMAX};
use std::sync::LazyLock;

fn adapter() -> wgpu::Adapter {
    let choice = DeviceChoice {
        device: "gpu".into(),
        ..Default::default()
    };
    choose_adapter(&choice).unwrap().unwrap()
}

fn row(check: Check) -> Row {
    Row::of(check, &adapter(), None)
}

#[track_caller]
fn fails_with(row: &Row, parts: &[&str]) {
    assert!(!row.passed);
    let message = row.error.as_ref().unwrap();
    for part in parts {
        assert!(message.contains(part), "{message}");
    }
}

/// Same shader, a twin that is wrong in one element.
static BROKEN: Kernel = Kernel {
    name: "broken",
    twin: |args| {
        let p: Params = args.params();
        let y = args.u32_mut(0);
        y.fill(p.value);
        y[5] = 0;
    },
    forms: &[],
    ..FILL
};

fn broken_step(device: &DeviceRef) -> Result<()> {
    let y = Buffer::new(device, "y", 8)?;
    let mut stream = Stream::new();
    fill_u32(&mut stream, y.all(), 2);
    stream.push(&BROKEN, &Params { n: 8, value: 7 }, &[y.all()], Grid(1));
    device.run(&stream)
}

#[test]
fn a_wrong_launch_is_named_under_both_openings() {
    let row = row(Check::Step("step", broken_step));
    fails_with(
        &row,
        &[
            "own limits: launch 1 of 2: kernel broken, output `y`",
            "element 5",
        ],
    );
    fails_with(&row, &["; under default limits, checked: launch 1 of 2"]);
    assert_eq!(row.launches, 4);
    assert_eq!(row.worst_relative_error, Some(1.0 / 8.0));
    assert_eq!(row.kernels["fill/vec4"].worst_relative_error, 0.0);
    let mut line = Vec::new();
    row.write(&mut line, 6).unwrap();
    let line = String::from_utf8(line).unwrap();
    assert!(
        line.starts_with("step           4       1.2e-1  FAIL  with"),
        "{line}"
    );
}

#[test]
fn the_whole_steps_pass_and_run_every_kernel_of_training() {
    let mut ran = BTreeSet::new();
    let whole = WHOLE_STEPS
        .iter()
        .map(|&(name, step)| Check::Step(name, step));
    let halves = HALF_STEPS
        .iter()
        .map(|&(name, step)| Check::HalfStep(name, step));
    let has_halves = adapter().features().contains(wgpu::Features::SHADER_F16);
    for check in whole.chain(halves.filter(|_| has_halves)) {
        let row = row(check);
        assert!(row.passed, "{}: {:?}", check.name(), row.error);
        let kernel = |key: String| key.split('/').next().unwrap_or_default().to_string();
        ran.extend(row.kernels.into_keys().map(kernel));
    }
    let mut resting: Vec<_> = kernels::ALL.iter().map(|kernel| kernel.name).collect();
    resting.retain(|&name| !ran.contains(name));
    // What a vocabulary in several shards needs, what measures a ceiling, the generator's own check, sampling instead of
    // value-guided decoding, and what a teacher says, which is a run of its own.
    let mut expected = vec!["columns", "fma", "rng", "sample", "shares"];
    if !has_halves {
        println!("not tested: no f16 on this adapter");
        expected.push("copy");
        expected.sort_unstable();
    }
    assert_eq!(resting, expected);
}

#[test]
fn a_check_that_compares_nothing_or_panics_does_not_pass() {
    fails_with(
        &row(Check::Step("idle", |_| Ok(()))),
        &["nothing was compared"],
    );
    fails_with(
        &row(Check::Kernel("lost", |_| panic!("lost"))),
        &["panicked: lost"],
    );
}

/// A copy of log-softmax whose shader has `to` in the place of `from`, and its one form.
fn broken_softmax(from: &str, to: &str) -> Kernel {
    let source = LOG_SOFTMAX.source.replace(from, to);
    assert_ne!(source, LOG_SOFTMAX.source);
    Kernel {
        name: "broken_softmax",
        source: source.leak(),
        forms: &[],
        ..LOG_SOFTMAX
    }
}

static WRONG_INDEX: LazyLock<Kernel> =
    LazyLock::new(|| broken_softmax("lse[p.first + row] =", "lse[p.first + (row ^ 1u)] ="));
static MISSING_BARRIER: LazyLock<Kernel> =
    LazyLock::new(|| broken_softmax("workgroupBarrier();", ""));
static UNINITIALISED: LazyLock<Kernel> =
    LazyLock::new(|| broken_softmax("sums[lane] = sum;", "sums[lane] += sum;"));

/// Random rows through one of these.
fn rows(h: &mut Harness, kernel: &'static Kernel) -> Result<()> {
    let (rows, vocab) = (64, 200);
    let logits = h.random("logits", rows * vocab);
    let starts = h.u32("starts", &vec![0; rows + 1]);
    let targets = h.u32("targets", &[0]);
    let (lse, entropy) = (h.random("lse", rows), h.random("entropy", rows));
    let logp = h.random("logp", 1);
    let buffers = [&logits, &starts, &targets, &lse, &entropy, &logp];
    let params = log_softmax::Params {
        rows: rows as u32,
        vocab: vocab as u32,
        first: 0,
    };
    let grid = Grid(rows as u32);
    h.stream()
        .push(kernel, &params, &buffers.map(|b| b.slice()), grid);
    h.run()
}

#[test]
fn a_broken_kernel_is_named() {
    let checks: [(Cases, &str); 3] = [
        (|h| rows(h, &WRONG_INDEX), "wrong index"),
        (|h| rows(h, &MISSING_BARRIER), "missing barrier"),
        (|h| rows(h, &UNINITIALISED), "uninitialised memory"),
    ];
    for (cases, fault) in checks {
        let row = row(Check::Kernel("log_softmax", cases));
        assert!(!row.passed, "{fault} passes");
        fails_with(&row, &["own limits", "kernel broken_softmax, output `"]);
        fails_with(&row, &["; under default limits, checked: launch 0 of 1"]);
    }
    // The same without a fault.
    assert!(row(Check::Kernel("log_softmax", |h| rows(h, &LOG_SOFTMAX))).passed);
}
