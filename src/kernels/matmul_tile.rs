//! The innermost part of the matrix product's twin ([`super::matmul_cpu`]): a few rows times a few registers of columns,
//! whose sums stay in registers.

use super::lanes::{LANES, Lanes, SUM_COLUMNS, SUM_ROWS};

/// Columns of a panel.
pub const PANEL: usize = SUM_COLUMNS * LANES;

/// Some rows of op(A) times a panel.
pub struct Tile {
    /// The first element; from row to row it is `a_down` to the next, from term to term `a_across`: one of them is 1.
    pub a: *const f32,
    pub a_down: usize,
    pub a_across: usize,
    pub panel: *const f32,
    pub depth: usize,
}

/// The sums of a tile: added to C, `stride` from row to row, or written over it.
type Sums = unsafe fn(&Tile, *mut f32, usize, bool);

/// By rows less one and vectors less one.
static SUMS: [[Sums; SUM_COLUMNS]; SUM_ROWS] = {
    const fn row<const R: usize>() -> [Sums; SUM_COLUMNS] {
        [Tile::sums::<R, 1>, Tile::sums::<R, 2>, Tile::sums::<R, 3>]
    }
    let all = [
        row::<1>(),
        row::<2>(),
        row::<3>(),
        row::<4>(),
        row::<5>(),
        row::<6>(),
        row::<7>(),
        row::<8>(),
    ];
    let mut some = [all[0]; SUM_ROWS];
    let mut r = 0;
    while r < SUM_ROWS {
        some[r] = all[r];
        r += 1;
    }
    some
};

impl Tile {
    /// C at `c`, `stride` from row to row, (+)= the tile of `rows` rows and `vectors` registers a row.
    ///
    /// # Safety
    /// All of A, the panel and C is there.
    pub unsafe fn compute(
        &self,
        rows: usize,
        vectors: usize,
        c: *mut f32,
        stride: usize,
        add: bool,
    ) {
        // SAFETY: the caller's.
        unsafe { SUMS[rows - 1][vectors - 1](self, c, stride, add) }
    }

    /// The same where C ends within the last register.
    ///
    /// # Safety
    /// As [`Tile::compute`].
    pub unsafe fn compute_narrow(
        &self,
        rows: usize,
        vectors: usize,
        c: *mut f32,
        (stride, columns): (usize, usize),
        add: bool,
    ) {
        let mut sums = [[0.0f32; PANEL]; SUM_ROWS];
        // SAFETY: the caller's.
        unsafe {
            self.compute(rows, vectors, sums.as_mut_ptr().cast(), PANEL, false);
            for (row, sums) in sums[..rows].iter().enumerate() {
                let c = std::slice::from_raw_parts_mut(c.add(row * stride), columns);
                for (c, sum) in c.iter_mut().zip(sums) {
                    *c = if add { *c + sum } else { *sum };
                }
            }
        }
    }

    unsafe fn sums<const R: usize, const V: usize>(&self, c: *mut f32, stride: usize, add: bool) {
        // SAFETY: the caller's.
        unsafe {
            // The loop below then has addresses it can count in one register.
            let sums = if self.a_across == 1 {
                self.multiply::<R, V>(self.a_down, 1)
            } else {
                self.multiply::<R, V>(1, self.a_across)
            };
            for (i, row) in sums.into_iter().enumerate() {
                for (j, sum) in row.into_iter().enumerate() {
                    let c = c.add(i * stride + j * LANES);
                    let sum = if add { Lanes::load(c).plus(sum) } else { sum };
                    sum.store(c);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn multiply<const R: usize, const V: usize>(
        &self,
        a_down: usize,
        a_across: usize,
    ) -> [[Lanes; V]; R] {
        let mut sums = [[Lanes::splat(0.0); V]; R];
        for l in 0..self.depth {
            // SAFETY: the caller's.
            unsafe {
                let (a, b) = (self.a.add(l * a_across), self.panel.add(l * V * LANES));
                let b: [Lanes; V] = std::array::from_fn(|j| Lanes::load(b.add(j * LANES)));
                for (i, row) in sums.iter_mut().enumerate() {
                    let a = Lanes::splat(*a.add(i * a_down));
                    for (sum, b) in row.iter_mut().zip(b) {
                        *sum = sum.plus_product(a, b);
                    }
                }
            }
        }
        sums
    }
}
