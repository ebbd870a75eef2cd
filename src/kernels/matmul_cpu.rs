//! The matrix product's twin: sums of 8 x 48 elements of C (with AVX-512) are kept in registers, while the columns of
//! op(B) come out of a panel that fits the first cache and the rows of op(A) from where they are.
//!
//! C is cut into blocks, one a task. A block copies its columns of op(B), [`DEPTH`] rows of them at a time, into a panel
//! (transposed for `x W^T`), and runs down its rows with it. All shapes go this way, those of decoding included: copying
//! costs a fifth of the product at 64 rows. Panels lie on the stack, so that nothing is allocated.
//!
//! The order of each element's sum follows from k alone: results are the same bits on any number of threads.

use super::lanes::{LANES, Lanes, SUM_COLUMNS, SUM_ROWS, transpose};
use super::math::{dot, exp};
use super::matmul::{Dims, Form};
use super::matmul_tile::{PANEL, Tile};
use crate::device::threads;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Longest sum before it is added to C, so that a panel takes 48 KiB with AVX-512.
const DEPTH: usize = 256;

/// Aligned, so that no register is loaded from two lines of the cache.
#[repr(C, align(64))]
struct Panel([[f32; PANEL]; DEPTH]);

/// Multiplications a task should have (some 50 microseconds), and the fewest worth a task.
const PER_TASK: usize = 6 << 20;
const FEWEST_PER_TASK: usize = 1 << 17;

/// Tasks per thread of a large product: enough to even out threads of unequal speed. With a softmax a task has all
/// columns, which share the exponentials, and so fewer rows, for which op(B) is copied: fewer tasks then.
const TASKS_PER_THREAD: usize = 8;
const SOFTMAX_TASKS_PER_THREAD: usize = 4;

/// What it costs to copy an element of op(B) to a panel, and to take an exponential, in reads of an element of op(A).
const COPYING: usize = 6;
const EXPONENTIAL: usize = 24;

/// Rows of a softmax that lie ready at a time: many, since op(B) is copied for each so many.
const STRIP_ROWS: usize = 256;

/// Some rows of a softmax, [`DEPTH`] terms of each.
#[repr(C, align(64))]
struct Strip([f32; STRIP_ROWS * DEPTH]);

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
    /// If A is a softmax of what `a` holds.
    softmax: Option<Softmax<'a>>,
    b: View<'a>,
    /// First element of C, and the distance of its rows.
    c: *mut f32,
    c_down: usize,
    /// Columns of C: n, or more, to which zeros are written (or added).
    c_columns: usize,
    dims: Dims,
    accumulate: bool,
}

/// `exp(a - lse)` for the elements of A.
#[derive(Clone, Copy)]
struct Softmax<'a> {
    /// One for each row of A, or, where that is transposed, for each term.
    lse: &'a [f32],
    by_term: bool,
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
    Product::new(form, a, None, b, c, dims, accumulate).compute();
}

/// The same with `exp(a - lse)` for the elements of A, `lse` being that of the row they are stored in.
pub fn softmax_product(
    form: Form,
    a: &[f32],
    lse: &[f32],
    b: &[f32],
    c: &mut [f32],
    dims: Dims,
    accumulate: bool,
) {
    let Dims { m, n, k } = dims;
    let rows = if form == Form::TN { k } else { m };
    assert!(a.len() == m * k && b.len() == k * n && c.len() == m * n && lse.len() >= rows);
    let by_term = form == Form::TN;
    let softmax = Some(Softmax { lse, by_term });
    Product::new(form, a, softmax, b, c, dims, accumulate).compute();
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
        softmax: None,
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
/// copied once for every block of rows, and rows read once for every block of columns, which costs less, but for a
/// softmax.
fn blocks(Dims { m, n, k }: Dims, threads: usize, softmax: bool) -> [usize; 2] {
    let (reading, per_thread) = match softmax {
        false => (1, TASKS_PER_THREAD),
        true => (EXPONENTIAL, SOFTMAX_TASKS_PER_THREAD),
    };
    let work = m * n * k;
    let most = (work / FEWEST_PER_TASK).max(1);
    let tasks = (work / PER_TASK).clamp(threads.min(most), per_thread * threads);
    let cuts = (1..=tasks.min(m.div_ceil(SUM_ROWS)))
        .map(|rows| [rows, tasks.div_ceil(rows).min(n.div_ceil(PANEL))]);
    cuts.min_by_key(|&[rows, columns]| {
        let missing = tasks.saturating_sub(rows * columns);
        (missing, COPYING * rows * n + reading * columns * m)
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

impl<'a> Product<'a> {
    /// Of whole matrices.
    fn new(
        form: Form,
        a: &'a [f32],
        softmax: Option<Softmax<'a>>,
        b: &'a [f32],
        c: &mut [f32],
        dims: Dims,
        accumulate: bool,
    ) -> Self {
        let Dims { m, n, k } = dims;
        let view = |data, down, across| View { data, down, across };
        Product {
            a: match form {
                Form::NT | Form::NN => view(a, k, 1),
                Form::TN => view(a, 1, m),
            },
            softmax,
            b: match form {
                Form::NT => view(b, 1, k),
                Form::NN | Form::TN => view(b, n, 1),
            },
            c: c.as_mut_ptr(),
            c_down: n,
            c_columns: n,
            dims,
            accumulate,
        }
    }

    /// All of C, on all threads.
    fn compute(&self) {
        let Dims { m, n, .. } = self.dims;
        let softmax = self.softmax.is_some();
        let [row_blocks, column_blocks] = blocks(self.dims, threads::count(), softmax);
        let vectors = n.div_ceil(LANES);
        threads::run(row_blocks * column_blocks, |task| {
            let rows = part(m, row_blocks, task / column_blocks);
            let columns = part(vectors, column_blocks, task % column_blocks);
            // SAFETY: the slices hold the matrices (asserted), and no other task has these rows of these columns.
            unsafe { self.block(rows, columns) }
        });
    }

    /// The block of C at these rows and vectors of columns.
    ///
    /// # Safety
    /// The operands hold the matrices of `dims`; nothing else touches the block.
    unsafe fn block(&self, rows: Range<usize>, vectors: Range<usize>) {
        let (k, a) = (self.dims.k, self.a);
        let mut panel = MaybeUninit::<Panel>::uninit();
        let panel: *mut f32 = panel.as_mut_ptr().cast();
        let depths = k.div_ceil(DEPTH);
        for d in 0..depths {
            let depth = part(k, depths, d);
            let add = self.accumulate || d > 0;
            // SAFETY: the caller's.
            unsafe {
                match self.softmax {
                    None => {
                        let from = a
                            .data
                            .as_ptr()
                            .add(rows.start * a.down + depth.start * a.across);
                        let source = (from, a.down, a.across);
                        self.strip(source, rows.clone(), depth, vectors.clone(), panel, add);
                    }
                    Some(softmax) => {
                        self.softmax_strips(
                            softmax,
                            rows.clone(),
                            depth,
                            vectors.clone(),
                            panel,
                            add,
                        );
                    }
                }
            }
        }
    }

    /// Adds up the terms `depth` with a softmax for A: some rows of it at a time are written down, which the columns of all
    /// panels then share. A function of its own, since it takes much of the stack.
    ///
    /// # Safety
    /// As [`Product::strip`].
    #[inline(never)]
    unsafe fn softmax_strips(
        &self,
        Softmax { lse, by_term }: Softmax,
        rows: Range<usize>,
        depth: Range<usize>,
        vectors: Range<usize>,
        panel: *mut f32,
        add: bool,
    ) {
        let View { data, down, across } = self.a;
        let mut strip = MaybeUninit::<Strip>::uninit();
        let strip: *mut f32 = strip.as_mut_ptr().cast();
        let strips = rows.len().div_ceil(STRIP_ROWS);
        for s in 0..strips {
            let own = part(rows.len(), strips, s);
            let own = rows.start + own.start..rows.start + own.end;
            // In the order they are stored in.
            let (lines, line, first, length) = match by_term {
                false => (own.clone(), down, depth.start, depth.len()),
                true => (depth.clone(), across, own.start, own.len()),
            };
            for (i, at) in lines.enumerate() {
                let from = &data[at * line + first..][..length];
                // SAFETY: a strip holds STRIP_ROWS x DEPTH elements, and nothing else does.
                let to = unsafe { std::slice::from_raw_parts_mut(strip.add(i * length), length) };
                let lse = lse[at];
                for (to, from) in to.iter_mut().zip(from) {
                    *to = exp(from - lse);
                }
            }
            let source = match by_term {
                false => (strip.cast_const(), length, 1),
                true => (strip.cast_const(), 1, length),
            };
            // SAFETY: the caller's; the strip has these rows and terms.
            unsafe { self.strip(source, own, depth.clone(), vectors.clone(), panel, add) };
        }
    }

    /// Adds up the terms `depth` of the block of C at these rows and vectors of columns; these rows' terms are at `source`
    /// with these strides from row to row and from term to term.
    ///
    /// # Safety
    /// As [`Product::block`]; `source` has them, and a panel lies at `panel`.
    #[inline(always)]
    unsafe fn strip(
        &self,
        (a, a_down, a_across): (*const f32, usize, usize),
        rows: Range<usize>,
        depth: Range<usize>,
        vectors: Range<usize>,
        panel: *mut f32,
        add: bool,
    ) {
        let n = self.dims.n;
        let panels = vectors.len().div_ceil(SUM_COLUMNS);
        let tiles = rows.len().div_ceil(SUM_ROWS);
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
                        a: a.add(own_rows.start * a_down),
                        a_down,
                        a_across,
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
