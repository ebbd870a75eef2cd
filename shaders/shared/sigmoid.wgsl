// 1 / (1 + exp(-x)); the exponent is capped so that nothing overflows (0 to rounding below -80 anyway).
fn sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exp(min(-x, 80.0)));
}

fn silu(x: f32) -> f32 {
    return x * sigmoid(x);
}

// d silu(x) / dx
fn silu_slope(x: f32) -> f32 {
    let s = sigmoid(x);
    return s * (1.0 + x * (1.0 - s));
}
