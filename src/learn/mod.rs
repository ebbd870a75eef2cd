//! Training: fine-tuning, reinforcement learning, and what they share.

pub mod ablation;
pub mod comparison;
pub mod context;
pub mod engine;
pub mod head;
pub mod item_model;
pub mod job;
pub mod judge;
pub mod mixing;
pub mod oracle;
pub mod plan;
pub mod policy;
pub mod probe;
pub mod questions;
pub mod rl;
pub mod rollout;
pub mod schedule;
pub mod sequences;
pub mod sft;
pub mod teacher;
pub mod tensors;
pub mod trained_on;
