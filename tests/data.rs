//! Importers and protocols against small fixtures, whole and broken. A broken dataset is a fixture with one change;
//! its error must be one line that names the place.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use vstar::catalog::Catalog;
use vstar::data::stats::Stats;
use vstar::data::{
    Dataset, Example, LoadOptions, Log, Protocol, Source, jsonl, load, load_corpus, read,
};

/// A copy of a fixture that a test may change.
struct Copy(TempDir);

impl Copy {
    fn of(fixture: &str) -> Copy {
        let copy = Copy(tempfile::tempdir().unwrap());
        copy.add(fixture)
    }

    /// Puts the files of another fixture beside those already there.
    fn add(self, fixture: &str) -> Copy {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data");
        for file in fs::read_dir(from.join(fixture)).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), self.path(file.file_name().to_str().unwrap())).unwrap();
        }
        self
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    fn write(self, file: &str, text: &str) -> Copy {
        fs::write(self.path(file), text).unwrap();
        self
    }

    fn remove(self, file: &str) -> Copy {
        fs::remove_file(self.path(file)).unwrap();
        self
    }

    /// Replaces the one occurrence of `from` in a file.
    fn edit(self, file: &str, from: &str, to: &str) -> Copy {
        let text = fs::read_to_string(self.path(file)).unwrap();
        assert_eq!(text.matches(from).count(), 1, "{from:?} in {file}");
        self.write(file, &text.replace(from, to))
    }

    /// Cuts a file before the one occurrence of `from`.
    fn cut(self, file: &str, from: &str) -> Copy {
        let text = fs::read_to_string(self.path(file)).unwrap();
        assert_eq!(text.matches(from).count(), 1, "{from:?} in {file}");
        self.write(file, text.split(from).next().unwrap())
    }

    fn load_with(&self, options: LoadOptions) -> anyhow::Result<Dataset> {
        load(Some(self.0.path()), options)
    }

    fn load(&self) -> Dataset {
        self.load_with(LoadOptions::default()).unwrap()
    }

    /// The dataset is refused, in one line that holds every part of `wanted`.
    #[track_caller]
    fn refused(&self, wanted: &[&str]) {
        self.refused_with(LoadOptions::default(), wanted);
    }

    #[track_caller]
    fn refused_with(&self, options: LoadOptions, wanted: &[&str]) {
        let error = self
            .load_with(options)
            .expect_err("a broken dataset was accepted");
        let text = format!("{error:#}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(
            text.starts_with(self.0.path().to_str().unwrap()),
            "names no file: {text}"
        );
        for part in wanted {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
    }
}

fn example(user: u32, history: &[u32], target: u32) -> Example {
    Example {
        user,
        history: history.into(),
        target,
    }
}

fn protocol(protocol: Protocol) -> LoadOptions {
    LoadOptions {
        protocol: Some(protocol),
        ..LoadOptions::default()
    }
}

#[test]
fn letter_is_split_leave_one_out() {
    let data = Copy::of("letter").load();
    assert_eq!(data.protocol, Protocol::LeaveOneOut);
    assert_eq!((data.max_history, data.beam), (20, 20));
    assert_eq!(data.users, ["ann", "bob", "cid", "dot"]);
    assert_eq!(data.train, [vec![0, 1, 2], vec![2], vec![4, 3]]);
    assert_eq!(data.valid, [example(0, &[0, 1, 2], 3), example(1, &[2], 0)]);
    assert_eq!(
        data.test,
        [example(0, &[0, 1, 2, 3], 4), example(1, &[2, 0], 1)]
    );
    assert_eq!(data.item_counts(), [1, 1, 2, 1, 1]);
    assert_eq!(data.catalog.codebooks(), [3, 4]);
    assert_eq!(data.catalog.item_sid(0), data.catalog.item_sid(3));
    assert_eq!(data.catalog.item_of_name("4"), Some(4));
    assert_eq!(data.warnings.len(), 2, "{:?}", data.warnings);
    assert!(data.warnings[0].starts_with("1 users have fewer than 3 items"));
    assert!(data.warnings[1].starts_with("1 users have no items"));
}

#[test]
fn histories_keep_their_newest_items() {
    let options = LoadOptions {
        max_history: Some(2),
        ..LoadOptions::default()
    };
    let data = Copy::of("letter").load_with(options).unwrap();
    assert_eq!(data.test[0], example(0, &[2, 3], 4));
    assert_eq!(data.train[0], [0, 1, 2], "training sequences stay whole");
    let none = LoadOptions {
        max_history: Some(0),
        ..options
    };
    let error = Copy::of("letter").load_with(none).unwrap_err().to_string();
    assert!(error.contains("0 items"), "{error}");
}

#[test]
fn minionerec_rows_are_taken_as_they_are() {
    let data = Copy::of("minionerec").load();
    assert_eq!(data.protocol, Protocol::TimeSplit);
    assert_eq!((data.max_history, data.beam), (10, 50));
    assert_eq!(data.users, ["ann", "bob"]);
    assert_eq!(data.valid, [example(0, &[0, 1], 2), example(0, &[1, 2], 3)]);
    assert_eq!(data.test, [example(0, &[2, 3], 0), example(1, &[3], 1)]);
    let titles = [0, 1, 2, 3].map(|item| data.catalog.title(item).unwrap());
    assert_eq!(titles, ["Binder", "Pen, \"blue\"", "Lamp", "Tape\twide"]);
}

#[test]
fn without_train_csv_only_the_first_histories_train() {
    let data = Copy::of("minionerec").load();
    assert_eq!(data.train, [vec![0, 1], vec![3]]);
    assert_eq!(data.warnings.len(), 1);
    assert!(
        data.warnings[0].starts_with("no train.csv"),
        "{:?}",
        data.warnings
    );

    // Rows in the wrong order: nothing that is a target of the user may train.
    let valid = fs::read_to_string(Copy::of("minionerec").path("Toy.valid.csv")).unwrap();
    let rows: Vec<&str> = valid.lines().collect();
    let swapped = [rows[0], rows[2], rows[1]].join("\n");
    let data = Copy::of("minionerec")
        .write("Toy.valid.csv", &swapped)
        .load();
    assert_eq!(data.train, [vec![1], vec![3]]);
    assert!(
        data.warnings[1].contains("rows of 1 users"),
        "{:?}",
        data.warnings
    );
}

#[test]
fn train_csv_trains_each_interaction_once() {
    let data = Copy::of("minionerec")
        .write(
            "Toy.train.csv",
            "user_id,history_item_id,item_id,history_item_sid,item_sid\n\
             cat,[13],12,['<a_1><b_0><c_2>'],<a_1><b_0><c_1>\n\
             ann,[10],11,['<a_0><b_1><c_1>'],<a_0><b_2><c_0>\n\
             cat,\"[13, 12]\",10,\"['<a_1><b_0><c_2>', '<a_1><b_0><c_1>']\",<a_0><b_1><c_1>\n",
        )
        .load();
    assert_eq!(data.train, [vec![3, 2, 0], vec![0, 1]]);
    assert_eq!(data.users, ["ann", "bob", "cat"]);
    assert!(data.warnings.is_empty());
}

#[test]
fn jsonl_is_whole_sequences_with_worth_and_embeddings() {
    let data = Copy::of("jsonl").load();
    assert_eq!(data.protocol, Protocol::LeaveOneOut);
    assert_eq!(data.users, ["ann", "2"]);
    assert_eq!(
        data.test,
        [example(0, &[0, 1, 2], 3), example(1, &[3, 2], 3)]
    );
    assert_eq!(data.catalog.worth(), [2.5, 0.5, 1.0, 1.0]);
    let embeddings = data.catalog.embeddings().unwrap();
    assert_eq!((embeddings.dim, embeddings.row(3)), (2, &[0.1, 0.9][..]));
    assert_eq!(data.catalog.title(2), None);
    assert_eq!(data.catalog.name(2), "7");
    Copy::of("jsonl").refused_with(protocol(Protocol::TimeSplit), &["leave-one-out"]);
}

fn jsonl_time_split() -> Copy {
    Copy::of("jsonl")
        .write(
            "valid.jsonl",
            "{\"user\": \"ann\", \"history\": [\"pen\"], \"target\": 7}\n",
        )
        .write(
            "test.jsonl",
            "\n{\"user\": \"eve\", \"history\": [\"ink\", 7], \"target\": \"cup\"}\n",
        )
}

#[test]
fn jsonl_rows_make_a_time_split_unless_told_otherwise() {
    let data = jsonl_time_split().load();
    assert_eq!(data.protocol, Protocol::TimeSplit);
    assert_eq!(data.users, ["ann", "2", "eve"]);
    assert_eq!(data.train, [vec![0, 1, 2, 3], vec![3, 2, 3]]);
    assert_eq!(data.valid, [example(0, &[0], 2)]);
    assert_eq!(data.test, [example(2, &[1, 2], 3)]);

    let data = jsonl_time_split()
        .load_with(protocol(Protocol::LeaveOneOut))
        .unwrap();
    assert_eq!(data.train, [vec![0, 1], vec![3]]);
    assert_eq!(data.warnings.len(), 1);
}

/// The fixture without SIDs, with texts and times.
fn without_sids() -> Copy {
    Copy::of("jsonl")
        .write(
            "items.jsonl",
            "{\"id\": \"pen\", \"text\": \"Writes.\\nBlue.\"}\n{\"id\": \"ink\"}\n{\"id\": 7}\n{\"id\": \"cup\"}\n",
        )
        .edit("interactions.jsonl", "7, \"cup\"]}\n{", "7, \"cup\"], \"times\": [5, 5, 6, 7]}\n{")
        .edit("interactions.jsonl", "7, \"cup\"]}\n", "7, \"cup\"], \"times\": [-1, 0, 0]}\n")
}

#[test]
fn items_without_sids_are_a_corpus_but_no_dataset() {
    let folder = without_sids();
    let corpus = load_corpus(Some(folder.0.path()), LoadOptions::default()).unwrap();
    assert_eq!((corpus.items.levels, corpus.items.codes.len()), (0, 0));
    assert_eq!(corpus.items.texts[0], "Writes.\nBlue.");
    assert_eq!(
        corpus.test,
        [example(0, &[0, 1, 2], 3), example(1, &[3, 2], 3)]
    );
    folder.refused(&["no semantic IDs", "`vstar sid build`"]);
    let stats = Stats::of(&corpus).unwrap();
    assert!(stats.semantic_ids.is_none() && stats.items == 4);
    assert!(
        stats
            .to_string()
            .contains("SIDs            none yet: `vstar sid build`")
    );
    let Log::Sequences(sequences) = read(folder.0.path()).unwrap().log else {
        panic!("no time split");
    };
    assert_eq!(sequences[0].times, [5, 5, 6, 7]);
    assert_eq!(sequences[1].times, [-1, 0, 0]);

    let log = |from, to| without_sids().edit("interactions.jsonl", from, to);
    log("[5, 5, 6, 7]", "[5, 5, 6]").refused(&["interactions.jsonl:1: ", "4 items but 3 times"]);
    log("[-1, 0, 0]", "[0, -1, 0]").refused(&["interactions.jsonl:2: ", "\"2\"", "decrease"]);
    log(", \"times\": [-1, 0, 0]", "").refused(&["interactions.jsonl:2: ", "has no times"]);
    without_sids()
        .edit("items.jsonl", "\"ink\"", "\"ink\", \"sid\": [1]")
        .refused(&["items.jsonl:2: ", "SID of 1 codes", "or none"]);
}

/// Everything a source holds, with users by name.
fn contents(source: &Source) -> (String, String) {
    let Source { items, users, .. } = source;
    let log = match &source.log {
        Log::Sequences(sequences) => (sequences, &vec![], &vec![]),
        Log::Rows {
            train, valid, test, ..
        } => (train, valid, test),
    };
    let user = |user: &u32| users[*user as usize].clone();
    let sequences = log.0.iter().map(|s| (user(&s.user), &s.items, &s.times));
    let examples = (log.1.iter().chain(log.2)).map(|e| (user(&e.user), &e.history, e.target));
    let rows = (sequences.collect::<Vec<_>>(), examples.collect::<Vec<_>>());
    let embeddings = items.embeddings.as_ref().map(|e| (e.dim, &e.data));
    let worth = Catalog::new(items.clone()).map_or(vec![], |catalog| catalog.worth().into());
    let titles: String = items.titles.concat() + &items.texts.concat();
    let items = (&items.names, titles, items.levels, &items.codes, embeddings);
    (format!("{items:?} {worth:?}"), format!("{rows:?}"))
}

#[test]
fn what_is_written_reads_back() {
    let office = Copy::of("minionerec");
    let described = office.edit(
        "Toy.item.json",
        "\"brand\": \"Lux\"",
        "\"brand\": \"Lux\", \"description\": [\"a\", [\"b\"]], \"categories\": \"Home\"",
    );
    assert_eq!(
        read(described.0.path()).unwrap().items.texts,
        ["[\"for paper\"]", "", "Lux\nHome\na b", ""]
    );
    for folder in [
        Copy::of("jsonl"),
        without_sids(),
        jsonl_time_split(),
        Copy::of("letter"),
        described,
    ] {
        let source = read(folder.0.path()).unwrap();
        let out = tempfile::tempdir().unwrap();
        jsonl::write(out.path(), &source).unwrap();
        let again = read(out.path()).unwrap();
        assert_eq!(contents(&again), contents(&source));
        // A change of any part is seen.
        let mut other = again.clone();
        other.items.texts[1].push('!');
        assert_ne!(contents(&other), contents(&source));
        jsonl::write(out.path(), &other).unwrap();
        assert_eq!(contents(&read(out.path()).unwrap()), contents(&other));
    }
}

#[test]
fn embeddings_may_stand_in_a_file_of_their_own() {
    let folder = Copy::of("jsonl");
    let source = read(folder.0.path()).unwrap();
    let out = Copy(tempfile::tempdir().unwrap());
    jsonl::write(out.0.path(), &source).unwrap();
    let embeddings = out.load().catalog.embeddings().unwrap().clone();
    assert_eq!((embeddings.dim, embeddings.row(3)), (2, &[0.1, 0.9][..]));

    fs::copy(
        out.path("embeddings.safetensors"),
        folder.path("embeddings.safetensors"),
    )
    .unwrap();
    folder.refused(&["embeddings.safetensors: ", "items.jsonl has embeddings too"]);
    let items = fs::read_to_string(out.path("items.jsonl")).unwrap();
    let fewer = items.split_inclusive('\n').skip(1).collect::<String>();
    let out = out.write("items.jsonl", &fewer);
    out.refused(&["embeddings.safetensors: ", "[4, 2]", "[3, dim]"]);
    out.write("embeddings.safetensors", "not one")
        .refused(&["embeddings.safetensors: not a safetensors file"]);
}

#[test]
fn folders_without_one_dataset_are_refused() {
    let empty = Copy(tempfile::tempdir().unwrap());
    empty.refused(&["inter.json", "info.txt", "items.jsonl"]);
    let error = load(Some(&empty.path("nowhere")), LoadOptions::default()).unwrap_err();
    assert!(
        error.to_string().contains("nowhere: cannot read"),
        "{error}"
    );
    Copy::of("letter")
        .add("jsonl")
        .refused(&["Toy.inter.json", "items.jsonl"]);
    Copy::of("letter")
        .write("More.inter.json", "{}")
        .refused(&["More.inter.json and Toy.inter.json"]);
    for (fixture, file) in [
        ("letter", "Toy.index.json"),
        ("minionerec", "Toy.index.json"),
        ("minionerec", "Toy.valid.csv"),
        ("minionerec", "Toy.test.csv"),
        ("jsonl", "interactions.jsonl"),
    ] {
        let kind = file.trim_start_matches("Toy.");
        Copy::of(fixture)
            .remove(file)
            .refused(&[&format!("no {kind}")]);
    }
    jsonl_time_split()
        .remove("valid.jsonl")
        .refused(&["test.jsonl: stands alone"]);
}

#[test]
fn empty_files_are_refused() {
    for (fixture, file) in [
        ("letter", "Toy.index.json"),
        ("letter", "Toy.inter.json"),
        ("minionerec", "Toy.info.txt"),
        ("minionerec", "Toy.index.json"),
        ("minionerec", "Toy.item.json"),
        ("minionerec", "Toy.valid.csv"),
        ("minionerec", "Toy.test.csv"),
        ("jsonl", "items.jsonl"),
        ("jsonl", "interactions.jsonl"),
    ] {
        Copy::of(fixture).write(file, "").refused(&[file]);
    }
    Copy::of("letter")
        .write("Toy.index.json", "{}")
        .refused(&["Toy.index.json: holds no entries"]);
    let header = "user_id,history_item_id,item_id,history_item_sid,item_sid\n";
    Copy::of("minionerec")
        .write("Toy.test.csv", header)
        .refused(&["Toy.test.csv: holds no rows"]);
}

#[test]
fn truncated_files_are_refused_where_they_end() {
    let cut_short = "the file is cut short";
    Copy::of("letter")
        .cut("Toy.index.json", "\"3\":")
        .refused(&["Toy.index.json:5: ", cut_short]);
    Copy::of("letter")
        .cut("Toy.inter.json", "3, 4]")
        .refused(&["Toy.inter.json:2: ", cut_short]);
    Copy::of("minionerec")
        .cut("Toy.item.json", "Lux")
        .refused(&["Toy.item.json:4: ", cut_short]);
    Copy::of("minionerec")
        .cut("Toy.info.txt", "\t12")
        .refused(&["Toy.info.txt:3: ", "with tabs"]);
    Copy::of("minionerec")
        .cut("Toy.info.txt", "<a_1><b_0><c_2>")
        .refused(&["Toy.info.txt: item \"13\""]);
    Copy::of("minionerec")
        .cut("Toy.test.csv", "[13]")
        .refused(&["Toy.test.csv:3: ", cut_short]);
    Copy::of("minionerec")
        .cut("Toy.test.csv", "13]\"")
        .refused(&["Toy.test.csv:2: ", cut_short]);
    Copy::of("jsonl")
        .cut("items.jsonl", "0.1]")
        .refused(&["items.jsonl:2: ", cut_short]);
    Copy::of("jsonl")
        .cut("interactions.jsonl", "7, \"cup\"]}\n{")
        .refused(&["interactions.jsonl:1: ", cut_short]);
}

#[test]
fn malformed_letter_files_are_refused() {
    let index = |from, to| Copy::of("letter").edit("Toy.index.json", from, to);
    index("\"<b_3>\"", "\"<b_x>\"").refused(&[
        "Toy.index.json:6: ",
        "\"4\"",
        "<b_x>",
        "N a number",
    ]);
    index("\"<b_3>\"", "\"<b_-3>\"").refused(&["Toy.index.json:6: "]);
    index("\"<b_3>\"", "\"<b_99999999999>\"").refused(&["Toy.index.json:6: "]);
    index("\"<b_3>\"", "\"<c_3>\"").refused(&["Toy.index.json:6: ", "<b_N>"]);
    index("\"<b_3>\"", "\"<b_3000000000>\"").refused(&["Toy.index.json: ", "mistyped code"]);
    index(", \"<b_3>\"", "").refused(&["Toy.index.json:6: ", "1 tokens", "equally long"]);
    index("\"4\":", "\"0\":").refused(&["Toy.index.json:6: ", "\"0\" is there twice"]);
    index("[\"<a_1>\", \"<b_3>\"]", "\"x\"").refused(&["Toy.index.json:6: ", "invalid type"]);
    let log = |from, to| Copy::of("letter").edit("Toy.inter.json", from, to);
    log("[4, 3]", "[4, 9]").refused(&[
        "Toy.inter.json:4: ",
        "\"cid\"",
        "\"9\" is not in Toy.index.json",
    ]);
    log("\"cid\"", "\"ann\"").refused(&["Toy.inter.json:4: ", "\"ann\" is there twice"]);
    log("[4, 3]", "[4, 3.5]").refused(&["Toy.inter.json:4: ", "expected an id"]);
    log("[]\n}", "[]\n}, {}").refused(&["Toy.inter.json:6: ", "trailing"]);
    Copy::of("letter")
        .write("Toy.inter.json", "{\"u\": [1, 2]}")
        .refused(&["every history is too short"]);
    Copy::of("letter").refused_with(
        protocol(Protocol::TimeSplit),
        &["use the leave-one-out protocol"],
    );
}

#[test]
fn malformed_minionerec_files_are_refused() {
    let info = |from, to| Copy::of("minionerec").edit("Toy.info.txt", from, to);
    info("\t11\n", "\t99\n").refused(&["Toy.info.txt:1: ", "\"99\" is not in Toy.index.json"]);
    info("\t11\n", "\t10\n").refused(&["Toy.info.txt:1: ", "another SID"]);
    info("<a_0><b_2><c_0>", "<a_0><b_2>").refused(&["Toy.info.txt:1: ", "another SID"]);
    info("<a_0><b_2><c_0>", "a0b2c0").refused(&["Toy.info.txt:1: ", "<a_N>"]);
    info(
        "<a_0><b_1><c_1>\tBinder\t10\n",
        "<a_0><b_2><c_0>\tPen\t11\n",
    )
    .refused(&["Toy.info.txt:2: ", "\"11\" is there twice"]);
    let item = |from, to| Copy::of("minionerec").edit("Toy.item.json", from, to);
    item("\"13\":", "\"14\":").refused(&["Toy.item.json:5: ", "\"14\" has no SID"]);
    item(",\n  \"13\": {\"title\": \"Tape\"}", "").refused(&[
        "Toy.item.json: ",
        "\"13\"",
        "missing",
    ]);

    let test = |from, to| Copy::of("minionerec").edit("Toy.test.csv", from, to);
    test("user_id,", "user,").refused(&["Toy.test.csv:1: ", "no column \"user_id\""]);
    test("history_item_sid,", "history_sid,")
        .refused(&["Toy.test.csv:1: ", "\"history_item_sid\""]);
    test("[13]", "[99]").refused(&["Toy.test.csv:3: ", "\"99\" is not in Toy.index.json"]);
    test("[13]", "[12]").refused(&[
        "Toy.test.csv:3: ",
        "\"12\" has SID <a_1><b_0><c_2>, another",
    ]);
    test("[13]", "13").refused(&["Toy.test.csv:3: ", "history_item_id", "not a Python list"]);
    test("[13]", "[]").refused(&["Toy.test.csv:3: ", "0 items but 1 SIDs"]);
    test("[13],11,['<a_1><b_0><c_2>']", "[],11,[]")
        .refused(&["Toy.test.csv:3: ", "history is empty"]);
    test(",11,", ",12,").refused(&["Toy.test.csv:3: ", "\"12\" has SID"]);
    test("bob,", "").refused(&["Toy.test.csv:3: ", "6 fields where the header has 7"]);
    Copy::of("minionerec").refused_with(
        protocol(Protocol::LeaveOneOut),
        &["use the time-split protocol"],
    );
}

#[test]
fn malformed_jsonl_files_are_refused() {
    let items = |from, to| Copy::of("jsonl").edit("items.jsonl", from, to);
    items("[0, 0]", "[0, \"x\"]").refused(&["items.jsonl:2: ", "invalid type"]);
    items("[0, 0]", "[0, -1]").refused(&["items.jsonl:2: ", "invalid value"]);
    items("[0, 0]", "[0]").refused(&["items.jsonl:2: ", "SID of 1 codes"]);
    items("\"ink\"", "\"pen\"").refused(&["items.jsonl:2: ", "\"pen\" is there twice"]);
    items("[0.9, 0.1]", "[0.9]").refused(&["items.jsonl:2: ", "embedding of 1 numbers"]);
    // Too large for an f32: the parser says so in its own words.
    items("[0.9, 0.1]", "[1e99, 0]").refused(&["items.jsonl:2: "]);
    items("0.5", "-0.5").refused(&["items.jsonl: ", "\"ink\" has worth -0.5"]);
    items("\"worth\": 0.5", "\"price\": 0.5")
        .refused(&["items.jsonl:2: ", "unknown field `price`"]);
    items("\"sid\": [0, 0], ", "").refused(&["items.jsonl:2: ", "SID of 0 codes", "or none"]);
    let log = |from, to| Copy::of("jsonl").edit("interactions.jsonl", from, to);
    log("\"ink\"", "\"oil\"").refused(&["interactions.jsonl:1: ", "\"oil\" is not in items.jsonl"]);
    log("2", "\"ann\"").refused(&["interactions.jsonl:2: ", "\"ann\" is there twice"]);
    log("[\"pen\", \"ink\", 7, \"cup\"]", "null").refused(&["interactions.jsonl:1: ", "null"]);
    jsonl_time_split()
        .edit("valid.jsonl", "[\"pen\"]", "[]")
        .refused(&["valid.jsonl:1: ", "empty history"]);
    jsonl_time_split()
        .edit("test.jsonl", "\"cup\"", "\"jar\"")
        .refused(&["test.jsonl:2: ", "\"jar\""]);
}

#[test]
fn files_of_two_datasets_do_not_mix() {
    let other = "{\"0\": [\"<a_0>\", \"<b_1>\"], \"77\": [\"<a_1>\", \"<b_1>\"]}";
    Copy::of("letter")
        .write("Toy.index.json", other)
        .refused(&["Toy.inter.json:2: ", "\"1\" is not in"]);
    Copy::of("minionerec")
        .write("Toy.index.json", other)
        .refused(&["Toy.info.txt:1: ", "\"11\" is not in"]);
}

#[test]
fn the_shop_is_the_dataset_without_a_folder() {
    let data = load(None, LoadOptions::default()).unwrap();
    assert_eq!(
        (data.protocol, data.max_history, data.beam),
        (Protocol::LeaveOneOut, 10, 20)
    );
    assert_eq!(
        (data.users.len(), data.valid.len(), data.test.len()),
        (5_000, 5_000, 5_000)
    );
    assert!(
        data.test
            .iter()
            .all(|e| (5..=10).contains(&e.history.len()))
    );
    assert!(data.warnings.is_empty());
}

#[test]
fn statistics_of_a_small_dataset() {
    let folder = Copy::of("letter");
    let corpus = load_corpus(Some(folder.0.path()), LoadOptions::default()).unwrap();
    let stats = Stats::of(&corpus).unwrap();
    let sids = stats.semantic_ids.as_ref().unwrap();
    assert_eq!(
        (stats.users, stats.items, sids.sids, sids.vocabulary),
        (4, 5, 4, 9)
    );
    assert_eq!(
        (stats.interactions.train, stats.valid, stats.test),
        (6, 2, 2)
    );
    assert_eq!((sids.collisions.sids, sids.collisions.items), (1, 2));
    assert_eq!(
        (
            stats.train_lengths.min,
            stats.train_lengths.median,
            stats.train_lengths.max
        ),
        (1, 2, 3)
    );
    assert_eq!(stats.popularity.untrained_items, 0);
    assert_eq!(sids.trie_nodes, 8);
    let text = stats.to_string();
    for line in [
        "users           4\n",
        "  depth 1             3 nodes, children mean 1.33, max 2; singletons 66.7 %\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
    let json = serde_json::to_value(&stats).unwrap();
    assert_eq!(json["protocol"], "leave-one-out");
    assert_eq!(json["trie"][0]["max_children"], 3);
}
