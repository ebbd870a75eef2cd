//! Semantic IDs: what is to be said of them.

pub mod report;
