// C[m,n] = start + op(A, B) for any m, n, k; matmul_vec4.wgsl is the form for multiples of 4.
// NT: A[m,k] B[n,k]; NN: A[m,k] B[k,n]; TN: A[k,m] B[k,n]. start: zero, C itself, or bias[n] in every row.
//
// A workgroup is 32 invocations, each 8 rows x 4 columns of C in registers; its columns are 32 apart, so that
// neighbours read and write neighbours. Indices past the edge are brought back to the last row or column before the
// loop; what is computed there is not stored.
struct Params { m: u32, n: u32, k: u32, start: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> c: array<f32>;

//!include grid

const COLUMN_LANES = 32u;
const ACCUMULATE = 1u;
const BIAS = 2u;

struct Tile { row: u32, column: u32 }

fn tile(number: u32, lane: u32) -> Tile {
    let across = (p.n + 4u * COLUMN_LANES - 1u) / (4u * COLUMN_LANES);
    return Tile((number / across) * 8u, (number % across) * 4u * COLUMN_LANES + lane);
}

// The tile's columns, those past the edge brought back.
fn columns_of(t: Tile) -> vec4<u32> {
    return min(t.column + COLUMN_LANES * vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(p.n - 1u));
}

fn store(row: u32, t: Tile, sum: vec4<f32>) {
    if row >= p.m {
        return;
    }
    for (var j = 0u; j < 4u; j++) {
        let column = t.column + j * COLUMN_LANES;
        if column < p.n {
            var start = 0.0;
            if p.start == ACCUMULATE {
                start = c[row * p.n + column];
            } else if p.start == BIAS {
                start = bias[column];
            }
            c[row * p.n + column] = start + sum[j];
        }
    }
}

@compute @workgroup_size(32)
fn nt(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
      @builtin(local_invocation_index) lane: u32) {
    let t = tile(group_number(group, groups), lane);
    let last = p.m - 1u;
    let r0 = min(t.row, last) * p.k;
    let r1 = min(t.row + 1u, last) * p.k;
    let r2 = min(t.row + 2u, last) * p.k;
    let r3 = min(t.row + 3u, last) * p.k;
    let r4 = min(t.row + 4u, last) * p.k;
    let r5 = min(t.row + 5u, last) * p.k;
    let r6 = min(t.row + 6u, last) * p.k;
    let r7 = min(t.row + 7u, last) * p.k;
    let s = columns_of(t) * p.k;
    var c0 = vec4<f32>(0.0);
    var c1 = vec4<f32>(0.0);
    var c2 = vec4<f32>(0.0);
    var c3 = vec4<f32>(0.0);
    var c4 = vec4<f32>(0.0);
    var c5 = vec4<f32>(0.0);
    var c6 = vec4<f32>(0.0);
    var c7 = vec4<f32>(0.0);
    for (var q = 0u; q < p.k; q++) {
        let x = vec4<f32>(b[s.x + q], b[s.y + q], b[s.z + q], b[s.w + q]);
        c0 = fma(vec4<f32>(a[r0 + q]), x, c0);
        c1 = fma(vec4<f32>(a[r1 + q]), x, c1);
        c2 = fma(vec4<f32>(a[r2 + q]), x, c2);
        c3 = fma(vec4<f32>(a[r3 + q]), x, c3);
        c4 = fma(vec4<f32>(a[r4 + q]), x, c4);
        c5 = fma(vec4<f32>(a[r5 + q]), x, c5);
        c6 = fma(vec4<f32>(a[r6 + q]), x, c6);
        c7 = fma(vec4<f32>(a[r7 + q]), x, c7);
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
    let last = p.m - 1u;
    let r0 = min(t.row, last) * p.k;
    let r1 = min(t.row + 1u, last) * p.k;
    let r2 = min(t.row + 2u, last) * p.k;
    let r3 = min(t.row + 3u, last) * p.k;
    let r4 = min(t.row + 4u, last) * p.k;
    let r5 = min(t.row + 5u, last) * p.k;
    let r6 = min(t.row + 6u, last) * p.k;
    let r7 = min(t.row + 7u, last) * p.k;
    let s = columns_of(t);
    var c0 = vec4<f32>(0.0);
    var c1 = vec4<f32>(0.0);
    var c2 = vec4<f32>(0.0);
    var c3 = vec4<f32>(0.0);
    var c4 = vec4<f32>(0.0);
    var c5 = vec4<f32>(0.0);
    var c6 = vec4<f32>(0.0);
    var c7 = vec4<f32>(0.0);
    for (var q = 0u; q < p.k; q++) {
        let at = q * p.n;
        let x = vec4<f32>(b[s.x + at], b[s.y + at], b[s.z + at], b[s.w + at]);
        c0 = fma(vec4<f32>(a[r0 + q]), x, c0);
        c1 = fma(vec4<f32>(a[r1 + q]), x, c1);
        c2 = fma(vec4<f32>(a[r2 + q]), x, c2);
        c3 = fma(vec4<f32>(a[r3 + q]), x, c3);
        c4 = fma(vec4<f32>(a[r4 + q]), x, c4);
        c5 = fma(vec4<f32>(a[r5 + q]), x, c5);
        c6 = fma(vec4<f32>(a[r6 + q]), x, c6);
        c7 = fma(vec4<f32>(a[r7 + q]), x, c7);
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
    let last = p.m - 1u;
    let r0 = min(t.row, last);
    let r1 = min(t.row + 1u, last);
    let r2 = min(t.row + 2u, last);
    let r3 = min(t.row + 3u, last);
    let r4 = min(t.row + 4u, last);
    let r5 = min(t.row + 5u, last);
    let r6 = min(t.row + 6u, last);
    let r7 = min(t.row + 7u, last);
    let s = columns_of(t);
    var c0 = vec4<f32>(0.0);
    var c1 = vec4<f32>(0.0);
    var c2 = vec4<f32>(0.0);
    var c3 = vec4<f32>(0.0);
    var c4 = vec4<f32>(0.0);
    var c5 = vec4<f32>(0.0);
    var c6 = vec4<f32>(0.0);
    var c7 = vec4<f32>(0.0);
    for (var q = 0u; q < p.k; q++) {
        let at = q * p.n;
        let from_row = q * p.m;
        let x = vec4<f32>(b[s.x + at], b[s.y + at], b[s.z + at], b[s.w + at]);
        c0 = fma(vec4<f32>(a[from_row + r0]), x, c0);
        c1 = fma(vec4<f32>(a[from_row + r1]), x, c1);
        c2 = fma(vec4<f32>(a[from_row + r2]), x, c2);
        c3 = fma(vec4<f32>(a[from_row + r3]), x, c3);
        c4 = fma(vec4<f32>(a[from_row + r4]), x, c4);
        c5 = fma(vec4<f32>(a[from_row + r5]), x, c5);
        c6 = fma(vec4<f32>(a[from_row + r6]), x, c6);
        c7 = fma(vec4<f32>(a[from_row + r7]), x, c7);
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
