//! Item embeddings.

mod matrix;
mod svd;
