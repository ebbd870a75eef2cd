//! Truncated singular value decomposition of a sparse matrix by random projection (Halko, Martinsson & Tropp,
//! "Finding structure with randomness", SIAM Review 2011: algorithms 4.4 and 5.1).

use rayon::prelude::*;

use super::matrix::{Csr, Dense, add_scaled, dot};
use crate::rng::{Rng, Stream};

/// Directions sketched beyond those asked for.
const OVERSAMPLING: usize = 10;
/// Passes over the matrix and its transpose that sharpen the sketch.
const POWER_ITERATIONS: u64 = 4;
/// A column that loses all but this share of its length to the columns before it depends on them.
const DEPENDENT: f64 = 1e-10;
/// A row of which the subspace keeps no more than this share of its squared length is outside it: what is left is
/// rounding.
const OUTSIDE: f64 = 1e-10;

/// The largest singular values of a matrix A, with their left vectors: A is about U diag(S) V'.
#[derive(Clone, Debug)]
pub struct Svd {
    /// `[rows, rank]`. Rows that are outside the subspace are zero.
    pub u: Dense,
    /// `[rank]`, falling.
    pub singular: Vec<f64>,
    /// Share of the matrix's squared Frobenius norm that they make up.
    pub explained: f64,
}

/// The passes over the matrix that [`randomised`] makes.
pub const PASSES: u64 = 2 + 2 * POWER_ITERATIONS;

/// Decomposes `a` to `rank`, which is at most the smaller of its sides. `pass` is called after each of the
/// [`PASSES`] with how many are done.
pub fn randomised(a: &Csr, rank: usize, seed: u64, mut pass: impl FnMut(u64)) -> Svd {
    let side = a.rows().min(a.cols);
    assert!((1..=side).contains(&rank), "{rank} of {side}");
    let sketch = (rank + OVERSAMPLING).min(side);
    let transposed = a.transposed();
    let mut done = 0;
    let mut multiply = |matrix: &Csr, right: &Dense| {
        let product = matrix.times(right);
        done += 1;
        pass(done);
        product
    };

    let mut q = orthonormal(&multiply(a, &gaussian(a.cols, sketch, seed)));
    for _ in 0..POWER_ITERATIONS {
        let back = orthonormal(&multiply(&transposed, &q));
        q = orthonormal(&multiply(a, &back));
    }
    // B = Q'A is small, and B B' = W diag(S^2) W' makes Q W the left vectors of A.
    let b = multiply(&transposed, &q).transposed();
    let (values, vectors) = eigen(b.gram());
    let mut w = Dense::zeros(sketch, rank);
    for column in 0..rank {
        for row in 0..sketch {
            w.row_mut(row)[column] = vectors.row(column)[row];
        }
    }
    let mut u = q.times(&w);
    let squares = &values[..rank];
    let norms = a.square_norms();
    u.par_rows_mut().zip(&norms).for_each(|(row, &norm)| {
        let kept: f64 = row.iter().zip(squares).map(|(u, s)| u * u * s).sum();
        if kept <= OUTSIDE * norm {
            row.fill(0.0);
        }
    });
    let total: f64 = norms.iter().sum();
    Svd {
        u,
        singular: squares.iter().map(|s| s.sqrt()).collect(),
        explained: if total > 0.0 {
            squares.iter().sum::<f64>() / total
        } else {
            0.0
        },
    }
}

/// `[rows, cols]` of standard normal draws.
fn gaussian(rows: usize, cols: usize, seed: u64) -> Dense {
    let mut matrix = Dense::zeros(rows, cols);
    matrix.par_rows_mut().enumerate().for_each(|(row, out)| {
        let mut rng = Rng::new(seed, Stream::Embed, 0, row as u32);
        out.fill_with(|| rng.normal() as f64);
    });
    matrix
}

/// An orthonormal basis of the columns, by Gram-Schmidt done twice; a dependent column becomes zero.
fn orthonormal(matrix: &Dense) -> Dense {
    let mut columns = matrix.transposed();
    for column in 0..columns.rows {
        let (basis, rest) = columns.data.split_at_mut(column * matrix.rows);
        let vector = &mut rest[..matrix.rows];
        let before = dot(vector, vector).sqrt();
        for _ in 0..2 {
            remove_projection(vector, basis);
        }
        let after = dot(vector, vector).sqrt();
        let scale = if after > DEPENDENT * before {
            1.0 / after
        } else {
            0.0
        };
        vector.iter_mut().for_each(|x| *x *= scale);
    }
    columns.transposed()
}

/// Takes from `vector` its projection on the orthonormal rows of `basis`.
fn remove_projection(vector: &mut [f64], basis: &[f64]) {
    const BLOCK: usize = 4096;
    let length = vector.len();
    let weights: Vec<f64> = basis
        .par_chunks_exact(length)
        .map(|row| dot(row, vector))
        .collect();
    vector
        .par_chunks_mut(BLOCK)
        .enumerate()
        .for_each(|(block, part)| {
            for (row, weight) in basis.chunks_exact(length).zip(&weights) {
                add_scaled(part, -weight, &row[block * BLOCK..][..part.len()]);
            }
        });
}

/// Eigenvalues (falling) and eigenvectors (rows) of a symmetric positive semi-definite matrix, by one-sided Jacobi
/// rotations (Hestenes 1958): once its rows are orthogonal, each is an eigenvector times its eigenvalue.
fn eigen(mut matrix: Dense) -> (Vec<f64>, Dense) {
    const SWEEPS: usize = 60;
    let n = matrix.rows;
    for _ in 0..SWEEPS {
        let mut rotated = false;
        for p in 0..n {
            for q in p + 1..n {
                let (head, tail) = matrix.data.split_at_mut(q * n);
                rotated |= rotate(&mut head[p * n..][..n], &mut tail[..n]);
            }
        }
        if !rotated {
            break;
        }
    }
    let lengths: Vec<f64> = (0..n)
        .map(|row| dot(matrix.row(row), matrix.row(row)).sqrt())
        .collect();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| lengths[b].total_cmp(&lengths[a]));
    let mut vectors = Dense::zeros(n, n);
    for (to, &from) in order.iter().enumerate() {
        if lengths[from] > 0.0 {
            add_scaled(vectors.row_mut(to), 1.0 / lengths[from], matrix.row(from));
        }
    }
    (order.iter().map(|&row| lengths[row]).collect(), vectors)
}

/// Rotates two rows until they are orthogonal; false if they were, to working precision.
fn rotate(a: &mut [f64], b: &mut [f64]) -> bool {
    let (aa, bb, ab) = (dot(a, a), dot(b, b), dot(a, b));
    if ab.abs() <= 1e-14 * (aa * bb).sqrt() {
        return false;
    }
    let zeta = (bb - aa) / (2.0 * ab);
    let tangent = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
    let cosine = 1.0 / tangent.hypot(1.0);
    let sine = cosine * tangent;
    for (x, y) in a.iter_mut().zip(b) {
        (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sparse matrix with about a third of its entries, of falling size by column.
    fn random(rows: usize, cols: usize) -> Csr {
        let mut rng = Rng::new(11, Stream::Test, 0, 0);
        let rows = (0..rows).map(|_| {
            let mut row = Vec::new();
            for column in 0..cols {
                if rng.below(3) == 0 {
                    row.push((column as u32, rng.normal() / (1.0 + column as f32)));
                }
            }
            row
        });
        let rows: Vec<_> = rows.collect();
        Csr::from_rows(cols, rows)
    }

    fn dense(a: &Csr) -> Dense {
        let mut identity = Dense::zeros(a.cols, a.cols);
        for i in 0..a.cols {
            identity.row_mut(i)[i] = 1.0;
        }
        a.times(&identity)
    }

    fn square(m: &Dense) -> f64 {
        dot(&m.data, &m.data)
    }

    /// The squared error of the best approximation in the span of the left vectors: A - U U'A.
    fn residual(a: &Csr, svd: &Svd) -> f64 {
        let mut left = dense(a);
        let kept = svd.u.times(&svd.u.transposed().times(&left));
        for (x, y) in left.data.iter_mut().zip(&kept.data) {
            *x -= y;
        }
        square(&left)
    }

    #[test]
    fn eigen_of_a_known_matrix() {
        // Eigenvalues 4, 2 and 0.
        let matrix = Dense {
            rows: 3,
            cols: 3,
            data: vec![3.0, 1.0, 0.0, 1.0, 3.0, 0.0, 0.0, 0.0, 0.0],
        };
        let (values, vectors) = eigen(matrix);
        assert!((values[0] - 4.0).abs() < 1e-14, "{values:?}");
        assert!((values[1] - 2.0).abs() < 1e-14, "{values:?}");
        assert_eq!(values[2], 0.0);
        let half = 0.5f64.sqrt();
        assert!((vectors.row(0)[0] * vectors.row(0)[1] - 0.5).abs() < 1e-14);
        assert!((vectors.row(1)[0].abs() - half).abs() < 1e-14);
    }

    #[test]
    fn agrees_with_the_exact_decomposition() {
        for (rows, cols) in [(40, 23), (17, 60)] {
            let a = random(rows, cols);
            // Exact: the eigenvalues of A A'.
            let (exact, _) = eigen(dense(&a).gram());
            let rank = 5;
            let svd = randomised(&a, rank, 3, |_| ());
            for (found, exact) in svd.singular.iter().zip(&exact) {
                assert!((found - exact.sqrt()).abs() < 1e-6 * exact.sqrt());
            }
            let unit = svd.u.transposed().gram();
            for i in 0..rank {
                for j in 0..rank {
                    let wanted = (i == j) as u32 as f64;
                    assert!((unit.row(i)[j] - wanted).abs() < 1e-12);
                }
            }
            // Eckart & Young: no rank does better than the discarded eigenvalues.
            let least: f64 = exact[rank..].iter().sum();
            let error = residual(&a, &svd);
            assert!((error / least - 1.0).abs() < 1e-6, "{error} {least}");
            let total: f64 = exact.iter().sum();
            assert!((svd.explained - (1.0 - least / total)).abs() < 1e-6);
            // The sketch alone is no such decomposition: the power iterations are what makes it one.
            let sketch = Svd {
                u: orthonormal(&a.times(&gaussian(cols, rank, 3))),
                ..svd
            };
            assert!(residual(&a, &sketch) > 1.01 * least);
        }
    }

    #[test]
    fn a_matrix_of_low_rank_is_recovered_and_its_empty_rows_stay_zero() {
        let row = |scale: f32| vec![(0, scale), (2, 2.0 * scale)];
        let a = Csr::from_rows(5, [row(1.0), vec![], row(-3.0), row(0.5)]);
        let svd = randomised(&a, 3, 0, |_| ());
        assert!((svd.singular[0] - (5.0f64 * 10.25).sqrt()).abs() < 1e-12);
        assert!(svd.singular[1] < 1e-6 && svd.singular[2] < 1e-6);
        assert!((svd.explained - 1.0).abs() < 1e-12);
        assert_eq!(svd.u.row(1), [0.0; 3]);
        assert!(svd.u.row(0)[0].abs() > 0.1);
        let nothing = randomised(&Csr::from_rows(3, [vec![], vec![]]), 2, 0, |_| ());
        assert_eq!(nothing.u, Dense::zeros(2, 2));
        assert_eq!(nothing.explained, 0.0);
    }

    #[test]
    fn the_same_bits_for_any_number_of_threads_and_others_for_another_seed() {
        let a = random(5000, 70);
        let with = |threads: usize, seed| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let pool = pool.build().unwrap();
            pool.install(|| randomised(&a, 12, seed, |_| ()))
        };
        let (one, three) = (with(1, 5), with(3, 5));
        assert_eq!(one.u, three.u);
        assert_eq!(one.singular, three.singular);
        assert_ne!(one.u, with(1, 6).u);
    }
}
