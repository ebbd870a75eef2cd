// A forest's records (src/kernels/rows.rs): ROW words per token, these fields among them.
const ROW: u32 = 10u;
const POSITION: u32 = 1u;
const KV_BEGIN: u32 = 2u;
const KV_END: u32 = 3u;
const SLOT: u32 = 4u;
const CHAIN: u32 = 5u;
const Q_BEGIN: u32 = 6u;
const Q_END: u32 = 7u;
const TREE_BEGIN: u32 = 8u;
const TREE_END: u32 = 9u;
const NONE: u32 = 0xffffffffu;
