//! Parts of buffers.

use super::ALIGN_WORDS;

/// Part of a buffer: `len` elements from `offset`, which are words unless they are halves of words. Plain data; the owner
/// is a [`super::Buffer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slice {
    pub buffer: u32,
    pub offset: u32,
    pub len: u32,
    /// Its elements are f16.
    pub half: bool,
}

impl Slice {
    /// The same memory as f16, two to a word.
    pub fn halves(self) -> Slice {
        assert!(!self.half);
        Slice {
            offset: 2 * self.offset,
            len: 2 * self.len,
            half: true,
            ..self
        }
    }

    /// The same memory as words; an odd last half counts as one.
    pub fn words(self) -> Slice {
        match self.half {
            false => self,
            true => Slice {
                offset: self.offset / 2,
                len: self.len.div_ceil(2),
                half: false,
                ..self
            },
        }
    }

    /// Bytes of an element.
    pub fn width(self) -> u64 {
        if self.half { 2 } else { 4 }
    }

    /// The first `len` elements of this slice.
    pub fn first(self, len: usize) -> Slice {
        assert!(len <= self.len as usize, "{len} elements of {}", self.len);
        Slice {
            len: len as u32,
            ..self
        }
    }

    /// `len` elements from element `from` (a multiple of [`ALIGN_WORDS`] words) of this slice.
    pub fn part(self, from: usize, len: usize) -> Slice {
        let aligned = ALIGN_WORDS * (1 + self.half as usize);
        assert!(from.is_multiple_of(aligned) && from + len <= self.len as usize);
        Slice {
            offset: self.offset + from as u32,
            len: len as u32,
            ..self
        }
    }

    /// Without its first `from` elements (a multiple of [`ALIGN_WORDS`] words).
    pub fn skip(self, from: usize) -> Slice {
        self.part(from, self.len as usize - from)
    }

    pub(super) fn overlaps(self, other: Slice) -> bool {
        let (a, b) = (self.words(), other.words());
        a.buffer == b.buffer && a.offset < b.offset + b.len && b.offset < a.offset + a.len
    }
}
