// Stores one element of C, if it is inside.
fn store(row: u32, column: u32, sum: f32) {
    if row >= p.m || column >= p.n {
        return;
    }
    var start = 0.0;
    if p.start == ACCUMULATE {
        start = f32(c[row * p.n + column]);
    } else if p.start == BIAS {
        start = f32(bias[column]);
    } else if p.start == MATRIX {
        start = f32(bias[row * p.n + column]);
    }
    c[row * p.n + column] = c_t(start + sum);
}
