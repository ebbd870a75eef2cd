// The gradients of outputs, as `load_queries` of `tile.wgsl`.
fn load_gradients(to: u32, first: u32, end: u32, head: u32, piece: u32, lane: u32) {
    for (var i = 0u; i < 4u; i++) {
        let at = origin(first + lane / SIDE + SIDE * i, end, p.heads, head, piece, lane);
        var v = vec4<f32>();
        if at != NONE {
            v = vec4<f32>(d_o[at]);
        }
        tiles[place(to, i, lane)] = v;
    }
}
