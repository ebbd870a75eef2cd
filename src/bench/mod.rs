//! How fast, and how fast it could be: operations and bytes of steps and launches, and their times.

pub mod formula;
pub mod workload;
