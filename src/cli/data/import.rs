//! `vstar data import`: a dataset from raw files.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};

use crate::calendar;
use crate::data::import::{Options, Watch, Window, import};
use crate::data::{Protocol, jsonl};
use crate::run::{atomic_write, ensure_free, write_folder};

/// Makes a dataset without semantic IDs from raw files: Amazon reviews, MovieLens, or our own JSONL
///
/// Which file is what is seen from its first line; files may be gzip. Every user and item keeps --k-core interactions
/// at least, the first of each pair. OUT gets the dataset and card.md, which says what it was made from, and how.
/// docs/formats.md has the layouts and every step.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  vstar data import reviews_Beauty_5.json.gz meta_Beauty.json.gz --out data/beauty
  vstar data import ml-1m --split time --out data/ml-1m
  vstar data import Office_Products.json.gz meta_Office_Products.json.gz \\
    --from-date 2016-10-01 --until 2018-11-01 --out data/office")]
pub struct Args {
    /// Files of interactions and of item metadata, or folders of them
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Folder to make, for the dataset
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Fewest interactions of a user and of an item; 1 keeps all
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    k_core: u32,
    /// First day to keep, YYYY-MM-DD (UTC), or the first unix second
    #[arg(long, value_name = "DATE", value_parser = instant, allow_negative_numbers = true)]
    from_date: Option<i64>,
    /// First day not to keep, YYYY-MM-DD (UTC), or the first unix second
    #[arg(long, value_name = "DATE", value_parser = instant, allow_negative_numbers = true)]
    until: Option<i64>,
    /// How interactions become training, validation and test
    #[arg(long, value_enum, default_value_t)]
    split: Split,
    /// Orders interactions of the same instant
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Split {
    /// Per user: the last item is test, the one before validation
    #[default]
    LeaveOneOut,
    /// 80 / 10 / 10 % by the time of the targets
    Time,
}

/// Runs the command.
///
/// # Errors
/// Any fault in the files, or an OUT that is there already, in one line; OUT is not made then.
pub fn run(args: &Args) -> Result<()> {
    let options = Options {
        k_core: args.k_core,
        window: Window {
            from: args.from_date,
            until: args.until,
        },
        split: match args.split {
            Split::LeaveOneOut => Protocol::LeaveOneOut,
            Split::Time => Protocol::TimeSplit,
        },
        seed: args.seed,
    };
    let name = (args.out.file_name()).map_or("data".into(), |name| name.to_string_lossy());
    let mut bar = Bar::new();
    ensure_free(&args.out)?;
    let (source, card) = import(&args.paths, &options, &name, &command(), &mut bar)?;
    bar.0.finish_and_clear();
    write_folder(&args.out, |folder| {
        jsonl::write(folder, &source)?;
        atomic_write(&folder.join("card.md"), card.to_string().as_bytes())?;
        atomic_write(
            &folder.join("card.json"),
            &serde_json::to_vec_pretty(&card)?,
        )
    })?;
    writeln!(
        std::io::stdout(),
        "{}: {} users, {} items, {} interactions, {}; see card.md in it",
        args.out.display(),
        card.users,
        card.items,
        card.interactions,
        card.split.protocol
    )?;
    Ok(())
}

/// Unix seconds of `YYYY-MM-DD` or of a number of seconds.
fn instant(text: &str) -> Result<i64, String> {
    (calendar::parse(text).or_else(|| text.parse().ok()))
        .ok_or_else(|| "expected a day such as 2016-10-01, or unix seconds".into())
}

/// The command line, as a person would type it.
fn command() -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_=+./,:@%".contains(c);
    let quoted = |word: String| match !word.is_empty() && word.chars().all(plain) {
        true => word,
        false => format!("'{}'", word.replace('\'', r"'\''")),
    };
    let words = std::env::args_os().skip(1);
    let words = words.map(|word| quoted(word.to_string_lossy().into_owned()));
    std::iter::once("vstar".into())
        .chain(words)
        .collect::<Vec<String>>()
        .join(" ")
}

/// Bytes read of all, in a bar on a terminal; a line for each file when piped.
struct Bar(ProgressBar);

impl Bar {
    fn new() -> Bar {
        let style = ProgressStyle::with_template(
            "{msg} {bytes}/{total_bytes}  {bytes_per_sec}  ETA {eta} {wide_bar}",
        );
        let style = style.expect("the template is valid").progress_chars("=> ");
        Bar(ProgressBar::new(0).with_style(style))
    }
}

impl Watch for Bar {
    fn total(&mut self, bytes: u64) {
        self.0.set_length(bytes);
    }

    fn file(&mut self, name: &str) {
        match self.0.is_hidden() {
            true => eprintln!("reading {name}"),
            false => self.0.set_message(name.to_owned()),
        }
    }

    fn read(&mut self, bytes: u64) {
        self.0.inc(bytes);
    }
}
