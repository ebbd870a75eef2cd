//! Training: fine-tuning, reinforcement learning, and what they share.

pub mod context;
pub mod engine;
pub mod group;
//TMP pub mod job;
//TMP pub mod judge;
pub mod oracle;
//TMP pub mod policy;
pub mod probe;
pub mod rewards;
//TMP pub mod rl;
pub mod schedule;
pub mod sequences;
pub mod sft;
