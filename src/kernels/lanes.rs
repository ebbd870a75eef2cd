//! A vector register of `f32`, and how many of them a matrix product may keep its sums in.
//!
//! AVX-512 has a form of its own, because compilers prefer its registers' lower halves for plain loops; elsewhere an array
//! of a register's length becomes one.

#[cfg(all(target_arch = "x86_64", target_feature = "avx512f"))]
pub use avx512::Lanes;
#[cfg(not(all(target_arch = "x86_64", target_feature = "avx512f")))]
pub use portable::Lanes;

/// Elements of a register.
pub const LANES: usize = if cfg!(target_feature = "avx512f") {
    16
} else if cfg!(target_feature = "avx") {
    8
} else {
    4
};

/// Sums take `SUM_ROWS * SUM_COLUMNS` registers: of 32, or else of 16, what is left holds the operands.
pub const SUM_ROWS: usize = if cfg!(any(target_feature = "avx512f", target_arch = "aarch64")) {
    8
} else {
    4
};
pub const SUM_COLUMNS: usize = 3;

/// The rows of a square of registers become its columns: log2 rounds, each of which interleaves the upper half of the
/// rows with the lower.
#[inline(always)]
pub fn transpose(mut square: [Lanes; LANES]) -> [Lanes; LANES] {
    for _ in 0..LANES.ilog2() {
        let from = square;
        for i in 0..LANES / 2 {
            (square[2 * i], square[2 * i + 1]) = from[i].interleave(from[i + LANES / 2]);
        }
    }
    square
}

#[cfg(all(target_arch = "x86_64", target_feature = "avx512f"))]
mod avx512 {
    use std::arch::x86_64::*;

    #[derive(Clone, Copy)]
    pub struct Lanes(__m512);

    impl Lanes {
        #[inline(always)]
        pub fn splat(x: f32) -> Self {
            // SAFETY: the instruction exists: this is compiled for a processor that has it.
            Lanes(unsafe { _mm512_set1_ps(x) })
        }

        /// # Safety
        /// A register's length may be read.
        #[inline(always)]
        pub unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the caller's promise; the instruction exists, as in `splat`.
            Lanes(unsafe { _mm512_loadu_ps(from) })
        }

        /// # Safety
        /// A register's length may be written.
        #[inline(always)]
        pub unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller's promise; the instruction exists, as in `splat`.
            unsafe { _mm512_storeu_ps(to, self.0) }
        }

        /// `self + x y`.
        #[inline(always)]
        pub fn plus_product(self, x: Self, y: Self) -> Self {
            // SAFETY: the instruction exists, as in `splat`.
            Lanes(unsafe { _mm512_fmadd_ps(x.0, y.0, self.0) })
        }

        #[inline(always)]
        pub fn plus(self, x: Self) -> Self {
            // SAFETY: the instruction exists, as in `splat`.
            Lanes(unsafe { _mm512_add_ps(self.0, x.0) })
        }

        /// `[a0, b0, a1, b1 ..]`: first and second half.
        #[inline(always)]
        pub fn interleave(self, b: Self) -> (Self, Self) {
            // SAFETY: the instructions exist, as in `splat`.
            unsafe {
                let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
                let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
                (
                    Lanes(_mm512_permutex2var_ps(self.0, low, b.0)),
                    Lanes(_mm512_permutex2var_ps(self.0, high, b.0)),
                )
            }
        }
    }
}

#[cfg(not(all(target_arch = "x86_64", target_feature = "avx512f")))]
mod portable {
    use super::LANES;

    #[derive(Clone, Copy)]
    pub struct Lanes([f32; LANES]);

    impl Lanes {
        #[inline(always)]
        pub fn splat(x: f32) -> Self {
            Lanes([x; LANES])
        }

        /// # Safety
        /// A register's length may be read.
        #[inline(always)]
        pub unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the caller's promise.
            Lanes(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
        }

        /// # Safety
        /// A register's length may be written.
        #[inline(always)]
        pub unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller's promise.
            unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
        }

        /// `self + x y`.
        #[inline(always)]
        pub fn plus_product(mut self, x: Self, y: Self) -> Self {
            for i in 0..LANES {
                self.0[i] = x.0[i].mul_add(y.0[i], self.0[i]);
            }
            self
        }

        #[inline(always)]
        pub fn plus(mut self, x: Self) -> Self {
            for i in 0..LANES {
                self.0[i] += x.0[i];
            }
            self
        }

        /// `[a0, b0, a1, b1 ..]`: first and second half.
        #[inline(always)]
        pub fn interleave(self, b: Self) -> (Self, Self) {
            let at = |i: usize| {
                if i.is_multiple_of(2) {
                    self.0[i / 2]
                } else {
                    b.0[i / 2]
                }
            };
            (
                Lanes(std::array::from_fn(at)),
                Lanes(std::array::from_fn(|i| at(i + LANES))),
            )
        }
    }
}
