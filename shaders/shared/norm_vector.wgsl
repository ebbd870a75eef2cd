// Vectors of a multiple of 4 elements that lie in buffers of vec4: where this one starts, in vec4.
fn vector_at(v: u32) -> u32 {
    return ((v / p.per_row) * p.stride + p.offset + (v % p.per_row) * p.dim) / 4u;
}
