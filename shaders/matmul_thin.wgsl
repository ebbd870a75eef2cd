// The matrix product NT for few rows or few columns (decoding, a single output), where a tile of C would leave most of a
// GPU idle: a workgroup owns 16 rows x 4 columns, and for each column 16 invocations share the sums, every sixteenth
// term each. The sixteen parts are added in order.
//!include matmul
//!include matmul_scalar
//!include matmul_store
//!include grid

const ROWS = 16u;
const COLUMNS = 4u;
const PARTS = 16u;
var<workgroup> partial: array<array<f32, PARTS>, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let number = group_number(group);
    let across = (p.n + COLUMNS - 1u) / COLUMNS;
    let row = (number / across) * ROWS;
    let column = (number % across) * COLUMNS;
    let part = lane % PARTS;
    let own = lane / PARTS;
    let rows = min(max(p.m, row) - row, ROWS);
    let y = min(column + own, p.n - 1u) * p.k;
    var sums: array<f32, ROWS>;
    for (var q = part; q < p.k; q += PARTS) {
        let factor = f32(b[y + q]);
        for (var i = 0u; i < ROWS; i++) {
            if i < rows {
                sums[i] = fma(f32(a[(row + i) * p.k + q]), factor, sums[i]);
            }
        }
    }
    for (var i = 0u; i < ROWS; i++) {
        partial[i * COLUMNS + own][part] = sums[i];
    }
    workgroupBarrier();
    var total = 0.0;
    for (var i = 0u; i < PARTS; i++) {
        total += partial[lane][i];
    }
    store(row + lane / COLUMNS, column + lane % COLUMNS, total);
}
