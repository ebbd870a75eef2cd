// Parameters that the device holds (src/device/size.rs): words of `counts` go into the parameter slots of the launches
// that follow. A patch is PATCH words: the parameter's word, the word of `counts`, and how one becomes the other. One
// invocation per patch.
struct Params { first: u32, count: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> patches: array<u32>;
@group(0) @binding(2) var<storage, read> counts: array<u32>;
@group(0) @binding(3) var<storage, read_write> slots: array<u32>;

const PATCH = 7u;
const LENGTH = 0u;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= p.count {
        return;
    }
    let at = (p.first + id.x) * PATCH;
    let word = counts[patches[at + 1u]];
    let a = patches[at + 3u];
    if patches[at + 2u] == LENGTH {
        let counted = min(word - min(a, word), patches[at + 4u]);
        let per = patches[at + 6u];
        slots[patches[at]] = (patches[at + 5u] * counted + per - 1u) / per;
    } else {
        slots[patches[at]] = bitcast<u32>(bitcast<f32>(a) / f32(max(word, 1u)));
    }
}
