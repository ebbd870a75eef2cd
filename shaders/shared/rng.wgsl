// The counter-based generator of src/rng.rs (spec 8): the same integers here.
fn pcg4d(counters: vec4<u32>) -> vec4<u32> {
    var v = counters * 1664525u + 1013904223u;
    v.x += v.y * v.w; v.y += v.z * v.x; v.z += v.x * v.y; v.w += v.y * v.z;
    v ^= v >> vec4<u32>(16u);
    v.x += v.y * v.w; v.y += v.z * v.x; v.z += v.x * v.y; v.w += v.y * v.z;
    return v;
}

// Uniform in the open interval (0, 1).
fn unit(word: u32) -> f32 {
    return (f32(word >> 9u) + 0.5) * (1.0 / 8388608.0);
}

// ln(x) of a positive normal number within 2 ulp, also near 1, where WGSL's own may be off by 2^-21: that would decide
// most Gumbel draws, since the winner's uniform is close to 1. x = 2^e m with m in [0.7, 1.4], ln m = 2 atanh t.
fn accurate_ln(x: f32) -> f32 {
    let bits = bitcast<u32>(x) - 0x3f330000u;
    let e = bitcast<i32>(bits) >> 23u;
    let m = bitcast<f32>((bits & 0x007fffffu) + 0x3f330000u);
    let t = (m - 1.0) / (m + 1.0);
    let s = t * t;
    let series = s * (1.0 / 3.0 + s * (1.0 / 5.0 + s * (1.0 / 7.0 + s * (1.0 / 9.0 + s * (1.0 / 11.0)))));
    return f32(e) * 0.69314718 + (2.0 * t + 2.0 * t * series);
}

fn gumbel(word: u32) -> f32 {
    return -accurate_ln(-accurate_ln(unit(word)));
}
