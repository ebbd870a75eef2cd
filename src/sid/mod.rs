//! Semantic IDs: what is to be said of them.

pub mod picture;
pub mod prefixes;
pub mod report;
