// The matrix product, any m, n, k, through cooperative matrices (tensor cores, simdgroup matrices) of SIDE x SIDE: a
// workgroup of 256 owns 4 x 4 of them. A and B pass through workgroup memory 16 terms at a time, with zeros past the
// edge. A subgroup, of 64 lanes at most, keeps two neighbours of one row of matrices in registers, or, where there are
// only four subgroups, twice that. Where there are more than eight, several do the same and store the same: control flow
// must not depend on the subgroup. The sums leave through workgroup memory too, so that what is stored is inside.
//
// The includer says SIDE and the types FromA, FromB and Sums. Indices and strides are values of their own, or naga does
// not emit them before their use.
//!include matmul
//!include matmul_scalar
//!include matmul_store
//!include grid

const SPAN = 4u * SIDE;
const DEPTH = 16u;
const LANES = 256u;
// Two neighbouring matrices of sums each.
const UNITS = 8u;
var<workgroup> a_tile: array<a_t, SPAN * DEPTH>;
var<workgroup> b_tile: array<b_t, DEPTH * SPAN>;
var<workgroup> c_tile: array<f32, UNITS * SIDE * SIDE>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32,
        @builtin(subgroup_id) subgroup: u32, @builtin(num_subgroups) subgroups: u32) {
    let number = group_number(group);
    let across = (p.n + SPAN - 1u) / SPAN;
    let row = (number / across) * SPAN;
    let column = (number % across) * SPAN;
    let a_stride = a_strides();
    let b_stride = b_strides();
    let near = subgroup % UNITS;
    let far = (subgroup + subgroups) % UNITS;
    // By way of memory the number of subgroups is known to be uniform.
    if lane == 0u {
        c_tile[0] = f32(subgroups);
    }
    let has_far = workgroupUniformLoad(&c_tile[0]) < f32(UNITS);
    var near0 = Sums();
    var near1 = Sums();
    var far0 = Sums();
    var far1 = Sums();
    for (var base = 0u; base < p.k; base += DEPTH) {
        // Consecutive lanes load consecutive addresses: along k, or across it where the operand is so stored.
        for (var t = lane; t < SPAN * DEPTH; t += LANES) {
            let at = select(vec2<u32>(t / DEPTH, t % DEPTH), vec2<u32>(t % SPAN, t / SPAN), TRANSPOSE_A);
            var value = a_t(0.0);
            if row + at.x < p.m && base + at.y < p.k {
                let source = (row + at.x) * a_stride.x + (base + at.y) * a_stride.y;
                value = a_element(source, row + at.x, base + at.y);
            }
            a_tile[at.x * DEPTH + at.y] = value;
        }
        for (var t = lane; t < SPAN * DEPTH; t += LANES) {
            let at = select(vec2<u32>(t % SPAN, t / SPAN), vec2<u32>(t / DEPTH, t % DEPTH), TRANSPOSE_B);
            var value = b_t(0.0);
            if column + at.x < p.n && base + at.y < p.k {
                value = b[(column + at.x) * b_stride.x + (base + at.y) * b_stride.y];
            }
            b_tile[at.y * SPAN + at.x] = value;
        }
        workgroupBarrier();
        for (var q = 0u; q < DEPTH; q += SIDE) {
            let near_a = (near / 2u) * SIDE * DEPTH + q;
            let near_b0 = q * SPAN + (near % 2u) * 2u * SIDE;
            let near_b1 = near_b0 + SIDE;
            let near_rows = coopLoadT<FromA>(&a_tile[near_a], DEPTH);
            let near_columns0 = coopLoadT<FromB>(&b_tile[near_b0], SPAN);
            let near_columns1 = coopLoadT<FromB>(&b_tile[near_b1], SPAN);
            near0 = coopMultiplyAdd(near_rows, near_columns0, near0);
            near1 = coopMultiplyAdd(near_rows, near_columns1, near1);
            if has_far {
                let far_a = (far / 2u) * SIDE * DEPTH + q;
                let far_b0 = q * SPAN + (far % 2u) * 2u * SIDE;
                let far_b1 = far_b0 + SIDE;
                let far_rows = coopLoadT<FromA>(&a_tile[far_a], DEPTH);
                let far_columns0 = coopLoadT<FromB>(&b_tile[far_b0], SPAN);
                let far_columns1 = coopLoadT<FromB>(&b_tile[far_b1], SPAN);
                far0 = coopMultiplyAdd(far_rows, far_columns0, far0);
                far1 = coopMultiplyAdd(far_rows, far_columns1, far1);
            }
        }
        workgroupBarrier();
    }
    for (var side = 0u; side < 2u; side++) {
        let near_to = near * SIDE * SIDE;
        let far_to = far * SIDE * SIDE;
        if side == 0u {
            coopStoreT(near0, &c_tile[near_to], SIDE);
        } else {
            coopStoreT(near1, &c_tile[near_to], SIDE);
        }
        if has_far {
            if side == 0u {
                coopStoreT(far0, &c_tile[far_to], SIDE);
            } else {
                coopStoreT(far1, &c_tile[far_to], SIDE);
            }
        }
        workgroupBarrier();
        for (var t = lane; t < UNITS * SIDE * SIDE; t += LANES) {
            let unit = t / (SIDE * SIDE);
            let i = (unit / 2u) * SIDE + t % (SIDE * SIDE) / SIDE;
            let j = ((unit % 2u) * 2u + side) * SIDE + t % SIDE;
            store(row + i, column + j, c_tile[t]);
        }
        workgroupBarrier();
    }
}
