//! What the files of a dataset hold, before a protocol cuts it.

use super::Example;
use crate::catalog::Items;

/// Items and interactions as the files hold them; [`super::jsonl::write`] writes it.
#[derive(Clone, Debug)]
pub struct Source {
    pub name: String,
    /// Checked ([`Items::check`]); with codes for all items, or for none.
    pub items: Items,
    /// External user ids.
    pub users: Vec<String>,
    pub log: Log,
    /// What a person should know before trusting the numbers, one line each.
    pub warnings: Vec<String>,
}

/// The interactions of a user, oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Index into [`Source::users`].
    pub user: u32,
    pub items: Vec<u32>,
    /// Unix seconds of each interaction, not decreasing; empty where they are not known.
    pub times: Vec<i64>,
}

impl Sequence {
    /// A sequence without times.
    pub fn untimed(user: u32, items: Vec<u32>) -> Sequence {
        Sequence {
            user,
            items,
            times: Vec::new(),
        }
    }
}

/// The interactions, whole or already split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Log {
    /// One whole sequence per user, some perhaps empty.
    Sequences(Vec<Sequence>),
    /// A split the files have made themselves.
    Rows {
        /// What comes before the rows; any number of sequences per user.
        train: Vec<Sequence>,
        valid: Vec<Example>,
        test: Vec<Example>,
        /// Whether `train` has one sequence per user at most and so can serve leave-one-out, for who asks for that
        /// instead.
        whole: bool,
    },
}
