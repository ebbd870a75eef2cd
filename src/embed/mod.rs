//! Item embeddings.

mod matrix;
pub mod neighbours;
mod ppmi;
mod svd;
mod tfidf;
