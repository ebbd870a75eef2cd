// Stores one element of C, if it is inside.
fn store(row: u32, column: u32, sum: f32) {
    if row >= p.m || column >= p.n {
        return;
    }
    var start = 0.0;
    if p.start == ACCUMULATE {
        start = c[row * p.n + column];
    } else if p.start == BIAS {
        start = bias[column];
    } else if p.start == MATRIX {
        start = bias[row * p.n + column];
    }
    c[row * p.n + column] = start + sum;
}
