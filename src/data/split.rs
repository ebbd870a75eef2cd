//! The protocols (spec 7): from what an importer found to training sequences and examples.

use anyhow::{Result, bail, ensure};

use super::{Corpus, Example, LoadOptions, Log, Protocol, Sequence, Source};

/// Applies the protocol: the one asked for, else the one the files were made for.
pub(super) fn corpus(source: Source, options: LoadOptions) -> Result<Corpus> {
    let Source {
        name,
        items,
        users,
        log,
        mut warnings,
    } = source;
    let (protocol, split) = match (log, options.protocol) {
        (Log::Sequences(sequences), None | Some(Protocol::LeaveOneOut)) => (
            Protocol::LeaveOneOut,
            leave_one_out(sequences, &mut warnings),
        ),
        (Log::Sequences(_), Some(Protocol::TimeSplit)) => bail!(
            "these files hold whole sequences and no time-split rows: use the leave-one-out protocol"
        ),
        (Log::Rows { train, whole, .. }, Some(Protocol::LeaveOneOut)) => {
            if !whole {
                bail!("these files hold a ready-made time split: use the time-split protocol");
            }
            warnings.push(
                "leave-one-out was asked for: the rows of the time split are not used".into(),
            );
            (Protocol::LeaveOneOut, leave_one_out(train, &mut warnings))
        }
        (
            Log::Rows {
                train, valid, test, ..
            },
            None | Some(Protocol::TimeSplit),
        ) => {
            let train = (train.into_iter().map(|sequence| sequence.items))
                .filter(|items| !items.is_empty())
                .collect();
            (Protocol::TimeSplit, Split { train, valid, test })
        }
    };
    let max_history = options.max_history.unwrap_or(protocol.max_history());
    let Split {
        train,
        mut valid,
        mut test,
    } = split;
    for (part, examples) in [("validation", &mut valid), ("test", &mut test)] {
        ensure!(
            !examples.is_empty(),
            "no {part} examples under {protocol}: every history is too short"
        );
        for example in examples {
            let excess = example.history.len().saturating_sub(max_history);
            example.history.drain(..excess);
        }
    }
    ensure!(
        !train.is_empty(),
        "nothing to train on under {protocol}: every sequence is empty"
    );
    Ok(Corpus {
        name,
        items,
        protocol,
        users,
        train,
        valid,
        test,
        max_history,
        beam: protocol.beam(),
        warnings,
    })
}

struct Split {
    train: Vec<Vec<u32>>,
    valid: Vec<Example>,
    test: Vec<Example>,
}

/// Last item test, the one before validation, the rest train. A user with fewer than three items has no history
/// left for validation: all such items train, and the users are counted in a warning.
fn leave_one_out(sequences: Vec<Sequence>, warnings: &mut Vec<String>) -> Split {
    let mut split = Split {
        train: Vec::with_capacity(sequences.len()),
        valid: Vec::with_capacity(sequences.len()),
        test: Vec::with_capacity(sequences.len()),
    };
    let (mut short, mut empty) = (0, 0);
    for sequence in sequences {
        let Sequence {
            user,
            items: mut sequence,
            ..
        } = sequence;
        match sequence[..] {
            [] => empty += 1,
            [_] | [_, _] => {
                short += 1;
                split.train.push(sequence);
            }
            [.., before, last] => {
                let example = |length: usize, target| Example {
                    user,
                    history: sequence[..length].to_vec(),
                    target,
                };
                split.valid.push(example(sequence.len() - 2, before));
                split.test.push(example(sequence.len() - 1, last));
                sequence.truncate(sequence.len() - 2);
                split.train.push(sequence);
            }
        }
    }
    if short > 0 {
        warnings.push(format!(
            "{short} users have fewer than 3 items: they train, but are not evaluated"
        ));
    }
    if empty > 0 {
        warnings.push(format!("{empty} users have no items: left out"));
    }
    split
}
