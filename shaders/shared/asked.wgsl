// What a prompt's candidates are judged by (src/kernels/tree.rs). The kernel declares p.levels, the bindings `asked` and
// `rows`, and includes paths and rows.
const ASKED: u32 = 4u;
const END: u32 = 1u;
const WANTED: u32 = 2u;
const WORTH: u32 = 3u;

// Whether the prompt of b holds the tokens of candidate c, one after the other.
fn is_in_prompt(b: u32, c: u32) -> bool {
    let question = b * (ASKED + p.levels);
    for (var row = asked[question]; row + p.levels <= asked[question + END]; row++) {
        var same = 0u;
        while same < p.levels && rows[(row + same) * ROW] == picked[path(b, c) + 1u + same] {
            same++;
        }
        if same == p.levels {
            return true;
        }
    }
    return false;
}
