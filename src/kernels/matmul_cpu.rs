//! The matrix product's twin: sums of 8 x 48 elements of C (with AVX-512) are kept in registers, while the columns of
//! op(B) come out of a panel that fits the first cache and the rows of op(A) from where they are.
//!
//! C is cut into blocks, one a task. A block copies its columns of op(B), [`DEPTH`] rows of them at a time, into a panel
//! (transposed for `x W^T`), and runs down its rows with it. All shapes go this way, those of decoding included: copying
//! costs a fifth of the product at 64 rows. Panels lie on the stack, so that nothing is allocated.
//!
//! The order of each element's sum follows from k alone: results are the same bits on any number of threads.

use super::lanes::{LANES, Lanes, SUM_COLUMNS, SUM_ROWS, transpose};
use super::math::dot;
use super::matmul::{Dims, Form};
use crate::device::threads;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Longest sum before it is added to C, so that a panel takes 48 KiB with AVX-512.
const DEPTH: usize = 256;

/// Columns of a panel.
const PANEL: usize = SUM_COLUMNS * LANES;

/// Aligned, so that no register is loaded from two lines of the cache.
#[repr(C, align(64))]
struct Panel([[f32; PANEL]; DEPTH]);

/// Multiplications a task should have (some 50 microseconds), and the fewest worth a task.
const PER_TASK: usize = 6 << 20;
const FEWEST_PER_TASK: usize = 1 << 17;

/// Tasks per thread of a large product: enough to even out threads of unequal speed.
const TASKS_PER_THREAD: usize = 8;

/// What it costs to copy an element of op(B) to a panel, in reads of an element of op(A).
const COPYING: usize = 6;

/// `x W^T` with fewer columns is computed as dot products: of a panel's columns most would be empty.
const FEW_COLUMNS: usize = 4;

/// A matrix within a slice: element (i, j) at `i down + j across`. One of the strides is 1.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub data: &'a [f32],
    pub down: usize,
    pub across: usize,
}

impl View<'_> {
    /// The same elements with rows for columns.
    pub fn transposed(self) -> Self {
        View {
            data: self.data,
            down: self.across,
            across: self.down,
        }
    }

    fn check(&self, rows: usize, columns: usize) {
        assert!(self.down == 1 || self.across == 1);
        assert!((rows - 1) * self.down + (columns - 1) * self.across < self.data.len());
    }
}

/// One product: A is `[m, k]`, B `[k, n]`.
#[derive(Clone, Copy)]
struct Product<'a> {
    a: View<'a>,
    b: View<'a>,
    /// First element of C, and the distance of its rows.
    c: *mut f32,
    c_down: usize,
    /// Columns of C: n, or more, to which zeros are written (or added).
    c_columns: usize,
    dims: Dims,
    accumulate: bool,
}

// SAFETY: tasks write blocks of C of their own.
unsafe impl Sync for Product<'_> {}

/// `C (+)= op(A) op(B)`, on all threads; slices hold exactly the matrices.
pub fn product(form: Form, a: &[f32], b: &[f32], c: &mut [f32], dims: Dims, accumulate: bool) {
    let Dims { m, n, k } = dims;
    assert!(a.len() == m * k && b.len() == k * n && c.len() == m * n);
    if form == Form::NT && n < FEW_COLUMNS {
        return dots(a, b, c, dims, accumulate);
    }
    let view = |data, down, across| View { data, down, across };
    let product = Product {
        a: match form {
            Form::NT | Form::NN => view(a, k, 1),
            Form::TN => view(a, 1, m),
        },
        b: match form {
            Form::NT => view(b, 1, k),
            Form::NN | Form::TN => view(b, n, 1),
        },
        c: c.as_mut_ptr(),
        c_down: n,
        c_columns: n,
        dims,
        accumulate,
    };
    let [row_blocks, column_blocks] = blocks(dims, threads::count());
    let vectors = n.div_ceil(LANES);
    threads::run(row_blocks * column_blocks, |task| {
        let rows = part(m, row_blocks, task / column_blocks);
        let columns = part(vectors, column_blocks, task % column_blocks);
        // SAFETY: the slices hold the matrices (asserted), and no other task has these rows of these columns.
        unsafe { product.block(rows, columns) }
    });
}

/// `C += A B` for small matrices within larger ones, on this thread. C starts with `c` and has rows `c_down` apart; where
/// there is room between them, its columns may be more than n.
pub fn add_product(
    a: View,
    b: View,
    c: &mut [f32],
    (c_down, c_columns): (usize, usize),
    dims: Dims,
) {
    let Dims { m, n, k } = dims;
    if m * n * k == 0 {
        return;
    }
    a.check(m, k);
    b.check(k, n);
    assert!(n <= c_columns && c_columns <= c_down && (m - 1) * c_down + c_columns <= c.len());
    let product = Product {
        a,
        b,
        c: c.as_mut_ptr(),
        c_down,
        c_columns,
        dims,
        accumulate: true,
    };
    // SAFETY: the matrices are where they should be (checked), and C is borrowed.
    unsafe { product.block(0..m, 0..n.div_ceil(LANES)) }
}

/// Part `i` of `0..length` cut into `parts` as equal as can be.
fn part(length: usize, parts: usize, i: usize) -> Range<usize> {
    length * i / parts..length * (i + 1) / parts
}

/// Into how many blocks of rows and of columns C is cut: those for which the least is copied and read. Columns are
/// copied once for every block of rows, and rows read once for every block of columns, which costs less.
fn blocks(Dims { m, n, k }: Dims, threads: usize) -> [usize; 2] {
    let work = m * n * k;
    let most = (work / FEWEST_PER_TASK).max(1);
    let tasks = (work / PER_TASK).clamp(threads.min(most), TASKS_PER_THREAD * threads);
    let cuts = (1..=tasks.min(m.div_ceil(SUM_ROWS)))
        .map(|rows| [rows, tasks.div_ceil(rows).min(n.div_ceil(PANEL))]);
    cuts.min_by_key(|&[rows, columns]| {
        let missing = tasks.saturating_sub(rows * columns);
        (missing, COPYING * rows * n + columns * m)
    })
    .expect("at least one row")
}

/// `x W^T` by its definition.
fn dots(x: &[f32], w: &[f32], y: &mut [f32], Dims { n, k, .. }: Dims, accumulate: bool) {
    let parts = (threads::chunks_mut(y, n), threads::chunks(x, k));
    threads::each(parts, (1 << 16) / (n * k) + 1, |_, (y, x)| {
        for (y, w) in y.iter_mut().zip(w.chunks_exact(k)) {
            let sum = dot(x, w);
            *y = if accumulate { *y + sum } else { sum };
        }
    });
}

impl Product<'_> {
    /// The block of C at these rows and vectors of columns.
    ///
    /// # Safety
    /// The operands hold the matrices of `dims`; nothing else touches the block.
    unsafe fn block(&self, rows: Range<usize>, vectors: Range<usize>) {
        let Dims { n, k, .. } = self.dims;
        let a = self.a;
        let mut panel = MaybeUninit::<Panel>::uninit();
        let panel: *mut f32 = panel.as_mut_ptr().cast();
        let depths = k.div_ceil(DEPTH);
        let panels = vectors.len().div_ceil(SUM_COLUMNS);
        let tiles = rows.len().div_ceil(SUM_ROWS);
        for d in 0..depths {
            let depth = part(k, depths, d);
            let add = self.accumulate || d > 0;
            for p in 0..panels {
                let own = part(vectors.len(), panels, p);
                let column = (vectors.start + own.start) * LANES;
                let room = self.c_columns - column;
                // SAFETY: the caller's; ranges lie within the matrices, and a panel holds DEPTH rows of PANEL columns.
                unsafe {
                    let columns = (own.len() * LANES).min(n - column);
                    self.copy_columns(depth.clone(), column, columns, own.len(), panel);
                    for t in 0..tiles {
                        let own_rows = part(rows.len(), tiles, t);
                        let row = rows.start + own_rows.start;
                        let tile = Tile {
                            a: a.data.as_ptr().add(row * a.down + depth.start * a.across),
                            a_down: a.down,
                            a_across: a.across,
                            panel,
                            depth: depth.len(),
                        };
                        let (rows, vectors) = (own_rows.len(), own.len());
                        let c = self.c.add(row * self.c_down + column);
                        if vectors * LANES <= room {
                            tile.compute(rows, vectors, c, self.c_down, add);
                        } else {
                            tile.compute_narrow(rows, vectors, c, (self.c_down, room), add);
                        }
                    }
                }
            }
        }
    }

    /// Copies `columns` columns of B from `first` on, at rows `depth`, to the panel, whose rows have `vectors` registers;
    /// fills up the last with zeros.
    ///
    /// # Safety
    /// As [`Product::block`].
    unsafe fn copy_columns(
        &self,
        depth: Range<usize>,
        first: usize,
        columns: usize,
        vectors: usize,
        panel: *mut f32,
    ) {
        let View { data, down, across } = self.b;
        let width = vectors * LANES;
        // SAFETY: the caller's.
        unsafe {
            let from = data.as_ptr().add(depth.start * down + first * across);
            for column in (0..width).step_by(LANES) {
                let (from, to) = (from.add(column * across), panel.add(column));
                let count = columns.saturating_sub(column).min(LANES);
                let mut at = 0;
                if count == LANES && across == 1 {
                    while at < depth.len() {
                        Lanes::load(from.add(at * down)).store(to.add(at * width));
                        at += 1;
                    }
                } else if down == 1 {
                    while at + LANES <= depth.len() {
                        let square = std::array::from_fn(|i| {
                            if i < count {
                                Lanes::load(from.add(at + i * across))
                            } else {
                                Lanes::splat(0.0)
                            }
                        });
                        for (i, row) in transpose(square).into_iter().enumerate() {
                            row.store(to.add((at + i) * width));
                        }
                        at += LANES;
                    }
                }
                copy_some(from, (down, across), to, width, at..depth.len(), count);
            }
        }
    }
}

/// Copies `count` elements of each of `rows` to the registers at `to`, and zeros after them.
///
/// # Safety
/// The elements may be read, and a register's length written to each row.
unsafe fn copy_some(
    from: *const f32,
    (down, across): (usize, usize),
    to: *mut f32,
    width: usize,
    rows: Range<usize>,
    count: usize,
) {
    for row in rows {
        for i in 0..LANES {
            // SAFETY: the caller's.
            unsafe {
                let x = if i < count {
                    *from.add(row * down + i * across)
                } else {
                    0.0
                };
                *to.add(row * width + i) = x;
            }
        }
    }
}

/// Some rows of op(A) times a panel.
struct Tile {
    /// As in [`View`].
    a: *const f32,
    a_down: usize,
    a_across: usize,
    panel: *const f32,
    depth: usize,
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
    unsafe fn compute(&self, rows: usize, vectors: usize, c: *mut f32, stride: usize, add: bool) {
        // SAFETY: the caller's.
        unsafe { SUMS[rows - 1][vectors - 1](self, c, stride, add) }
    }

    /// The same where C ends within the last register.
    ///
    /// # Safety
    /// As [`Tile::compute`].
    unsafe fn compute_narrow(
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
