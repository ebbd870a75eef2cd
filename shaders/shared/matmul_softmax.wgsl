// A matrix product whose op(A) is the softmax of the rows of `a` [rows, vocabulary], whose log-sums are `lse` from `first` on: each
// element is taken when it is loaded, and is 1 at most. A form that loads an element once per tile takes one exponential for as
// many products as the tile is wide.
alias a_t = f32;
@group(0) @binding(5) var<storage, read> lse: array<f32>;

// As matmul_plain.wgsl. Logits lie by row: along op(A), or, if that is transposed, along the sums.
fn a_element(at: u32, row: u32, term: u32) -> f32 {
    return exp(a[at] - lse[p.first + select(row, term, TRANSPOSE_A)]);
}
