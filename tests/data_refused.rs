//! Broken datasets: fixtures with one change, whose error must be one line that names the place.

#[path = "support/fixture.rs"]
mod fixture;

use fixture::{Copy, jsonl_time_split, protocol};
use vstar::data::{LoadOptions, Protocol, load};

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
    let cut_short = "cut short";
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
