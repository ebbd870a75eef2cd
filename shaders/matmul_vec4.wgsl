// C[m,n] = start + op(A, B) for m, n, k whose row lengths are multiples of 4, so that every array is one of vec4.
// NT: A[m,k] B[n,k]; NN: A[m,k] B[k,n]; TN: A[k,m] B[k,n]. start: zero, C itself, or bias[n] in every row.
//
// A workgroup is 32 invocations side by side, each 8 rows x 4 columns of C in registers: loads of A are the same for
// the whole group (a broadcast), loads of B and C are neighbours (NN, TN). Indices past the edge are brought back to
// the last row or column before the loop; what is computed there is not stored.
struct Params { m: u32, n: u32, k: u32, start: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> c: array<vec4<f32>>;

//!include grid

const COLUMN_LANES = 32u;
const ACCUMULATE = 1u;
const BIAS = 2u;

struct Tile { row: u32, column: u32, inside: bool }

fn tile(number: u32, lane: u32) -> Tile {
    let columns = p.n / 4u;
    let across = (columns + COLUMN_LANES - 1u) / COLUMN_LANES;
    let column = (number % across) * COLUMN_LANES + lane;
    return Tile((number / across) * 8u, min(column, columns - 1u), column < columns);
}

fn store(row: u32, t: Tile, sum: vec4<f32>) {
    if row >= p.m || !t.inside {
        return;
    }
    let columns = p.n / 4u;
    var start = vec4<f32>(0.0);
    if p.start == ACCUMULATE {
        start = c[row * columns + t.column];
    } else if p.start == BIAS {
        start = bias[t.column];
    }
    c[row * columns + t.column] = start + sum;
}

@compute @workgroup_size(32)
fn nt(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
      @builtin(local_invocation_index) lane: u32) {
    let t = tile(group_number(group, groups), lane);
    let depth = p.k / 4u;
    let last = p.m - 1u;
    let r0 = min(t.row, last) * depth;
    let r1 = min(t.row + 1u, last) * depth;
    let r2 = min(t.row + 2u, last) * depth;
    let r3 = min(t.row + 3u, last) * depth;
    let r4 = min(t.row + 4u, last) * depth;
    let r5 = min(t.row + 5u, last) * depth;
    let r6 = min(t.row + 6u, last) * depth;
    let r7 = min(t.row + 7u, last) * depth;
    let s0 = t.column * 4u * depth;
    let s1 = s0 + depth;
    let s2 = s1 + depth;
    let s3 = s2 + depth;
    var c0 = vec4<f32>(0.0);
    var c1 = vec4<f32>(0.0);
    var c2 = vec4<f32>(0.0);
    var c3 = vec4<f32>(0.0);
    var c4 = vec4<f32>(0.0);
    var c5 = vec4<f32>(0.0);
    var c6 = vec4<f32>(0.0);
    var c7 = vec4<f32>(0.0);
    for (var q = 0u; q < depth; q++) {
        let b0 = b[s0 + q];
        let b1 = b[s1 + q];
        let b2 = b[s2 + q];
        let b3 = b[s3 + q];
        let x = vec4<f32>(b0.x, b1.x, b2.x, b3.x);
        let y = vec4<f32>(b0.y, b1.y, b2.y, b3.y);
        let z = vec4<f32>(b0.z, b1.z, b2.z, b3.z);
        let w = vec4<f32>(b0.w, b1.w, b2.w, b3.w);
        let a0 = a[r0 + q];
        c0 = fma(vec4<f32>(a0.x), x, fma(vec4<f32>(a0.y), y, fma(vec4<f32>(a0.z), z, fma(vec4<f32>(a0.w), w, c0))));
        let a1 = a[r1 + q];
        c1 = fma(vec4<f32>(a1.x), x, fma(vec4<f32>(a1.y), y, fma(vec4<f32>(a1.z), z, fma(vec4<f32>(a1.w), w, c1))));
        let a2 = a[r2 + q];
        c2 = fma(vec4<f32>(a2.x), x, fma(vec4<f32>(a2.y), y, fma(vec4<f32>(a2.z), z, fma(vec4<f32>(a2.w), w, c2))));
        let a3 = a[r3 + q];
        c3 = fma(vec4<f32>(a3.x), x, fma(vec4<f32>(a3.y), y, fma(vec4<f32>(a3.z), z, fma(vec4<f32>(a3.w), w, c3))));
        let a4 = a[r4 + q];
        c4 = fma(vec4<f32>(a4.x), x, fma(vec4<f32>(a4.y), y, fma(vec4<f32>(a4.z), z, fma(vec4<f32>(a4.w), w, c4))));
        let a5 = a[r5 + q];
        c5 = fma(vec4<f32>(a5.x), x, fma(vec4<f32>(a5.y), y, fma(vec4<f32>(a5.z), z, fma(vec4<f32>(a5.w), w, c5))));
        let a6 = a[r6 + q];
        c6 = fma(vec4<f32>(a6.x), x, fma(vec4<f32>(a6.y), y, fma(vec4<f32>(a6.z), z, fma(vec4<f32>(a6.w), w, c6))));
        let a7 = a[r7 + q];
        c7 = fma(vec4<f32>(a7.x), x, fma(vec4<f32>(a7.y), y, fma(vec4<f32>(a7.z), z, fma(vec4<f32>(a7.w), w, c7))));
    }
    store(t.row, t, c0);
    store(t.row + 1u, t, c1);
    store(t.row + 2u, t, c2);
    store(t.row + 3u, t, c3);
    store(t.row + 4u, t, c4);
    store(t.row + 5u, t, c5);
    store(t.row + 6u, t, c6);
    store(t.row + 7u, t, c7);
}

@compute @workgroup_size(32)
fn nn(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
      @builtin(local_invocation_index) lane: u32) {
    let t = tile(group_number(group, groups), lane);
    let depth = p.k / 4u;
    let columns = p.n / 4u;
    let last = p.m - 1u;
    let r0 = min(t.row, last) * depth;
    let r1 = min(t.row + 1u, last) * depth;
    let r2 = min(t.row + 2u, last) * depth;
    let r3 = min(t.row + 3u, last) * depth;
    let r4 = min(t.row + 4u, last) * depth;
    let r5 = min(t.row + 5u, last) * depth;
    let r6 = min(t.row + 6u, last) * depth;
    let r7 = min(t.row + 7u, last) * depth;
    var c0 = vec4<f32>(0.0);
    var c1 = vec4<f32>(0.0);
    var c2 = vec4<f32>(0.0);
    var c3 = vec4<f32>(0.0);
    var c4 = vec4<f32>(0.0);
    var c5 = vec4<f32>(0.0);
    var c6 = vec4<f32>(0.0);
    var c7 = vec4<f32>(0.0);
    var s = t.column;
    for (var q = 0u; q < depth; q++) {
        let x = b[s];
        let y = b[s + columns];
        let z = b[s + 2u * columns];
        let w = b[s + 3u * columns];
        let a0 = a[r0 + q];
        c0 = fma(vec4<f32>(a0.x), x, fma(vec4<f32>(a0.y), y, fma(vec4<f32>(a0.z), z, fma(vec4<f32>(a0.w), w, c0))));
        let a1 = a[r1 + q];
        c1 = fma(vec4<f32>(a1.x), x, fma(vec4<f32>(a1.y), y, fma(vec4<f32>(a1.z), z, fma(vec4<f32>(a1.w), w, c1))));
        let a2 = a[r2 + q];
        c2 = fma(vec4<f32>(a2.x), x, fma(vec4<f32>(a2.y), y, fma(vec4<f32>(a2.z), z, fma(vec4<f32>(a2.w), w, c2))));
        let a3 = a[r3 + q];
        c3 = fma(vec4<f32>(a3.x), x, fma(vec4<f32>(a3.y), y, fma(vec4<f32>(a3.z), z, fma(vec4<f32>(a3.w), w, c3))));
        let a4 = a[r4 + q];
        c4 = fma(vec4<f32>(a4.x), x, fma(vec4<f32>(a4.y), y, fma(vec4<f32>(a4.z), z, fma(vec4<f32>(a4.w), w, c4))));
        let a5 = a[r5 + q];
        c5 = fma(vec4<f32>(a5.x), x, fma(vec4<f32>(a5.y), y, fma(vec4<f32>(a5.z), z, fma(vec4<f32>(a5.w), w, c5))));
        let a6 = a[r6 + q];
        c6 = fma(vec4<f32>(a6.x), x, fma(vec4<f32>(a6.y), y, fma(vec4<f32>(a6.z), z, fma(vec4<f32>(a6.w), w, c6))));
        let a7 = a[r7 + q];
        c7 = fma(vec4<f32>(a7.x), x, fma(vec4<f32>(a7.y), y, fma(vec4<f32>(a7.z), z, fma(vec4<f32>(a7.w), w, c7))));
        s += 4u * columns;
    }
    store(t.row, t, c0);
    store(t.row + 1u, t, c1);
    store(t.row + 2u, t, c2);
    store(t.row + 3u, t, c3);
    store(t.row + 4u, t, c4);
    store(t.row + 5u, t, c5);
    store(t.row + 6u, t, c6);
    store(t.row + 7u, t, c7);
}

@compute @workgroup_size(32)
fn tn(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
      @builtin(local_invocation_index) lane: u32) {
    let t = tile(group_number(group, groups), lane);
    let rows = p.m / 4u;
    let columns = p.n / 4u;
    let r0 = min(t.row / 4u, rows - 1u);
    let r1 = min(r0 + 1u, rows - 1u);
    var c0 = vec4<f32>(0.0);
    var c1 = vec4<f32>(0.0);
    var c2 = vec4<f32>(0.0);
    var c3 = vec4<f32>(0.0);
    var c4 = vec4<f32>(0.0);
    var c5 = vec4<f32>(0.0);
    var c6 = vec4<f32>(0.0);
    var c7 = vec4<f32>(0.0);
    for (var q = 0u; q < p.k; q++) {
        let x = b[q * columns + t.column];
        let a0 = a[q * rows + r0];
        let a1 = a[q * rows + r1];
        c0 = fma(vec4<f32>(a0.x), x, c0);
        c1 = fma(vec4<f32>(a0.y), x, c1);
        c2 = fma(vec4<f32>(a0.z), x, c2);
        c3 = fma(vec4<f32>(a0.w), x, c3);
        c4 = fma(vec4<f32>(a1.x), x, c4);
        c5 = fma(vec4<f32>(a1.y), x, c5);
        c6 = fma(vec4<f32>(a1.z), x, c6);
        c7 = fma(vec4<f32>(a1.w), x, c7);
    }
    store(t.row, t, c0);
    store(t.row + 1u, t, c1);
    store(t.row + 2u, t, c2);
    store(t.row + 3u, t, c3);
    store(t.row + 4u, t, c4);
    store(t.row + 5u, t, c5);
    store(t.row + 6u, t, c6);
    store(t.row + 7u, t, c7);
}
