// Each element of y, `rounds` times (a multiple of 4, for a loop that is mostly its body): y = a y + b. Eight elements per
// invocation, 256 apart, so that a processor has eight independent chains to overlap.
struct Params { n: u32, rounds: u32, a: f32, b: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;

//!include grid

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = group_number(group) * 2048u + lane;
    if first + 1792u >= p.n {
        return;
    }
    var v0 = y[first];
    var v1 = y[first + 256u];
    var v2 = y[first + 512u];
    var v3 = y[first + 768u];
    var v4 = y[first + 1024u];
    var v5 = y[first + 1280u];
    var v6 = y[first + 1536u];
    var v7 = y[first + 1792u];
    for (var i = 0u; i < p.rounds; i += 4u) {
        v0 = fma(p.a, v0, p.b);
        v1 = fma(p.a, v1, p.b);
        v2 = fma(p.a, v2, p.b);
        v3 = fma(p.a, v3, p.b);
        v4 = fma(p.a, v4, p.b);
        v5 = fma(p.a, v5, p.b);
        v6 = fma(p.a, v6, p.b);
        v7 = fma(p.a, v7, p.b);
        v0 = fma(p.a, v0, p.b);
        v1 = fma(p.a, v1, p.b);
        v2 = fma(p.a, v2, p.b);
        v3 = fma(p.a, v3, p.b);
        v4 = fma(p.a, v4, p.b);
        v5 = fma(p.a, v5, p.b);
        v6 = fma(p.a, v6, p.b);
        v7 = fma(p.a, v7, p.b);
        v0 = fma(p.a, v0, p.b);
        v1 = fma(p.a, v1, p.b);
        v2 = fma(p.a, v2, p.b);
        v3 = fma(p.a, v3, p.b);
        v4 = fma(p.a, v4, p.b);
        v5 = fma(p.a, v5, p.b);
        v6 = fma(p.a, v6, p.b);
        v7 = fma(p.a, v7, p.b);
        v0 = fma(p.a, v0, p.b);
        v1 = fma(p.a, v1, p.b);
        v2 = fma(p.a, v2, p.b);
        v3 = fma(p.a, v3, p.b);
        v4 = fma(p.a, v4, p.b);
        v5 = fma(p.a, v5, p.b);
        v6 = fma(p.a, v6, p.b);
        v7 = fma(p.a, v7, p.b);
    }
    y[first] = v0;
    y[first + 256u] = v1;
    y[first + 512u] = v2;
    y[first + 768u] = v3;
    y[first + 1024u] = v4;
    y[first + 1280u] = v5;
    y[first + 1536u] = v6;
    y[first + 1792u] = v7;
}
