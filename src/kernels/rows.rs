//! How kernels see a forest (spec 3): one [`Row`] per token, and a parent per slot of the key/value cache.

use crate::device::Size;
pub use crate::forest::{NONE, Row};

/// The first `tokens` records of a `rows` buffer.
pub fn records(rows: &[u32], tokens: usize) -> &[Row] {
    bytemuck::cast_slice(&rows[..tokens * Row::WORDS])
}

/// Shape of the attention of `tokens` rows: query heads, key/value heads (each shared by `heads / kv_heads` query
/// heads), and the width of one head.
#[derive(Clone, Copy, Debug)]
pub struct Dims<S = usize> {
    pub tokens: S,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl From<Dims> for Dims<Size> {
    fn from(dims: Dims) -> Self {
        Dims {
            tokens: dims.tokens.into(),
            heads: dims.heads,
            kv_heads: dims.kv_heads,
            head_dim: dims.head_dim,
        }
    }
}

impl<S> Dims<S> {
    /// Width of the query part, and of an attention output.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of a row of the key/value cache: all key heads, then all value heads.
    pub fn kv_width(&self) -> usize {
        2 * self.kv_heads * self.head_dim
    }

    /// Width of a row of projected queries, keys and values.
    pub fn qkv_width(&self) -> usize {
        self.q_width() + self.kv_width()
    }
}
