// 1 / (1 + exp(-x)) of four, capped as in sigmoid.wgsl.
fn sigmoid4(x: vec4<f32>) -> vec4<f32> {
    return 1.0 / (1.0 + exp(min(-x, vec4<f32>(80.0))));
}
