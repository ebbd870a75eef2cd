//! Lengths and factors that a launch carries in its parameters: known when it is recorded, or held by the device.
//!
//! A search decides on the device how many tree nodes there are; the passes that train on them are recorded before. Such
//! a launch is recorded with an upper bound, by which its grid is sized, and the device puts the true value into the
//! parameter before it runs ([`Pushed::size`](super::stream::Pushed::size)).

use super::Slice;
use std::ops::Mul;

/// A u32 word on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    pub buffer: u32,
    pub offset: u32,
}

impl Word {
    /// The word at `index` of `slice`.
    pub fn at(slice: Slice, index: usize) -> Word {
        assert!(index < slice.len as usize && !slice.half);
        Word {
            buffer: slice.buffer,
            offset: slice.offset + index as u32,
        }
    }
}

/// A length: `max` if nothing else is said, else `ceil(times * clamp(word - from, 0, limit) / per)`, at most `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub max: usize,
    held: Option<Held>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    word: Word,
    from: u32,
    limit: u32,
    times: u32,
    per: u32,
}

impl From<usize> for Size {
    fn from(max: usize) -> Size {
        Size::known(max)
    }
}

impl Mul<usize> for Size {
    type Output = Size;

    fn mul(self, times: usize) -> Size {
        Size {
            max: self.max * times,
            held: self.held.map(|held| Held {
                times: held.times * times as u32,
                ..held
            }),
        }
    }
}

impl Size {
    /// A length that needs no word.
    pub const fn known(max: usize) -> Size {
        Size { max, held: None }
    }

    /// What `word` holds when the launch runs, at most `max`.
    pub fn held(word: Word, max: usize) -> Size {
        let (from, limit, times, per) = (0, max as u32, 1, 1);
        Size {
            max,
            held: Some(Held {
                word,
                from,
                limit,
                times,
                per,
            }),
        }
    }

    /// How many groups of `per` cover it.
    pub fn groups(self, per: usize) -> Size {
        Size {
            max: self.max.div_ceil(per),
            held: self.held.map(|held| Held {
                per: held.per * per as u32,
                ..held
            }),
        }
    }

    /// How many of the `len` elements from `from` on there are. Not for products.
    pub fn part(self, from: usize, len: usize) -> Size {
        let max = len.min(self.max.saturating_sub(from));
        Size {
            max,
            held: self.held.map(|held| {
                assert_eq!(held.times, 1, "a part of a product");
                Held {
                    from: held.from + from as u32,
                    limit: max as u32,
                    ..held
                }
            }),
        }
    }

    pub(super) fn patch(self) -> Option<Patch> {
        self.held.map(|held| Patch {
            word: held.word,
            value: Value::Length {
                from: held.from,
                limit: held.limit,
                times: held.times,
                per: held.per,
            },
        })
    }
}

/// A parameter that the device fills in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Patch {
    pub word: Word,
    pub value: Value,
}

/// What becomes of the word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// `ceil(times * clamp(word - from, 0, limit) / per)`.
    Length {
        from: u32,
        limit: u32,
        times: u32,
        per: u32,
    },
    /// The bits of `scale / max(word, 1)`.
    Share { scale: u32 },
}

impl Patch {
    /// The parameter's word when the device's word is `word`. `shaders/resolve.wgsl` computes the same.
    pub fn apply(self, word: u32) -> u32 {
        match self.value {
            Value::Length {
                from,
                limit,
                times,
                per,
            } => (times * word.saturating_sub(from).min(limit)).div_ceil(per),
            Value::Share { scale } => (f32::from_bits(scale) / word.max(1) as f32).to_bits(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_products() {
        let word = Word {
            buffer: 0,
            offset: 3,
        };
        let size = Size::held(word, 100);
        let value = |s: Size, word| s.patch().unwrap().apply(word);
        assert_eq!(value(size, 70), 70);
        assert_eq!(value(size, 170), 100, "the bound holds");
        let rest = size.part(64, 64);
        assert_eq!((rest.max, value(rest, 70), value(rest, 20)), (36, 6, 0));
        let wide = rest * 8;
        assert_eq!((wide.max, value(wide, 70)), (288, 48));
        assert_eq!(
            (value(wide.groups(5), 70), value(wide.groups(64), 20)),
            (10, 0)
        );
        assert_eq!(Size::from(5).patch(), None);
        assert_eq!((Size::from(5).part(2, 9) * 2).max, 6);
    }
}
