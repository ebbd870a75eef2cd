// The search state of src/kernels/search.rs: per prompt a header record, then one record per tree node, 8 words each.
const NONE: u32 = 0xffffffffu;
const RECORD: u32 = 8u;
// Words of a forest row (src/forest.rs).
const ROW: u32 = 10u;
// Header.
const KV_BEGIN: u32 = 0u;
const KV_END: u32 = 1u;
const DOCUMENT: u32 = 2u;
const COUNT: u32 = 3u;
const FRONTIER: u32 = 4u;
const COST: u32 = 5u;
const DRAWS: u32 = 6u;
const DEAD_ENDS: u32 = 7u;
// Node.
const TRIE: u32 = 0u;
const PARENT: u32 = 1u;
const DEPTH: u32 = 2u;
const VISITS: u32 = 3u;
const CHILDREN: u32 = 4u;
const CLOSED: u32 = 5u;
const FIRST: u32 = 6u;
const NEXT: u32 = 7u;
// Float record of a node.
const STATS: u32 = 5u;
const VALUE: u32 = 0u;
const ENTROPY: u32 = 1u;
const SCORE: u32 = 2u;
const LOGP: u32 = 3u;
const CUMULATIVE: u32 = 4u;
