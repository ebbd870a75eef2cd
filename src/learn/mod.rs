//! Training.

pub mod oracle;
pub mod rewards;
