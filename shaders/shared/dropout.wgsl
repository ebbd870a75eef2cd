// Which elements dropout keeps: every element has 16 bits of its own, eight to a block of the generator. The kernel declares
// p.key, p.step, p.site and p.keep. Needs `rng.wgsl`.
fn dropout_block(block: u32) -> vec4<u32> {
    return pcg4d(vec4<u32>(p.key, p.step, p.site, block));
}

// The factors of elements 0..4 (words xy of the block) or 4..8 (zw).
fn dropout_factors(words: vec2<u32>) -> vec4<f32> {
    let bits = vec4<u32>(words.x & 0xffffu, words.x >> 16u, words.y & 0xffffu, words.y >> 16u);
    return select(vec4<f32>(0.0), vec4<f32>(p.scale), bits < vec4<u32>(p.keep));
}

fn dropout_factor(element: u32) -> f32 {
    let bits = dropout_block(element / 8u)[(element / 2u) % 4u] >> (16u * (element % 2u));
    return select(0.0, p.scale, (bits & 0xffffu) < p.keep);
}
