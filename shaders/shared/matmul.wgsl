// What every form of the matrix product has in common: C[m,n] = start + op(A, B), start: zero, C itself, bias[n] in
// every row, or a matrix in the place of the bias. NT (TRANSPOSE_B): A[m,k] B[n,k]; NN: A[m,k] B[k,n]; TN (TRANSPOSE_A): A[k,m] B[k,n].
struct Params { m: u32, n: u32, k: u32, start: u32, first: u32 }
@group(0) @binding(0) var<uniform> p: Params;

override TRANSPOSE_A: bool = false;
override TRANSPOSE_B: bool = false;

const ACCUMULATE = 1u;
const BIAS = 2u;
const MATRIX = 3u;

// From one row of op(A) to the next, and from one term of the sums to the next.
fn a_strides() -> vec2<u32> {
    return select(vec2<u32>(p.k, 1u), vec2<u32>(1u, p.m), TRANSPOSE_A);
}

// From one column of op(B) to the next, and from one term of the sums to the next.
fn b_strides() -> vec2<u32> {
    return select(vec2<u32>(1u, p.n), vec2<u32>(p.k, 1u), TRANSPOSE_B);
}
