//! The run folder: nothing half-written, and a resumed run goes on from its checkpoint.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};
use tempfile::tempdir;
use vstar::config::Config;
use vstar::model::optimiser::LossScale;
use vstar::run::{
    Checkpoints, Located, Metrics, RunFolder, Stage, State, locate_model, write_folder,
};

fn state(stage: Stage, step: u64) -> State {
    State {
        step,
        ..State::start(stage)
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn name(path: Option<PathBuf>) -> String {
    let path = path.expect("a checkpoint");
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

#[track_caller]
fn line<T: std::fmt::Debug>(result: Result<T>) -> String {
    let line = format!("{:#}", result.unwrap_err());
    assert!(!line.contains('\n'), "more than one line: {line}");
    line
}

fn weights(content: &'static str) -> impl Fn(&Path) -> Result<()> {
    move |folder| Ok(fs::write(folder.join("weights"), content)?)
}

#[test]
fn a_new_folder_holds_its_configuration() {
    let temporary = tempdir().unwrap();
    let root = temporary.path().join("deep/run");
    let config = Config {
        seed: 5,
        ..Config::default()
    };
    let folder = RunFolder::create(&root, &config).unwrap();
    assert_eq!(names(&root), [".lock", "README.txt", "config.toml"]);
    assert_eq!(
        Config::load(Some(&folder.config_path()), &[]).unwrap(),
        config
    );
    let readme = fs::read_to_string(root.join("README.txt")).unwrap();
    for entry in [
        "config.toml",
        "metrics.jsonl",
        "checkpoints/",
        "result.json",
    ] {
        assert!(readme.contains(entry), "{entry}");
    }
    assert!(RunFolder::open(&root).is_ok());
}

#[test]
fn a_run_that_ended_before_it_had_its_configuration_leaves_its_folder_free() {
    let temporary = tempdir().unwrap();
    let root = temporary.path().join("run");
    RunFolder::create(&root, &Config::default()).unwrap();
    fs::rename(root.join("config.toml"), root.join(".config.toml.partial")).unwrap();
    RunFolder::create(&root, &Config::default()).unwrap();
    assert!(RunFolder::open(&root).is_ok());
    // A text of that name that is not a run's.
    fs::remove_file(root.join("config.toml")).unwrap();
    fs::write(root.join("README.txt"), "mine").unwrap();
    assert!(line(RunFolder::create(&root, &Config::default())).contains("is not empty"));
}

#[test]
fn a_folder_in_use_is_refused_and_left_alone() {
    let temporary = tempdir().unwrap();
    let root = temporary.path();
    fs::write(root.join("thesis.tex"), "mine").unwrap();
    let message = line(RunFolder::create(root, &Config::default()));
    assert!(
        message.contains("is not empty") && message.contains("--resume"),
        "{message}"
    );
    assert_eq!(names(root), ["thesis.tex"]);
    let message = line(RunFolder::create(
        &root.join("thesis.tex"),
        &Config::default(),
    ));
    assert!(message.contains("thesis.tex"), "{message}");
    let message = line(RunFolder::open(root));
    assert!(message.contains("has no config.toml"), "{message}");
}

#[test]
fn an_unused_folder_goes_and_any_other_stays() {
    let temporary = tempdir().unwrap();
    let make = |name: &str| {
        let folder = RunFolder::create(&temporary.path().join(name), &Config::default()).unwrap();
        folder.metrics(None).unwrap();
        folder.checkpoints(2).unwrap();
        folder
    };
    make("unused").discard_unused().unwrap();
    let recorded = make("recorded");
    let mut metrics = recorded.metrics(None).unwrap();
    metrics.write(Stage::Sft, 1, &Map::new()).unwrap();
    recorded.discard_unused().unwrap();
    let saved = make("saved");
    let checkpoints = saved.checkpoints(2).unwrap();
    checkpoints
        .save(&state(Stage::Sft, 1), weights("one"))
        .unwrap();
    saved.discard_unused().unwrap();
    let shared = make("shared");
    fs::write(shared.root().join("notes"), "mine").unwrap();
    shared.discard_unused().unwrap();
    assert_eq!(names(temporary.path()), ["recorded", "saved", "shared"]);
    for used in ["recorded", "saved"] {
        assert!(RunFolder::open(&temporary.path().join(used)).is_ok());
    }
    assert_eq!(names(&temporary.path().join("shared")), ["notes"]);
}

#[test]
fn default_names_tell_time_and_data() {
    let path = RunFolder::default_path("beauty");
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(
        path.starts_with("runs") && name.ends_with("-beauty"),
        "{name}"
    );
    assert_eq!(name.len(), "20260101-000000-beauty".len());
}

#[test]
fn write_folder_makes_whole_folders_or_nothing() {
    let root = tempdir().unwrap();
    let path = root.path().join("deep/data");
    let fill = |folder: &Path| Ok(fs::write(folder.join("part"), "all")?);
    let failing = |folder: &Path| fill(folder).and_then(|()| bail!("no more"));
    let message = line(write_folder(&path, failing));
    assert_eq!(message, "no more");
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);

    // An empty folder is as good as none, and what a crash left is cleared up.
    fs::create_dir_all(&path).unwrap();
    fs::create_dir(path.with_file_name(".data.partial")).unwrap();
    fs::write(path.with_file_name(".data.partial").join("old"), "").unwrap();
    write_folder(&path, fill).unwrap();
    assert_eq!(fs::read_to_string(path.join("part")).unwrap(), "all");
    assert!(!path.join("old").exists());
    let message = line(write_folder(&path, fill));
    assert!(message.contains("is there already"), "{message}");
}

#[test]
fn atomic_write_replaces_whole_files_or_nothing() {
    let temporary = tempdir().unwrap();
    let path = temporary.path().join("result.json");
    vstar::run::atomic_write(&path, b"old and longer").unwrap();
    vstar::run::atomic_write(&path, b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(names(temporary.path()), ["result.json"]);
    // A folder cannot be replaced by a file: the write fails late, and leaves no temporary.
    let taken = temporary.path().join("taken");
    fs::create_dir(&taken).unwrap();
    let message = line(vstar::run::atomic_write(&taken, b"new"));
    assert!(message.contains("cannot write"), "{message}");
    assert_eq!(names(temporary.path()), ["result.json", "taken"]);
}

/// A run folder from elsewhere may hold links.
#[cfg(unix)]
#[test]
fn nothing_is_written_through_a_link() {
    let temporary = tempdir().unwrap();
    let outside = temporary.path().join("outside");
    fs::write(&outside, "kept").unwrap();
    let run = temporary.path().join("run");
    fs::create_dir(&run).unwrap();
    for link in ["result.json", ".result.json.partial"] {
        std::os::unix::fs::symlink(&outside, run.join(link)).unwrap();
    }
    vstar::run::atomic_write(&run.join("result.json"), b"new").unwrap();
    assert_eq!(fs::read(&outside).unwrap(), b"kept");
    assert_eq!(fs::read(run.join("result.json")).unwrap(), b"new");
    assert_eq!(names(&run), ["result.json"]);
}

#[test]
fn a_failing_save_leaves_nothing() {
    let temporary = tempdir().unwrap();
    let checkpoints = Checkpoints::open(temporary.path(), 2).unwrap();
    checkpoints
        .save(&state(Stage::Sft, 1), weights("one"))
        .unwrap();
    // Both for a new name and for one that would replace a checkpoint.
    for step in [1, 2] {
        let message = line(checkpoints.save(&state(Stage::Sft, step), |folder| {
            fs::write(folder.join("weights"), "half")?;
            bail!("disk full")
        }));
        assert!(message.ends_with(": disk full"), "{message}");
        assert_eq!(names(temporary.path()), ["sft-00000001"]);
        let latest = checkpoints.latest().unwrap().unwrap();
        assert_eq!(fs::read(latest.join("weights")).unwrap(), b"one");
        assert_eq!(State::load(&latest).unwrap(), state(Stage::Sft, 1));
    }
    // A state that JSON cannot hold is a failure too.
    let mut endless = state(Stage::Sft, 3);
    endless.best_metric = Some(f64::NAN);
    line(checkpoints.save(&endless, weights("three")));
    assert_eq!(names(temporary.path()), ["sft-00000001"]);
}

#[test]
fn a_checkpoint_of_the_same_name_is_replaced() {
    let temporary = tempdir().unwrap();
    let checkpoints = Checkpoints::open(temporary.path(), 2).unwrap();
    checkpoints
        .save(&state(Stage::Rl, 7), weights("old"))
        .unwrap();
    let path = checkpoints
        .save(&state(Stage::Rl, 7), weights("new"))
        .unwrap();
    assert_eq!(fs::read(path.join("weights")).unwrap(), b"new");
    assert_eq!(names(temporary.path()), ["rl-00000007"]);
}

#[test]
fn a_run_that_ended_between_a_checkpoint_and_its_mark_is_put_right() {
    let temporary = tempdir().unwrap();
    let best = |step| {
        let mut best = state(Stage::Rl, step);
        best.note_validation(step as f64);
        best
    };
    let checkpoints = Checkpoints::open(temporary.path(), 1).unwrap();
    for step in [1, 2] {
        checkpoints.save(&best(step), weights("")).unwrap();
    }
    assert_eq!(names(temporary.path()), ["best-rl", "rl-00000002"]);
    // As the third stands before it is marked and the second is removed, and the first as it is being removed.
    let third = temporary.path().join("rl-00000003");
    fs::create_dir(&third).unwrap();
    best(3).save(&third).unwrap();
    fs::create_dir(temporary.path().join(".rl-00000001.partial")).unwrap();
    let checkpoints = Checkpoints::open(temporary.path(), 1).unwrap();
    assert_eq!(names(temporary.path()), ["best-rl", "rl-00000003"]);
    assert_eq!(name(checkpoints.best(Stage::Rl).unwrap()), "rl-00000003");
}

#[test]
fn the_latest_and_the_best_are_kept() {
    let temporary = tempdir().unwrap();
    let checkpoints = Checkpoints::open(temporary.path(), 2).unwrap();
    assert_eq!(checkpoints.latest().unwrap(), None);
    assert_eq!(checkpoints.best(Stage::Sft).unwrap(), None);
    // 9 < 10 and sft < rl, whatever the alphabet says.
    for step in [8, 9, 10, 100_000_000] {
        checkpoints
            .save(&state(Stage::Sft, step), weights(""))
            .unwrap();
        if step == 8 {
            checkpoints.mark_best(Stage::Sft, step).unwrap();
        }
    }
    assert_eq!(
        names(temporary.path()),
        ["best-sft", "sft-00000008", "sft-00000010", "sft-100000000"]
    );
    assert_eq!(name(checkpoints.latest().unwrap()), "sft-100000000");
    for step in [1, 2] {
        checkpoints
            .save(&state(Stage::Rl, step), weights(""))
            .unwrap();
    }
    assert_eq!(
        names(temporary.path()),
        ["best-sft", "rl-00000001", "rl-00000002", "sft-00000008"]
    );
    assert_eq!(name(checkpoints.latest().unwrap()), "rl-00000002");
    assert_eq!(name(checkpoints.best(Stage::Sft).unwrap()), "sft-00000008");
    assert_eq!(checkpoints.best(Stage::Rl).unwrap(), None);
    let message = line(checkpoints.mark_best(Stage::Rl, 77));
    assert!(message.contains("no checkpoint"), "{message}");
    assert_eq!(checkpoints.best(Stage::Rl).unwrap(), None);
    // A pointer leads nowhere but to a checkpoint of its run.
    for elsewhere in ["..", "../..", "/", "", "rl-1"] {
        fs::write(temporary.path().join("best-rl"), elsewhere).unwrap();
        let message = line(checkpoints.best(Stage::Rl));
        assert!(message.contains("names a missing checkpoint"), "{message}");
    }
}

#[test]
fn what_a_crash_left_is_cleared_up() {
    let temporary = tempdir().unwrap();
    let root = temporary.path();
    let checkpoints = Checkpoints::open(root, 2).unwrap();
    checkpoints
        .save(&state(Stage::Sft, 1), weights("one"))
        .unwrap();
    checkpoints
        .save(&state(Stage::Sft, 2), weights("two"))
        .unwrap();
    // Crashes: while filling a checkpoint, while moving one aside, and just before removing it.
    fs::create_dir(root.join(".sft-00000003.partial")).unwrap();
    fs::write(root.join(".sft-00000003.partial/weights"), "ha").unwrap();
    fs::write(root.join(".best-sft.partial"), "sft").unwrap();
    fs::rename(
        root.join("sft-00000002"),
        root.join(".sft-00000002.replaced"),
    )
    .unwrap();
    fs::create_dir(root.join(".sft-00000001.replaced")).unwrap();
    // Before the clearing up, too, only whole checkpoints are seen.
    assert_eq!(name(checkpoints.latest().unwrap()), "sft-00000001");
    let checkpoints = Checkpoints::open(root, 2).unwrap();
    assert_eq!(names(root), ["sft-00000001", "sft-00000002"]);
    let latest = checkpoints.latest().unwrap().unwrap();
    assert_eq!(fs::read(latest.join("weights")).unwrap(), b"two");
}

#[test]
fn a_state_reads_back_to_the_bit() {
    let temporary = tempdir().unwrap();
    let mut extra = Map::new();
    extra.insert("reference_step".into(), json!(40));
    let mut state = State {
        loss_scale: Some(LossScale {
            factor: 1024.0,
            calm: 17.0,
        }),
        stage: Stage::Rl,
        step: 120,
        epoch: 3,
        best_metric: None,
        best_step: Some(80),
        bad_evaluations: 2,
        decode_tokens: 1 << 40,
        last_decode_tokens: 100,
        skipped_steps: 1,
        updates: 41,
        elapsed_seconds: 0.1 + 0.2,
        catalog: Some("0123456789abcdef".into()),
        extra,
    };
    for number in 1..1000 {
        state.best_metric = Some((f64::from(number)).sqrt() / 997.0);
        state.save(temporary.path()).unwrap();
        assert_eq!(State::load(temporary.path()).unwrap(), state);
    }
    state.decode_tokens = u64::MAX;
    state.save(temporary.path()).unwrap();
    let message = line(State::load(temporary.path()));
    assert!(
        message.ends_with("decode_tokens = 18446744073709551615 is more than any run has"),
        "{message}"
    );
    state.decode_tokens = 99;
    state.save(temporary.path()).unwrap();
    let message = line(State::load(temporary.path()));
    let want = "last_decode_tokens = 100 is more than decode_tokens = 99";
    assert!(message.ends_with(want), "{message}");
    fs::write(temporary.path().join("state.json"), "{\"stage\": \"sft\"").unwrap();
    let message = line(State::load(temporary.path()));
    assert!(
        message.contains("state.json is not a run's state"),
        "{message}"
    );
}

fn record(loss: f64) -> Map<String, Value> {
    let mut fields = Map::new();
    fields.insert("loss".into(), loss.into());
    fields
}

/// Three fine-tuning steps and two of reinforcement learning, as text.
fn five_records(path: &Path) -> String {
    let mut metrics = Metrics::create(path).unwrap();
    for (stage, step) in [
        (Stage::Sft, 1),
        (Stage::Sft, 2),
        (Stage::Sft, 3),
        (Stage::Rl, 1),
        (Stage::Rl, 2),
    ] {
        metrics.write(stage, step, &record(0.5)).unwrap();
    }
    fs::read_to_string(path).unwrap()
}

#[test]
fn records_are_on_disk_as_soon_as_written() {
    let temporary = tempdir().unwrap();
    let path = temporary.path().join("metrics.jsonl");
    let mut metrics = Metrics::create(&path).unwrap();
    metrics.write(Stage::Sft, 1, &record(0.5)).unwrap();
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        "{\"stage\":\"sft\",\"step\":1,\"loss\":0.5}\n"
    );
    metrics.write(Stage::Sft, 2, &record(f64::NAN)).unwrap();
    assert!(
        fs::read_to_string(&path)
            .unwrap()
            .ends_with("\"loss\":null}\n")
    );
}

#[test]
fn resuming_drops_later_records_only() {
    let temporary = tempdir().unwrap();
    let path = temporary.path().join("metrics.jsonl");
    for (stage, step, kept) in [
        (Stage::Sft, 0, 0),
        (Stage::Sft, 2, 2),
        (Stage::Sft, 3, 3),
        (Stage::Rl, 0, 3),
        (Stage::Rl, 1, 4),
        (Stage::Rl, 2, 5),
        (Stage::Eval, 0, 5),
    ] {
        let all = five_records(&path);
        let mut metrics = Metrics::resume(&path, stage, step).unwrap();
        let before: String = all.split_inclusive('\n').take(kept).collect();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            before,
            "{stage:?} {step}"
        );
        metrics.write(stage, step + 1, &record(0.25)).unwrap();
        let after = fs::read_to_string(&path).unwrap();
        assert_eq!(after.strip_prefix(&before).unwrap().lines().count(), 1);
    }
}

#[test]
fn resuming_drops_a_torn_last_line() {
    let temporary = tempdir().unwrap();
    let path = temporary.path().join("metrics.jsonl");
    let all = five_records(&path);
    // Whole JSON without its line end is torn as well: the next record would join its line.
    for torn in [
        "{\"stage\":\"rl\",\"st",
        "{\"stage\":\"rl\",\"step\":2}",
        "\0\0\0",
        "{\"sta\n",
    ] {
        fs::write(&path, format!("{all}{torn}")).unwrap();
        Metrics::resume(&path, Stage::Rl, 2).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), all, "{torn:?}");
    }
}

#[test]
fn a_damaged_line_in_the_middle_is_named_and_nothing_lost() {
    let temporary = tempdir().unwrap();
    let path = temporary.path().join("metrics.jsonl");
    let damaged = five_records(&path).replacen("\"step\":2", "\"step\":", 1);
    fs::write(&path, &damaged).unwrap();
    let message = line(Metrics::resume(&path, Stage::Rl, 2));
    assert!(
        message.contains("metrics.jsonl is damaged: line 2 is not a record"),
        "{message}"
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), damaged);
}

#[test]
fn a_missing_file_resumes_as_an_empty_one() {
    let temporary = tempdir().unwrap();
    let path = temporary.path().join("metrics.jsonl");
    Metrics::resume(&path, Stage::Sft, 5).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "");
}

#[test]
fn a_model_is_found_in_a_run_or_as_a_checkpoint() {
    let temporary = tempdir().unwrap();
    let root = temporary.path().join("run");
    let message = line(locate_model(&root));
    assert!(message.contains("there is no model folder"), "{message}");
    let folder = RunFolder::create(&root, &Config::default()).unwrap();
    let message = line(locate_model(&root));
    assert!(message.contains("has no checkpoint yet"), "{message}");
    assert_eq!(names(&root), [".lock", "README.txt", "config.toml"]);

    let checkpoints = folder.checkpoints(9).unwrap();
    let config = folder.config_path();
    let found = |checkpoint: PathBuf| Located {
        checkpoint,
        config: Some(config.clone()),
    };
    let first = checkpoints
        .save(&state(Stage::Sft, 1), weights(""))
        .unwrap();
    let second = checkpoints
        .save(&state(Stage::Sft, 2), weights(""))
        .unwrap();
    assert_eq!(locate_model(&root).unwrap(), found(second));
    checkpoints.mark_best(Stage::Sft, 1).unwrap();
    assert_eq!(locate_model(&root).unwrap(), found(first.clone()));
    let third = checkpoints.save(&state(Stage::Rl, 1), weights("")).unwrap();
    checkpoints.mark_best(Stage::Rl, 1).unwrap();
    assert_eq!(locate_model(&root).unwrap(), found(third));

    let inside = locate_model(&first).unwrap();
    assert_eq!(inside.checkpoint, first);
    let configured = fs::canonicalize(inside.config.unwrap()).unwrap();
    assert_eq!(configured, fs::canonicalize(config).unwrap());
    let elsewhere = temporary.path().join("qwen");
    fs::create_dir(&elsewhere).unwrap();
    let located = locate_model(&elsewhere).unwrap();
    assert_eq!((located.checkpoint, located.config), (elsewhere, None));
}

#[test]
fn a_result_is_whole() {
    let temporary = tempdir().unwrap();
    let folder = RunFolder::create(&temporary.path().join("run"), &Config::default()).unwrap();
    folder.write_result(&json!({"ndcg@10": 0.25})).unwrap();
    let text = fs::read_to_string(folder.result_path()).unwrap();
    assert_eq!(text, "{\n  \"ndcg@10\": 0.25\n}\n");
}
