//! Where the prompts of a batch lie on the device.

use super::Capacity;
use crate::device::{Buffer, DeviceRef, Slice};
use crate::forest::{ForestSize, Row};
use anyhow::Result;

/// Room for a batch of prompts. Batches that are decoded in one stream have a room of their own each.
pub struct PromptBuffers {
    pub(super) rows: Buffer,
    pub(super) spans: Buffer,
    pub(super) ends: Buffer,
    pub(super) end_rows: Buffer,
}

impl PromptBuffers {
    /// For batches of up to `capacity`, in `rows` rows: [`Capacity::rows`], and those of whoever goes on behind the prompts.
    pub fn new(device: &DeviceRef, capacity: Capacity, rows: usize) -> Result<PromptBuffers> {
        let prompts = capacity.prompts;
        let new = |label, words| Buffer::new(device, label, words);
        Ok(PromptBuffers {
            rows: new("prompt rows", rows * Row::WORDS)?,
            spans: new("prompt spans", 3 * prompts)?,
            ends: new("prompt ends", prompts)?,
            end_rows: new("prompt end rows", prompts * Row::WORDS)?,
        })
    }
}

/// The prompts of a decode, uploaded.
#[derive(Clone, Copy, Debug)]
pub struct Prefill {
    /// B.
    pub prompts: usize,
    /// The prompts' rows, packed from row and slot 0 on, with inactive rows up to a multiple of [`Capacity::grain`].
    pub rows: Slice,
    /// Of those rows, the inactive ones counted.
    pub size: ForestSize,
    /// The parent of each slot.
    pub parent: Slice,
    /// u32 `[B, 3]`: cache slots and document of each prompt.
    pub spans: Slice,
    /// u32 `[B]`: each prompt's last row, and `[B, ROW]`: those rows' records.
    pub ends: Slice,
    pub end_rows: Slice,
}

impl Prefill {
    /// Rows that the prompts take.
    pub fn tokens(&self) -> usize {
        self.size.rows as usize
    }

    /// As if they took so many rows, for a stream that is not run.
    pub fn taking(self, rows: usize) -> Prefill {
        let size = ForestSize {
            rows: rows as u64,
            ..self.size
        };
        Prefill { size, ..self }
    }
}
