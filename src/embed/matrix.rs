//! The matrices embeddings are made from. Every sum has one fixed order, whatever the number of threads.

use rayon::prelude::*;

/// A sparse matrix, compressed by rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Csr {
    pub cols: usize,
    /// `[rows + 1]`: row `r` has the entries `begin[r] .. begin[r + 1]`.
    pub begin: Vec<usize>,
    /// Column of each entry, rising within a row.
    pub column: Vec<u32>,
    pub value: Vec<f32>,
}

impl Csr {
    /// Of rows of (column, value), columns rising.
    pub fn from_rows(cols: usize, rows: impl IntoIterator<Item = Vec<(u32, f32)>>) -> Csr {
        let mut matrix = Csr {
            cols,
            begin: vec![0],
            column: Vec::new(),
            value: Vec::new(),
        };
        for row in rows {
            for (column, value) in row {
                matrix.column.push(column);
                matrix.value.push(value);
            }
            matrix.begin.push(matrix.column.len());
        }
        matrix
    }

    pub fn rows(&self) -> usize {
        self.begin.len() - 1
    }

    /// The (column, value) entries of a row.
    pub fn row(&self, row: usize) -> impl Iterator<Item = (usize, f32)> + '_ {
        let entries = self.begin[row]..self.begin[row + 1];
        let columns = self.column[entries.clone()].iter();
        columns
            .map(|&column| column as usize)
            .zip(self.value[entries].iter().copied())
    }

    /// The sum of the squares of each row.
    pub fn square_norms(&self) -> Vec<f64> {
        let square = |row| self.row(row).map(|(_, x)| x as f64 * x as f64).sum();
        (0..self.rows()).map(square).collect()
    }

    /// Scales every row to length 1; a row of zeros stays.
    pub fn normalise_rows(&mut self) {
        for (row, square) in self.square_norms().into_iter().enumerate() {
            if square > 0.0 {
                for value in &mut self.value[self.begin[row]..self.begin[row + 1]] {
                    *value = (*value as f64 / square.sqrt()) as f32;
                }
            }
        }
    }

    /// `[self, other]`: the columns of `other` behind those of this one.
    pub fn beside(&self, other: &Csr) -> Csr {
        assert_eq!(self.rows(), other.rows());
        let rows = (0..self.rows()).map(|row| {
            let own = self.row(row).map(|(column, x)| (column as u32, x));
            let moved = other
                .row(row)
                .map(|(column, x)| ((self.cols + column) as u32, x));
            own.chain(moved).collect()
        });
        Csr::from_rows(self.cols + other.cols, rows)
    }

    pub fn transposed(&self) -> Csr {
        let mut begin = vec![0; self.cols + 1];
        for &column in &self.column {
            begin[column as usize + 1] += 1;
        }
        for column in 0..self.cols {
            begin[column + 1] += begin[column];
        }
        let mut next = begin.clone();
        let mut matrix = Csr {
            cols: self.rows(),
            begin,
            column: vec![0; self.column.len()],
            value: vec![0.0; self.value.len()],
        };
        for row in 0..self.rows() {
            for (column, value) in self.row(row) {
                matrix.column[next[column]] = row as u32;
                matrix.value[next[column]] = value;
                next[column] += 1;
            }
        }
        matrix
    }

    /// This matrix times `right` `[cols, n]`.
    pub fn times(&self, right: &Dense) -> Dense {
        assert_eq!(self.cols, right.rows);
        let mut product = Dense::zeros(self.rows(), right.cols);
        product.par_rows_mut().enumerate().for_each(|(row, sum)| {
            for (column, value) in self.row(row) {
                add_scaled(sum, value as f64, right.row(column));
            }
        });
        product
    }
}

/// A dense matrix, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Dense {
    pub rows: usize,
    pub cols: usize,
    pub data: Vec<f64>,
}

impl Dense {
    pub fn zeros(rows: usize, cols: usize) -> Dense {
        Dense {
            rows,
            cols,
            data: vec![0.0; rows * cols],
        }
    }

    pub fn row(&self, row: usize) -> &[f64] {
        &self.data[row * self.cols..][..self.cols]
    }

    pub fn row_mut(&mut self, row: usize) -> &mut [f64] {
        &mut self.data[row * self.cols..][..self.cols]
    }

    /// The rows, to be filled in parallel. There must be columns.
    pub fn par_rows_mut(&mut self) -> impl IndexedParallelIterator<Item = &mut [f64]> {
        self.data.par_chunks_exact_mut(self.cols)
    }

    pub fn transposed(&self) -> Dense {
        let mut matrix = Dense::zeros(self.cols, self.rows);
        matrix.par_rows_mut().enumerate().for_each(|(column, out)| {
            for (row, x) in out.iter_mut().enumerate() {
                *x = self.data[row * self.cols + column];
            }
        });
        matrix
    }

    /// This matrix times `right` `[cols, n]`.
    pub fn times(&self, right: &Dense) -> Dense {
        assert_eq!(self.cols, right.rows);
        let mut product = Dense::zeros(self.rows, right.cols);
        product.par_rows_mut().enumerate().for_each(|(row, sum)| {
            for (&x, row) in self
                .row(row)
                .iter()
                .zip(right.data.chunks_exact(right.cols))
            {
                add_scaled(sum, x, row);
            }
        });
        product
    }

    /// The dot products of all rows, `[rows, rows]`.
    pub fn gram(&self) -> Dense {
        let mut gram = Dense::zeros(self.rows, self.rows);
        gram.par_rows_mut().enumerate().for_each(|(i, out)| {
            for (j, x) in out.iter_mut().enumerate() {
                *x = dot(self.row(i), self.row(j));
            }
        });
        gram
    }
}

/// The dot product, as eight partial sums so that it runs on vector units.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    const LANES: usize = 8;
    let mut lanes = [0.0; LANES];
    let (a_blocks, b_blocks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a_blocks.remainder().iter().zip(b_blocks.remainder());
    let rest: f64 = rest.map(|(x, y)| x * y).sum();
    for (a, b) in a_blocks.zip(b_blocks) {
        for (lane, (x, y)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += x * y;
        }
    }
    lanes.iter().sum::<f64>() + rest
}

/// `sum += scale * row`.
pub fn add_scaled(sum: &mut [f64], scale: f64, row: &[f64]) {
    for (sum, x) in sum.iter_mut().zip(row) {
        *sum += scale * x;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dense(csr: &Csr) -> Dense {
        let mut matrix = Dense::zeros(csr.rows(), csr.cols);
        for row in 0..csr.rows() {
            for (column, value) in csr.row(row) {
                matrix.row_mut(row)[column] += value as f64;
            }
        }
        matrix
    }

    /// [[0, 2, 0, 1], [0, 0, 0, 0], [3, 0, 4, 0]]
    fn sparse() -> Csr {
        Csr::from_rows(
            4,
            [vec![(1, 2.0), (3, 1.0)], vec![], vec![(0, 3.0), (2, 4.0)]],
        )
    }

    #[test]
    fn sparse_products_are_the_dense_ones() {
        let a = sparse();
        let right = Dense {
            rows: 4,
            cols: 2,
            data: vec![1.0, -1.0, 2.0, 0.5, 3.0, 0.0, 4.0, 7.0],
        };
        let product = a.times(&right);
        assert_eq!(product.data, [8.0, 8.0, 0.0, 0.0, 15.0, -3.0]);
        assert_eq!(product, dense(&a).times(&right));
        assert_eq!(dense(&a.transposed()), dense(&a).transposed());
        assert_eq!(a.transposed().transposed(), a);
        assert_ne!(a.transposed(), a);
    }

    #[test]
    fn rows_are_scaled_and_set_side_by_side() {
        let mut a = sparse();
        a.normalise_rows();
        assert_eq!(a.value[2..], [0.6, 0.8]);
        assert_eq!(a.square_norms()[1], 0.0);
        let both = sparse().beside(&sparse());
        assert_eq!((both.rows(), both.cols), (3, 8));
        let row: Vec<_> = both.row(2).collect();
        assert_eq!(row, [(0, 3.0), (2, 4.0), (4, 3.0), (6, 4.0)]);
    }

    #[test]
    fn dot_takes_every_element() {
        for n in [0, 1, 7, 8, 19] {
            let ones = vec![1.0; n];
            let rising: Vec<f64> = (1..=n).map(|x| x as f64).collect();
            assert_eq!(dot(&ones, &rising), (n * (n + 1) / 2) as f64);
        }
    }
}
