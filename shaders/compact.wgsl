// Moves the active rows of a search's next forward, and their entries, to the front, in order, and counts them. One
// workgroup, 64 rows at a time: a row never moves past one that is still to be read.
struct Params { rows: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> rows: array<u32>;        // [n, ROW]
@group(0) @binding(2) var<storage, read_write> entry: array<u32>;       // [n, 2]
@group(0) @binding(3) var<storage, read_write> count: array<u32>;       // [1]

const ROW = 10u;
const NONE = 0xffffffffu;
const LANES = 64u;
var<workgroup> present: array<u32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32) {
    var done = 0u;
    for (var base = 0u; base < p.rows; base += LANES) {
        let i = min(base + lane, p.rows - 1u);
        let own = vec2<u32>(entry[2u * i], entry[2u * i + 1u]);
        var record = array<u32, ROW>();
        for (var w = 0u; w < ROW; w++) {
            record[w] = rows[i * ROW + w];
        }
        let moves = base + lane < p.rows && own.x != NONE;
        present[lane] = select(0u, 1u, moves);
        storageBarrier();
        workgroupBarrier();
        var to = done;
        for (var other = 0u; other < LANES; other++) {
            to += select(0u, present[other], other < lane);
            done += present[other];
        }
        if moves {
            for (var w = 0u; w < ROW; w++) {
                rows[to * ROW + w] = record[w];
            }
            entry[2u * to] = own.x;
            entry[2u * to + 1u] = own.y;
        }
        storageBarrier();
        workgroupBarrier();
    }
    if lane == 0u {
        count[0] = done;
    }
}
