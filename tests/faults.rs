//! What goes wrong around a run: it is asked to stop, its disk fills up, its folder may not be written or is in use, memory
//! runs out, the GPU goes away. Each ends it with one line that says so, and loses nothing that a checkpoint holds.
#![cfg(unix)]

#[path = "support/folder.rs"]
mod folder;
#[path = "support/remains.rs"]
mod remains;
#[path = "support/toy.rs"]
mod toy;
#[path = "support/train.rs"]
mod train;

use folder::in_folder;
use remains::remains;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vstar::config::Config;
use vstar::device::DeviceRef;
use vstar::device::choose::{DeviceChoice, choose_adapter};
use vstar::device::cpu::Cpu;
use vstar::device::gpu::{Gpu, GpuOptions};
use vstar::learn::job;
use vstar::run::{Checkpoints, RunFolder};

const LIMIT: Duration = Duration::from_secs(300);

/// Both stages, with a validation and a checkpoint here and there.
const SETTINGS: [&str; 7] = [
    "sft.epochs=40",
    "sft.patience=0",
    "sft.eval_every=30",
    "rl.steps=80",
    "rl.eval_every=20",
    "run.checkpoint_every=10",
    "eval.baselines=false",
];

/// A folder with the toy data and room for runs.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("toy")).unwrap();
        toy::write(&folder.path().join("toy"));
        Place(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The program, under what a shell's `setup` makes of it.
    fn vstar(&self, setup: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("bash");
        command.arg("-c").arg(format!("{setup}\nexec \"$@\""));
        command.args(["bash", env!("CARGO_BIN_EXE_vstar")]);
        command
            .args(arguments)
            .env("VSTAR_CACHE", self.path("cache"));
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// A training run in the folder `out`.
    fn train(&self, setup: &str, out: &str, settings: &[&str]) -> Command {
        let (data, out) = (self.path("toy"), self.path(out));
        let (data, out) = (data.to_str().unwrap(), out.to_str().unwrap());
        let begin = ["train", "--data", data, "--out", out];
        self.vstar(
            setup,
            &[&begin, toy::SETTINGS, &SETTINGS, settings].concat(),
        )
    }

    fn resume(&self, out: &str) -> Command {
        let out = self.path(out);
        self.vstar("", &["train", "--resume", out.to_str().unwrap()])
    }
}

/// Waits for it to end.
fn ended(mut child: Child) -> Output {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > LIMIT {
            child.kill().unwrap();
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

/// The line that a failing run ends with.
#[track_caller]
fn last_line(output: Output, code: i32) -> String {
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        output.status.code(),
        Some(code),
        "{:?} {stderr}",
        output.status.signal()
    );
    let line = stderr.lines().last().unwrap_or_default();
    let line = line.strip_prefix("vstar: error: ");
    line.unwrap_or_else(|| panic!("{stderr}")).to_owned()
}

fn succeeds(mut command: Command) {
    let output = ended(command.spawn().unwrap());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
}

/// Records in the run's `metrics.jsonl`.
fn records(root: &Path) -> usize {
    fs::read_to_string(root.join("metrics.jsonl")).map_or(0, |text| text.lines().count())
}

fn wait_for_records(root: &Path, count: usize) {
    let start = Instant::now();
    while records(root) < count {
        assert!(start.elapsed() < LIMIT, "no {count} records");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn newest(root: &Path) -> String {
    let checkpoints = Checkpoints::open(&root.join("checkpoints"), 100).unwrap();
    let latest = checkpoints.latest().unwrap().expect("a checkpoint");
    latest.file_name().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn a_run_asked_to_stop_keeps_the_step_it_is_at() {
    let place = Place::new();
    succeeds(place.train("", "alone", &["--device", "cpu"]));
    let want = remains(&place.path("alone"));
    let count = records(&place.path("alone"));
    for (signal, code, at) in [
        ("INT", 130, 3),
        ("TERM", 143, count / 2),
        ("INT", 130, count - 40),
    ] {
        let name = format!("{signal}-{at}");
        let root = place.path(&name);
        let child = place
            .train("", &name, &["--device", "cpu"])
            .spawn()
            .unwrap();
        wait_for_records(&root, at);
        let pid = child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", signal, &pid])
                .status()
                .unwrap()
                .success()
        );
        let line = last_line(ended(child), code);
        let (stage, step) = newest(&root)
            .split_once('-')
            .map(|(s, n)| (s.to_owned(), n.parse::<u64>().unwrap()))
            .unwrap();
        let root = root.to_str().unwrap();
        assert_eq!(
            line,
            format!(
                "interrupted after {stage} step {step}, which is kept; to go on: vstar train --resume {root}"
            )
        );
        // Nothing but what that step is: every record is kept.
        assert!(records(&place.path(&name)) >= at);
        let mut resume = place.resume(&name);
        resume.args(["--device", "cpu"]);
        succeeds(resume);
        let got = remains(&place.path(&name));
        // It may have kept one more checkpoint, or one less.
        let differ = |name: &&String| got.get(*name).is_some_and(|bytes| *bytes != want[*name]);
        let differ: Vec<&String> = want.keys().filter(differ).collect();
        assert!(differ.is_empty(), "{name}: {differ:?}");
        let missing = |name: &&String| {
            !name.starts_with("sft-") && !name.starts_with("rl-") && !got.contains_key(*name)
        };
        assert_eq!(want.keys().find(missing), None);
        assert_eq!(newest(&place.path(&name)), newest(&place.path("alone")));
    }
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    let place = Place::new();
    // A step that takes for ever.
    let settings = [
        "--device",
        "cpu",
        "sft.batch=100000",
        "model.hidden_size=512",
        "sft.eval_every=1000",
    ];
    let child = place.train("", "slow", &settings).spawn().unwrap();
    let start = Instant::now();
    while !place.path("slow/metrics.jsonl").exists() {
        assert!(start.elapsed() < LIMIT, "it does not begin");
        std::thread::sleep(Duration::from_millis(1));
    }
    for _ in 0..2 {
        let pid = child.id().to_string();
        Command::new("kill")
            .args(["-s", "INT", &pid])
            .status()
            .unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    let output = ended(child);
    assert_eq!(output.status.code(), Some(130));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!stderr.contains("interrupted"), "{stderr}");
}

#[test]
fn a_folder_has_one_process_at_a_time() {
    let place = Place::new();
    let (root, config) = (place.path("run"), Config::default());
    let folder = RunFolder::create(&root, &config).unwrap();
    let shown = root.display();
    let line = last_line(ended(place.resume("run").spawn().unwrap()), 1);
    let want = format!(
        "the run folder {shown} is in use by another process: wait until that has ended, or give another --out"
    );
    assert_eq!(line, want);
    // Also before there is a configuration.
    fs::remove_file(folder.config_path()).unwrap();
    let line = last_line(ended(place.train("", "run", &[]).spawn().unwrap()), 1);
    assert_eq!(line, want);
    drop(folder);
    succeeds(place.train(
        "",
        "run",
        &["--device", "cpu", "--stage", "sft", "sft.epochs=1"],
    ));
    RunFolder::resume(&root).unwrap();
}

/// A limit on the size of files stands for a disk without room: the system refuses writes half-way.
#[test]
fn a_checkpoint_that_cannot_be_written_leaves_nothing_behind() {
    let place = Place::new();
    let short = ["--device", "cpu", "--stage", "sft", "sft.epochs=4"];
    succeeds(place.train("", "alone", &short));
    let root = place.path("full");
    // Enough for the records, not for the weights.
    let mut train = place.train("trap '' XFSZ; ulimit -f 40", "full", &short);
    let line = last_line(ended(train.spawn().unwrap()), 1);
    let checkpoint = root.join("checkpoints/sft-00000010");
    let (checkpoint, shown) = (checkpoint.display(), root.display());
    assert!(
        line.starts_with(&format!("cannot save the checkpoint {checkpoint}: ")),
        "{line}"
    );
    assert_eq!(line.matches("File too large").count(), 1, "{line}");
    assert!(
        line.ends_with(&format!(
            "; to go on: vstar train --stage sft --resume {shown}"
        )),
        "{line}"
    );
    assert_eq!(fs::read_dir(root.join("checkpoints")).unwrap().count(), 0);
    // With room it ends as the other.
    let mut resume = place.resume("full");
    resume.args(["--device", "cpu", "--stage", "sft"]);
    succeeds(resume);
    assert_eq!(remains(&root), remains(&place.path("alone")));
}

/// As a user who is not root, to whom nothing is forbidden.
#[test]
fn a_folder_that_may_not_be_written_is_refused() {
    let place = Place::new();
    let root = fs::metadata(place.0.path()).unwrap().uid() == 0;
    let program = place.path("vstar");
    fs::copy(env!("CARGO_BIN_EXE_vstar"), &program).unwrap();
    fs::set_permissions(place.0.path(), Permissions::from_mode(0o755)).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        if root {
            command.uid(65534);
        }
        command
            .args(arguments)
            .stderr(Stdio::piped())
            .stdout(Stdio::null());
        last_line(ended(command.spawn().unwrap()), 1)
    };
    let writable = place.path("run");
    drop(RunFolder::create(&writable, &Config::default()).unwrap());
    for (path, mode) in [(&place.path("run"), 0o555), (&place.path("closed"), 0o555)] {
        fs::create_dir_all(path).unwrap();
        for file in fs::read_dir(path).unwrap() {
            fs::set_permissions(file.unwrap().path(), Permissions::from_mode(0o444)).unwrap();
        }
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
    let line = run(&["train", "--resume", writable.to_str().unwrap()]);
    assert_eq!(
        line,
        format!(
            "cannot write in the run folder {}: Permission denied (os error 13)",
            writable.display()
        )
    );
    let inside = place.path("closed/run");
    let line = run(&[
        "train",
        "--device",
        "cpu",
        "--out",
        inside.to_str().unwrap(),
    ]);
    assert_eq!(
        line,
        format!(
            "cannot make the run folder {}: Permission denied (os error 13)",
            inside.display()
        )
    );
}

/// A limit on the address space leaves no room for the activations of 400 documents.
#[test]
fn memory_that_runs_out_is_said() {
    let place = Place::new();
    let items = fs::read_to_string(place.path("toy/interactions.jsonl")).unwrap();
    let line = items.lines().next().unwrap();
    let history = &line[line.find("\"items\"").unwrap()..];
    let many: String = (0..400)
        .map(|user| format!("{{\"user\": {user}, {history}\n"))
        .collect();
    fs::write(place.path("toy/interactions.jsonl"), many).unwrap();
    let large = [
        "--stage",
        "sft",
        "sft.batch=400",
        "model.layers=64",
        "model.hidden_size=128",
    ];
    for device in ["cpu", "gpu"] {
        let name = format!("large-{device}");
        let settings = [&large[..], &["--device", device]].concat();
        let mut train = place.train("ulimit -v 2000000", &name, &settings);
        let line = last_line(ended(train.spawn().unwrap()), 1);
        assert!(
            line.contains("out of memory for `") && line.contains("MiB"),
            "{device}: {line}"
        );
        assert!(!place.path(&name).exists(), "{device}");
    }
}

/// The device goes away while steps are under way.
#[test]
fn a_lost_device_is_said_and_the_run_can_go_on() {
    let place = Place::new();
    let config = train::config(&["sft.epochs=40", "sft.patience=0", "run.checkpoint_every=4"]);
    let data = train::dataset();
    let stages = job::Stages {
        sft: true,
        rl: false,
        eval: false,
    };
    let root = place.path("lost");
    let choice = DeviceChoice {
        device: "gpu".into(),
        ..Default::default()
    };
    let adapter = choose_adapter(&choice)
        .unwrap()
        .expect("GPU tests need an adapter");
    let open = || Arc::new(Gpu::open(&adapter, GpuOptions::default()).unwrap());
    let gpu = open();
    let device: DeviceRef = gpu.clone();
    let watcher = std::thread::spawn({
        let root = root.clone();
        move || {
            wait_for_records(&root, 9);
            gpu.lose();
        }
    });
    let run = |device: &DeviceRef| {
        in_folder(&root, &config, &data, |context| {
            let latest = context.checkpoints.latest()?;
            job::run(device, context, stages, latest)
        })
    };
    let error = format!("{:#}", run(&device).unwrap_err());
    watcher.join().unwrap();
    assert!(error.contains("the device was lost"), "{error}");
    let kept = newest(&root);
    assert!(
        kept.starts_with("sft-") && kept >= "sft-00000008".into(),
        "{kept}"
    );
    let device: DeviceRef = open();
    run(&device).unwrap();
    assert!(newest(&root) > kept);
}

/// There is nothing to keep: what is done is in the last checkpoint.
#[test]
fn the_final_evaluation_stops_at_once() {
    let place = Place::new();
    let (config, data) = (train::config(&["sft.epochs=1"]), train::dataset());
    let stages = job::Stages {
        sft: true,
        rl: false,
        eval: true,
    };
    let device: DeviceRef = Arc::new(Cpu::new());
    let run = |ask: bool| {
        in_folder(&place.path("run"), &config, &data, |context| {
            if ask {
                context.interrupt.ask();
            }
            let latest = context.checkpoints.latest()?;
            job::run(&device, context, stages, latest)
        })
    };
    let only_tuned = job::Stages {
        eval: false,
        ..stages
    };
    in_folder(&place.path("run"), &config, &data, |context| {
        job::run(&device, context, only_tuned, None)
    })
    .unwrap();
    let error = run(true).unwrap_err().to_string();
    assert_eq!(
        error,
        "interrupted in the final evaluation, which begins anew"
    );
    assert!(run(false).unwrap().contains("SFT"));
}
