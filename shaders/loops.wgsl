// counts[1] = how often a loop goes round whose condition holds counts[0] times. One invocation.
@group(0) @binding(0) var<storage, read_write> counts: array<u32>;

@compute @workgroup_size(1)
fn main() {
    let asked = counts[0];
    var rounds = 0u;
    for (var i = 0u; i < asked; i++) {
        rounds += 1u;
    }
    counts[1] = rounds;
}
