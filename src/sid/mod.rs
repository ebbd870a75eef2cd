//! Semantic IDs: made from embeddings of the items, and what is to be said of them.

mod balance;
pub mod build;
mod collisions;
mod kmeans;
mod mlp;
pub mod picture;
pub mod prefixes;
mod random;
pub mod report;
mod rqvae;
mod search;
