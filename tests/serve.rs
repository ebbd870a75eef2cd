//! `vstar eval` and `vstar recommend`, on a run that `vstar train` makes in a few seconds.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;

use serde_json::{Value, json};

/// Items `0 ..= 24`: item i has the code [i / 5, i % 5], but for the last, which shares that of item 0.
const ITEMS: u32 = 25;
const SIDS: usize = 24;

fn code(item: u32) -> [u32; 2] {
    let item = if item + 1 == ITEMS { 0 } else { item };
    [item / 5, item % 5]
}

/// A data set and a run on it, with what `vstar train` printed.
struct Run {
    data: PathBuf,
    root: PathBuf,
    table: String,
}

/// Made once for all tests.
static RUN: LazyLock<Run> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("serve");
    let _ = fs::remove_dir_all(&folder);
    let (data, root) = (folder.join("walks"), folder.join("run"));
    fs::create_dir_all(&data).unwrap();
    let lines = |rows: Vec<Value>| {
        rows.iter()
            .map(|row| format!("{row}\n"))
            .collect::<String>()
    };
    let items = (0..ITEMS).map(|i| {
        let title = if i == 3 { "" } else { "Thing" };
        json!({"id": format!("item {i}"), "sid": code(i), "title": title})
    });
    fs::write(data.join("items.jsonl"), lines(items.collect())).unwrap();
    // Walks over the items: the next is the one after, or after that. The last item sells more often than the first.
    let walks = (0..40u32).map(|user| {
        let step = 1 + user % 2;
        let walk = (0..6 + user % 3).map(|n| format!("item {}", (user + n * step) % (ITEMS - 1)));
        let mut walk: Vec<_> = walk.collect();
        walk[1] = "item 24".into();
        json!({"user": user, "items": walk})
    });
    fs::write(data.join("interactions.jsonl"), lines(walks.collect())).unwrap();
    let mut command = vstar(&["train", "--device", "cpu"]);
    command.arg("--data").arg(&data).arg("--out").arg(&root);
    command.args([
        "model.layers=1",
        "model.hidden_size=16",
        "model.heads=2",
        "model.kv_heads=1",
        "sft.epochs=3",
        "sft.batch=8",
        "sft.lr=0.01",
        "rl.steps=2",
        "rl.prompts=4",
        "rl.group=4",
        "ved.init_beam=2",
        "eval.beam=8",
        "eval.bootstrap=50",
    ]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    Run { data, root, table }
});

fn vstar(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vstar"));
    command.args(arguments);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The cells of the row of that name.
fn row(table: &str, name: &str) -> Vec<String> {
    let mut rows = table
        .lines()
        .map(|line| line.split('|').map(|cell| cell.trim().to_owned()));
    let row = rows.find(|cells| cells.clone().nth(1).as_deref() == Some(name));
    row.unwrap_or_else(|| panic!("no row {name}: {table}"))
        .skip(2)
        .collect()
}

fn eval(model: &Path, more: &[&str]) -> String {
    let mut command = vstar(&["eval", "--device", "cpu", "--model"]);
    let output = command.arg(model).args(more).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn eval_repeats_the_figures_of_the_run() {
    let result = fs::read(RUN.root.join("result.json")).unwrap();
    let result: Value = serde_json::from_slice(&result).unwrap();
    let checkpoints = RUN.root.join("checkpoints");
    for (system, best) in [("SFT", "best-sft"), ("V-STAR", "best-rl")] {
        let name = fs::read_to_string(checkpoints.join(best)).unwrap();
        let name = name.trim();
        let model = checkpoints.join(name);
        assert_eq!(row(&eval(&model, &[]), name), row(&RUN.table, system));

        let report: Value = serde_json::from_str(&eval(&model, &["--json"])).unwrap();
        let mut expected = result["systems"][system].clone();
        expected
            .as_object_mut()
            .unwrap()
            .remove("train_decode_tokens");
        assert_eq!(report["systems"][name], expected);
        assert_eq!(report["systems"][name]["invalid"], 0);
        assert_eq!(report["protocol"], "leave-one-out");
    }
    // A run folder stands for its best model; settings can be changed.
    let best = fs::read_to_string(checkpoints.join("best-rl")).unwrap();
    let report = eval(&RUN.root, &["--json", "eval.beam=3", "eval.max_users=7"]);
    let report: Value = serde_json::from_str(&report).unwrap();
    let figures = &report["systems"][best.trim()];
    assert_eq!(
        (&figures["beam"], &figures["users"]),
        (&json!(3), &json!(7))
    );
}

#[test]
fn a_checkpoint_alone_needs_data_that_fits() {
    let best = fs::read_to_string(RUN.root.join("checkpoints/best-rl")).unwrap();
    let checkpoint = RUN.root.join("checkpoints").join(best.trim());
    let alone = RUN.root.with_file_name("alone");
    let _ = fs::remove_dir_all(&alone);
    fs::create_dir(&alone).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(checkpoint.join(file), alone.join(file)).unwrap();
    }
    let data = RUN.data.to_str().unwrap();
    let table = eval(
        &alone,
        &["--data", data, "eval.beam=8", "eval.bootstrap=50"],
    );
    assert_eq!(row(&table, "alone"), row(&RUN.table, "V-STAR"));

    for (more, wanted) in [
        (&[][..], "give --data DIR"),
        (&["data.path="], "its vocabulary of 12 tokens is too small"),
    ] {
        let mut command = vstar(&["eval", "--device", "cpu", "--model"]);
        let output = command.arg(&alone).args(more).output().unwrap();
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains(wanted), "{message}");
        assert_eq!(
            (message.lines().count(), output.stdout.len()),
            (1, 0),
            "{message}"
        );
    }
}

/// A copy of the data, and of the run as if it had been made with that.
fn copied(name: &str) -> (PathBuf, PathBuf) {
    let folder = RUN.root.with_file_name(name);
    let _ = fs::remove_dir_all(&folder);
    let (data, root) = (folder.join("walks"), folder.join("run"));
    for (from, to) in [(&RUN.data, &data), (&RUN.root, &root)] {
        copy(from, to);
    }
    let config = fs::read_to_string(root.join("config.toml")).unwrap();
    let [was, is] = [&RUN.data, &data].map(|path| path.to_str().unwrap());
    assert!(config.contains(was));
    fs::write(root.join("config.toml"), config.replace(was, is)).unwrap();
    (data, root)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        match from.is_dir() {
            true => copy(&from, &to),
            false => drop(fs::copy(from, to).unwrap()),
        }
    }
}

#[test]
fn a_model_is_not_taken_for_one_of_other_semantic_ids() {
    let (data, root) = copied("other");
    let path = data.join("items.jsonl");
    let items = fs::read_to_string(&path).unwrap();
    // The order of the items means nothing.
    let mut lines: Vec<&str> = items.lines().collect();
    lines.reverse();
    fs::write(&path, lines.join("\n")).unwrap();
    eval(&root, &["eval.max_users=3"]);
    // As many codes, and two items changed places.
    let swapped = items
        .replace("\"sid\":[1,1]", "\"sid\":[9,9]")
        .replace("\"sid\":[2,2]", "\"sid\":[1,1]")
        .replace("\"sid\":[9,9]", "\"sid\":[2,2]");
    assert_ne!(swapped, items);
    fs::write(&path, swapped).unwrap();
    let run = |arguments: &[&str]| {
        let output = vstar(arguments).args(["--device", "cpu"]).output().unwrap();
        (output.status.success(), text(&output.stderr))
    };
    let [data, root, own] = [&data, &root, &RUN.root].map(|path| path.to_str().unwrap());
    for arguments in [["eval", "--model", root], ["train", "--resume", root]] {
        let (done, message) = run(&arguments);
        assert!(!done && message.lines().count() == 1, "{message}");
        let wanted = "was trained on other items or semantic IDs than walks has now";
        assert!(message.contains(wanted), "{message}");
    }
    // Another folder may hold what the model was not made for, and somebody may want to know how it does there.
    let (done, message) = run(&["eval", "--model", own, "--data", data]);
    assert!(done && message.contains("warning "), "{message}");
    assert!(message.contains("other items or semantic IDs"), "{message}");
    let (_, message) = run(&["train", "--resume", own, "--data", data]);
    assert!(message.contains("the data it was begun with"), "{message}");
    // What a checkpoint does not say is not held against it.
    let state = fs::read_dir(Path::new(root).join("checkpoints")).unwrap();
    for folder in state
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
    {
        let state = fs::read_to_string(folder.join("state.json")).unwrap();
        let state: Value = serde_json::from_str(&state).unwrap();
        let mut state = state.as_object().unwrap().clone();
        assert!(state.shift_remove("catalog").is_some());
        fs::write(folder.join("state.json"), Value::Object(state).to_string()).unwrap();
    }
    let (done, message) = run(&["eval", "--model", root]);
    assert!(done && !message.contains("warning"), "{message}");
}

/// `vstar recommend`, waiting for lines.
fn recommend(more: &[&str]) -> Child {
    let mut command = vstar(&["recommend", "--device", "cpu", "--model"]);
    command.arg(&RUN.root).args(more);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn ask(input: &str, more: &[&str]) -> Output {
    let mut child = recommend(more);
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

/// The lines a run that succeeds prints.
fn answers(input: &str, more: &[&str]) -> Vec<Value> {
    let output = ask(input, more);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
    let lines = text(&output.stdout);
    lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The number in an answer's item id.
fn number(item: &Value) -> u32 {
    let name = item["item"].as_str().unwrap();
    name.strip_prefix("item ").unwrap().parse().unwrap()
}

const HISTORIES: &str = r#"{"user": "first", "items": ["item 3", "item 4"]}

["item 8"]
{"items": ["item 24", "item 0", "item 1"], "user": [2]}
"#;

#[test]
fn answers_come_in_order_with_items_and_scores() {
    let lines = answers(HISTORIES, &["--top-k", "6"]);
    let users: Vec<_> = lines.iter().map(|line| line.get("user")).collect();
    assert_eq!(users, [Some(&json!("first")), None, Some(&json!([2]))]);
    for line in &lines {
        let items = line["items"].as_array().unwrap();
        assert_eq!(items.len(), 6);
        for item in items {
            let keys: Vec<_> = item.as_object().unwrap().keys().collect();
            assert_eq!(keys, ["item", "title", "sid", "score"]);
            let number = number(item);
            assert_eq!(item["sid"], json!(code(number)));
            let title = if number == 3 {
                Value::Null
            } else {
                "Thing".into()
            };
            assert_eq!(item["title"], title);
        }
        let scores = items.iter().map(|item| item["score"].as_f64().unwrap());
        assert!(scores.clone().is_sorted_by(|a, b| a >= b), "{line}");
        assert!(
            scores.clone().all(|score| score < 0.0),
            "log-probabilities: {line}"
        );
    }
    // The same, whether asked together or alone.
    let alone = HISTORIES.lines().filter(|line| !line.is_empty());
    let alone: Vec<_> = alone
        .flat_map(|line| answers(line, &["--top-k", "6"]))
        .collect();
    assert_eq!(alone, lines);
    // Values may have any sign; these order the list.
    for line in answers(HISTORIES, &["--top-k", "3", "eval.decode=ved"]) {
        let items = line["items"].as_array().unwrap().iter();
        let scores = items.map(|item| item["score"].as_f64().unwrap());
        assert!(scores.is_sorted_by(|a, b| a >= b), "{line}");
    }
}

#[test]
fn a_list_may_hold_the_whole_catalog_and_leave_out_what_was_seen() {
    // More than eval.beam = 8 of the run's settings.
    let all = &answers(HISTORIES, &["--top-k", "25"])[2]["items"];
    let all = all.as_array().unwrap();
    let mut numbers: Vec<_> = all.iter().map(number).collect();
    // Two items share a code; the one that sells better comes first.
    let place = |wanted| numbers.iter().position(|&n| n == wanted).unwrap();
    assert_eq!(place(24) + 1, place(0));
    assert_eq!(all[place(24)]["score"], all[place(0)]["score"]);
    let unseen: Vec<_> = all
        .iter()
        .filter(|item| ![0, 1, 24].contains(&number(item)))
        .collect();
    numbers.sort();
    assert_eq!(numbers, (0..ITEMS).collect::<Vec<_>>());
    let sids: std::collections::BTreeSet<_> = all.iter().map(|i| i["sid"].to_string()).collect();
    assert_eq!(sids.len(), SIDS);

    let kept = &answers(HISTORIES, &["--top-k", "25", "--exclude-seen"])[2]["items"];
    assert_eq!(kept.as_array().unwrap().iter().collect::<Vec<_>>(), unseen);
}

#[test]
fn a_bad_line_is_named_once_those_before_it_are_answered() {
    for (bad, wanted) in [
        (
            "[\"item 1\", \"item 25\"]",
            "item \"item 25\" is not in the catalog",
        ),
        (
            "{\"user\": 1, \"items\": []}",
            "the history is empty: there is nothing to recommend from",
        ),
    ] {
        let output = ask(&format!("{HISTORIES}{bad}\n[\"item 2\"]\n"), &[]);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(
            text(&output.stderr),
            format!("vstar: error: stdin:5: {wanted}\n")
        );
        assert_eq!(text(&output.stdout).lines().count(), 3);
    }
}

#[test]
fn a_line_is_answered_without_waiting_for_the_next() {
    let mut child = recommend(&["--top-k", "2"]);
    let mut input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    for user in 0..3 {
        // The next question is only asked once this one is answered.
        writeln!(input, "{{\"user\": {user}, \"items\": [\"item {user}\"]}}").unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["user"], user);
    }
    drop(input);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_reader_that_has_gone_is_no_error() {
    let mut child = recommend(&[]);
    drop(child.stdout.take());
    let mut input = child.stdin.take().unwrap();
    input.write_all(HISTORIES.as_bytes()).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(text(&output.stderr), "");
}
