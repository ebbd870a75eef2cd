//! How fast, and how fast it could be: operations and bytes of steps and launches, their times, and the ceilings of the
//! device they run on. `vstar bench` and `cargo bench` are two ways in; `docs/performance.md` says how to read it.

pub mod ceilings;
pub mod compare;
pub mod decode;
pub mod formula;
pub mod kernels;
pub mod report;
pub mod scaling;
mod singles;
pub mod steps;
pub mod stopwatch;
pub mod workload;
