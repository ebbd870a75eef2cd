//! The matrix product's twin: the `gemm` crate's packed, register-blocked product, one band of C per thread.
//!
//! The crate's own threading and its automatic choice of the output's orientation are not used: bands computed as
//! `C^T = op(B)^T op(A)^T` run up to twice as fast on our shapes. Bands are of rows or, for `y = x W^T`, of columns, so
//! that each thread packs its own part of W. With few rows (decoding) nothing pays for packing W, and `y` is computed
//! untransposed.
//!
//! The order of each sum may depend on the shape of the band, so results are the same bits for the same number of
//! threads.

use super::matmul::{Dims, Form};
use rayon::prelude::*;
use std::ops::Range;

/// Products below this many multiplications run on one thread.
const PARALLEL: usize = 64 * 64 * 64;

/// `x W^T` with fewer rows than this is computed untransposed.
const FEW_ROWS: usize = 56;

/// Narrowest band of columns of a product with enough rows to share instead.
const BAND_COLUMNS: usize = 64;

/// Lets bands write their own part of C.
#[derive(Clone, Copy)]
struct Output(*mut f32);
// SAFETY: `product` gives every band its own rows or columns.
unsafe impl Send for Output {}
unsafe impl Sync for Output {}

impl Output {
    /// By method, so that closures capture the wrapper and not its pointer.
    fn pointer(self) -> *mut f32 {
        self.0
    }
}

/// `C (+)= op(A) op(B)`; slices hold exactly the matrices.
pub fn product(form: Form, a: &[f32], b: &[f32], c: &mut [f32], dims: Dims, accumulate: bool) {
    let Dims { m, n, k } = dims;
    assert!(a.len() == m * k && b.len() == k * n && c.len() == m * n);
    let c = Output(c.as_mut_ptr());
    let bands = if m * n * k < PARALLEL {
        1
    } else {
        rayon::current_num_threads()
    };
    let few_rows = form == Form::NT && m < FEW_ROWS;
    let by_columns = few_rows || form == Form::NT && n >= BAND_COLUMNS * bands;
    let (length, unit) = if by_columns { (n, 16) } else { (m, 1) };
    let band = length.div_ceil(bands).next_multiple_of(unit);
    let run = |i: usize| {
        let part = (i * band).min(length)..((i + 1) * band).min(length);
        let (rows, columns) = if by_columns {
            (0..m, part)
        } else {
            (part, 0..n)
        };
        // SAFETY: the slices hold the matrices (asserted), the ranges lie within C and are this band's alone.
        unsafe {
            block(
                form,
                a,
                b,
                c.pointer(),
                dims,
                rows,
                columns,
                !few_rows,
                accumulate,
            )
        }
    };
    if bands == 1 {
        run(0);
    } else {
        (0..bands).into_par_iter().for_each(run);
    }
}

/// One block of C, computed as `C^T = op(B)^T op(A)^T` if `transposed`.
///
/// # Safety
/// `a`, `b` and `c` hold the matrices of `dims`; nothing else touches this block of `c`.
unsafe fn block(
    form: Form,
    a: &[f32],
    b: &[f32],
    c: *mut f32,
    dims: Dims,
    rows: Range<usize>,
    columns: Range<usize>,
    transposed: bool,
    accumulate: bool,
) {
    let Dims { m, n, k } = dims;
    if rows.is_empty() || columns.is_empty() {
        return;
    }
    // Row and column strides of op(A) [m, k] and op(B) [k, n].
    let (a_row, a_column) = match form {
        Form::NT | Form::NN => (k, 1),
        Form::TN => (1, m),
    };
    let (b_row, b_column) = match form {
        Form::NT => (1, k),
        Form::NN | Form::TN => (n, 1),
    };
    // (length across C, first element, stride across C, stride along k) of each operand.
    let (a, b) = (&a[rows.start * a_row..], &b[columns.start * b_column..]);
    let left = (rows.len(), a.as_ptr(), a_row as isize, a_column as isize);
    let right = (columns.len(), b.as_ptr(), b_column as isize, b_row as isize);
    let ((m, left, left_stride, left_k), (n, right, right_stride, right_k), c_strides) =
        if transposed {
            (right, left, (n as isize, 1))
        } else {
            (left, right, (1, n as isize))
        };
    // SAFETY: the caller's; the strides stay within the matrices.
    unsafe {
        let c = c.add(rows.start * dims.n + columns.start);
        gemm_f32::gemm::f32::get_gemm_fn()(
            m,
            n,
            k,
            c,
            c_strides.0,
            c_strides.1,
            accumulate,
            left,
            left_k,
            left_stride,
            right,
            right_stride,
            right_k,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm_common::Parallelism::None,
        );
    }
}
