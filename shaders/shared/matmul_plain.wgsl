// A matrix product whose op(A) is what `a` holds: the element at `at`, which is in `row` of op(A) and `term` of the sums.
fn a_element(at: u32, row: u32, term: u32) -> a_t {
    return a[at];
}
