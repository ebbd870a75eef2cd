//! Importers and protocols against small fixtures.

#[path = "support/fixture.rs"]
mod fixture;

use fixture::{Copy, jsonl_time_split, protocol};
use std::fs;
use vstar::catalog::Catalog;
use vstar::data::stats::Stats;
use vstar::data::{Example, LoadOptions, Log, Protocol, Source, jsonl, load, load_corpus, read};

fn example(user: u32, history: &[u32], target: u32) -> Example {
    Example {
        user,
        history: history.into(),
        target,
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
