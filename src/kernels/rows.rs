//! How kernels see a forest (spec 3): one [`Row`] per token, and a parent per slot of the key/value cache.

use bytemuck::{Pod, Zeroable};

/// No slot, no chain, no parent.
pub const NONE: u32 = u32::MAX;

/// One token of a forest; `shaders/shared/rows.wgsl` names the same words.
///
/// The token attends to the slots `kv_begin .. kv_end` (its prompt; for a causal prompt token up to and including
/// itself) and, unless `chain` is [`NONE`], to the slots `chain`, `parent[chain]`, ... (a tree node: itself and its
/// ancestors). In training forwards `slot` is the row's own index, and exactly the rows `q_begin .. q_end` attend to it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Row {
    pub token: u32,
    pub position: u32,
    pub kv_begin: u32,
    pub kv_end: u32,
    /// Where the token's own key and value go; [`NONE`]: nowhere.
    pub slot: u32,
    pub chain: u32,
    pub q_begin: u32,
    pub q_end: u32,
}

impl Row {
    pub const WORDS: usize = 8;

    /// A row that attends to nothing and that nothing attends to.
    pub const INACTIVE: Row = Row {
        token: 0,
        position: 0,
        kv_begin: 0,
        kv_end: 0,
        slot: NONE,
        chain: NONE,
        q_begin: 0,
        q_end: 0,
    };
}

/// The first `tokens` records of a `rows` buffer.
pub fn records(rows: &[u32], tokens: usize) -> &[Row] {
    bytemuck::cast_slice(&rows[..tokens * Row::WORDS])
}

/// Shape of the attention of `tokens` rows: query heads, key/value heads (each shared by `heads / kv_heads` query
/// heads), and the width of one head.
#[derive(Clone, Copy, Debug)]
pub struct Dims {
    pub tokens: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl Dims {
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
