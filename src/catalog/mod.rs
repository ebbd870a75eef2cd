//! The catalog (spec 1): items, their semantic IDs, the token vocabulary and the trie of legal SIDs.
//!
//! Three kinds of index, all `u32`, none interchangeable:
//! - an *item* is a row of the catalog, in the order of the input;
//! - an *SID* is a distinct code word, in lexicographic order; several items may share one (a collision);
//! - a *token* is a vocabulary entry: [`PAD`], [`BOS`], then the codes of level 0, of level 1, and so on.

mod trie;

use std::collections::HashMap;

use anyhow::{Result, bail, ensure};

use crate::fingerprint::fnv1a;

pub use trie::{LevelShape, Trie};

/// Token that stands for nothing; never predicted.
pub const PAD: u32 = 0;
/// Token every prompt starts with.
pub const BOS: u32 = 1;
/// Number of tokens before the first code.
pub const SPECIAL_TOKENS: u32 = 2;
/// Largest vocabulary accepted. Real codebooks have 256 to a few thousand codes; a code beyond this is a typing
/// error, which would otherwise show as an allocation failure deep in the model.
const MAX_VOCAB: u64 = 1 << 22;
/// Longest SID accepted. Real ones have three to eight codes, and every code is a pass of the model.
const MAX_LEVELS: usize = 64;

/// One vector per item, for semantic rewards and diversity.
#[derive(Clone, Debug)]
pub struct Embeddings {
    pub dim: usize,
    /// `[items, dim]`, row-major.
    pub data: Vec<f32>,
}

impl Embeddings {
    /// The vector of one item.
    pub fn row(&self, item: u32) -> &[f32] {
        &self.data[item as usize * self.dim..][..self.dim]
    }

    fn mean(&self) -> Vec<f64> {
        let rows = self.data.chunks_exact(self.dim);
        let count = rows.len() as f64;
        let mut mean = vec![0.0; self.dim];
        for row in rows {
            for (sum, &x) in mean.iter_mut().zip(row) {
                *sum += x as f64;
            }
        }
        mean.iter_mut().for_each(|sum| *sum /= count);
        mean
    }

    /// Each vector less the mean of all, before it is rounded.
    fn about_mean(&self) -> impl Iterator<Item = Vec<f64>> {
        let (mean, rows) = (self.mean(), self.data.chunks_exact(self.dim));
        rows.map(move |row| row.iter().zip(&mean).map(|(&x, m)| x as f64 - m).collect())
    }

    /// The vectors less their mean.
    pub fn centred(&self) -> Embeddings {
        Embeddings {
            dim: self.dim,
            data: self.about_mean().flatten().map(|x| x as f32).collect(),
        }
    }

    /// The direction of each vector from the mean of all: of length 1, or zeros where it is the mean.
    pub fn directions(&self) -> Embeddings {
        let unit = |row: Vec<f64>| {
            let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            let length = if length > 0.0 { length } else { 1.0 };
            row.into_iter().map(move |x| (x / length) as f32)
        };
        Embeddings {
            dim: self.dim,
            data: self.about_mean().flat_map(unit).collect(),
        }
    }
}

/// What an importer knows about the items; [`Catalog::new`] derives the rest.
#[derive(Clone, Debug, Default)]
pub struct Items {
    /// External ids, one per item, distinct.
    pub names: Vec<String>,
    /// Human-readable titles, one per item (some may be empty), or none at all.
    pub titles: Vec<String>,
    /// What an encoder should read beside the titles, one per item (some may be empty), or none at all.
    pub texts: Vec<String>,
    /// L, the length of every SID; 0 without SIDs.
    pub levels: usize,
    /// `[items, levels]` level-local codes, row-major; empty without SIDs.
    pub codes: Vec<u32>,
    pub embeddings: Option<Embeddings>,
    /// Worth of each item (a margin, say), finite and not negative, or empty: all 1.
    pub worth: Vec<f32>,
}

/// Items, SIDs, vocabulary and trie; consistent by construction.
#[derive(Clone, Debug)]
pub struct Catalog {
    items: Items,
    item_of_name: HashMap<String, u32>,
    codebooks: Vec<u32>,
    /// First token of each level.
    level_token: Vec<u32>,
    sid_codes: Vec<u32>,
    sid_tokens: Vec<u32>,
    item_sid: Vec<u32>,
    sid_items_begin: Vec<u32>,
    sid_items: Vec<u32>,
    trie: Trie,
}

/// How many items share an SID.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Collisions {
    /// SIDs with two items or more.
    pub sids: usize,
    /// Items on such an SID.
    pub items: usize,
    /// Most items on one SID (1 when there is no collision).
    pub largest: usize,
}

impl Catalog {
    /// Checks `items` and derives SIDs, vocabulary and trie. The codebook of a level has its largest code plus one.
    /// Texts are dropped: they are for encoders, and only SIDs and titles are of use from here on.
    ///
    /// # Errors
    /// Items without SIDs, a repeated name, and those of [`Items::check`].
    pub fn new(mut items: Items) -> Result<Catalog> {
        items.check()?;
        items.texts = Vec::new();
        let count = items.names.len();
        let levels = items.levels;
        ensure!(levels > 0, "the catalog's SIDs have no codes");
        if items.worth.is_empty() {
            items.worth = vec![1.0; count];
        }
        let mut item_of_name = HashMap::with_capacity(count);
        for (item, name) in items.names.iter().enumerate() {
            if item_of_name.insert(name.clone(), item as u32).is_some() {
                bail!("item {name:?} is there twice: ids must be distinct");
            }
        }

        let codebooks = codebooks(&items)?;
        let level_token: Vec<u32> = codebooks
            .iter()
            .scan(SPECIAL_TOKENS, |next, &size| {
                let first = *next;
                *next += size;
                Some(first)
            })
            .collect();

        // Items by SID, then by index, so that the items of an SID are a run and in order.
        let codes = |item: u32| &items.codes[item as usize * levels..][..levels];
        let mut sid_items: Vec<u32> = (0..count as u32).collect();
        sid_items.sort_by(|&a, &b| codes(a).cmp(codes(b)).then(a.cmp(&b)));
        let mut item_sid = vec![0; count];
        let mut sid_items_begin = Vec::new();
        let mut sid_codes: Vec<u32> = Vec::new();
        for (at, &item) in sid_items.iter().enumerate() {
            if at == 0 || codes(item) != codes(sid_items[at - 1]) {
                sid_items_begin.push(at as u32);
                sid_codes.extend(codes(item));
            }
            item_sid[item as usize] = sid_items_begin.len() as u32 - 1;
        }
        sid_items_begin.push(count as u32);
        let sid_tokens: Vec<u32> = sid_codes
            .iter()
            .enumerate()
            .map(|(at, code)| level_token[at % levels] + code)
            .collect();
        let trie = Trie::new(&sid_tokens, levels);
        Ok(Catalog {
            items,
            item_of_name,
            codebooks,
            level_token,
            sid_codes,
            sid_tokens,
            item_sid,
            sid_items_begin,
            sid_items,
            trie,
        })
    }

    /// Number of items.
    pub fn items(&self) -> usize {
        self.items.names.len()
    }

    /// L, the number of codes in an SID.
    pub fn levels(&self) -> usize {
        self.items.levels
    }

    /// Number of distinct SIDs.
    pub fn sids(&self) -> usize {
        self.sid_items_begin.len() - 1
    }

    /// K_l, the size of each level's codebook.
    pub fn codebooks(&self) -> &[u32] {
        &self.codebooks
    }

    /// The trie of legal SIDs, over tokens.
    pub fn trie(&self) -> &Trie {
        &self.trie
    }

    /// External ids, one per item.
    pub fn names(&self) -> &[String] {
        &self.items.names
    }

    /// External id of an item.
    pub fn name(&self, item: u32) -> &str {
        &self.items.names[item as usize]
    }

    /// The item with an external id.
    pub fn item_of_name(&self, name: &str) -> Option<u32> {
        self.item_of_name.get(name).copied()
    }

    /// Title of an item, if it has one.
    pub fn title(&self, item: u32) -> Option<&str> {
        let title = self.items.titles.get(item as usize)?;
        (!title.is_empty()).then_some(title)
    }

    /// Level-local codes of an item.
    pub fn item_codes(&self, item: u32) -> &[u32] {
        self.sid_codes(self.item_sid(item))
    }

    /// `[items]`: the worth of each item; 1 where the data gives none.
    pub fn worth(&self) -> &[f32] {
        &self.items.worth
    }

    /// Item embeddings, if the data has them.
    pub fn embeddings(&self) -> Option<&Embeddings> {
        self.items.embeddings.as_ref()
    }

    /// The SID of an item.
    pub fn item_sid(&self, item: u32) -> u32 {
        self.item_sid[item as usize]
    }

    /// The items that share an SID, by rising index; never empty.
    pub fn items_of(&self, sid: u32) -> &[u32] {
        let [begin, end] = [sid, sid + 1].map(|s| self.sid_items_begin[s as usize] as usize);
        &self.sid_items[begin..end]
    }

    /// [S, dim] the mean over each SID's items of what `row` says of an item.
    pub fn sid_means<'a>(&self, dim: usize, row: impl Fn(u32) -> &'a [f32]) -> Vec<f32> {
        let mut means = vec![0.0f32; self.sids() * dim];
        for (sid, mean) in means.chunks_exact_mut(dim).enumerate() {
            let items = self.items_of(sid as u32);
            for &item in items {
                for (sum, x) in mean.iter_mut().zip(row(item)) {
                    *sum += x / items.len() as f32;
                }
            }
        }
        means
    }

    /// Level-local codes of an SID.
    pub fn sid_codes(&self, sid: u32) -> &[u32] {
        &self.sid_codes[sid as usize * self.levels()..][..self.levels()]
    }

    /// Tokens of an SID.
    pub fn sid_tokens(&self, sid: u32) -> &[u32] {
        &self.sid_tokens[sid as usize * self.levels()..][..self.levels()]
    }

    /// The prompt of a history: `<bos>` and the items' SIDs, oldest first.
    pub fn prompt(&self, items: &[u32]) -> Vec<u32> {
        let mut tokens = Vec::with_capacity(1 + items.len() * self.levels());
        tokens.push(BOS);
        for &item in items {
            tokens.extend_from_slice(self.sid_tokens(self.item_sid(item)));
        }
        tokens
    }

    /// The SID spelled by `tokens`, or `None` if they are not exactly a legal SID.
    pub fn sid_of_tokens(&self, tokens: &[u32]) -> Option<u32> {
        self.trie.sid_of(self.trie.walk(tokens)?)
    }

    /// Tells catalogs apart that mean different things to a model: other items, or other codes of an item. The order of
    /// the items is none of it.
    pub fn fingerprint(&self) -> String {
        let item = |item: u32| {
            let name = self.name(item).bytes().chain([0xff]);
            let codes = self
                .item_codes(item)
                .iter()
                .flat_map(|code| code.to_le_bytes());
            fnv1a(name.chain(codes))
        };
        let all = (0..self.items() as u32).map(item);
        format!("{:016x}", all.fold(0, u64::wrapping_add))
    }

    /// Number of tokens: special ones, then every code of every level.
    pub fn vocab_size(&self) -> usize {
        (SPECIAL_TOKENS + self.codebooks.iter().sum::<u32>()) as usize
    }

    /// The token of a level-local code.
    pub fn token(&self, level: usize, code: u32) -> u32 {
        debug_assert!(code < self.codebooks[level]);
        self.level_token[level] + code
    }

    /// How many items share an SID.
    pub fn collisions(&self) -> Collisions {
        let sizes = (0..self.sids() as u32).map(|sid| self.items_of(sid).len());
        let shared: Vec<usize> = sizes.filter(|&size| size > 1).collect();
        Collisions {
            sids: shared.len(),
            items: shared.iter().sum(),
            largest: shared.iter().copied().max().unwrap_or(1),
        }
    }
}

impl Items {
    /// The items `kept`, in that order, without what may have been made of interactions: SIDs and embeddings.
    pub fn without_sids(&self, kept: &[u32]) -> Items {
        // Some are there for no item.
        fn rows<T: Clone>(data: &[T], kept: &[u32]) -> Vec<T> {
            let row = |&item: &u32| data.get(item as usize);
            kept.iter().filter_map(row).cloned().collect()
        }
        Items {
            names: rows(&self.names, kept),
            titles: rows(&self.titles, kept),
            texts: rows(&self.texts, kept),
            worth: rows(&self.worth, kept),
            ..Items::default()
        }
    }

    /// Checks what can be said of items with or without SIDs.
    ///
    /// # Errors
    /// No items, arrays whose lengths disagree, SIDs or a codebook beyond any real size, an embedding that is not finite, a
    /// worth that is not finite or is negative. Each names the item.
    pub fn check(&self) -> Result<()> {
        let count = self.names.len();
        ensure!(count > 0, "the catalog has no items");
        ensure!(
            self.codes.len() == count * self.levels,
            "the catalog has {count} items of {} codes but {} codes",
            self.levels,
            self.codes.len()
        );
        ensure!(
            self.levels <= MAX_LEVELS,
            "the SIDs have {} codes, over {MAX_LEVELS}: give every item a few",
            self.levels
        );
        for (what, length) in [
            ("titles", self.titles.len()),
            ("texts", self.texts.len()),
            ("worths", self.worth.len()),
        ] {
            ensure!(
                length == 0 || length == count,
                "the catalog has {count} items but {length} {what}"
            );
        }
        if let Some(item) = (self.worth.iter()).position(|w| !w.is_finite() || *w < 0.0) {
            bail!(
                "item {:?} has worth {}: it must be finite and not negative",
                self.names[item],
                self.worth[item]
            );
        }
        if let Some(embeddings) = &self.embeddings {
            ensure!(
                embeddings.dim > 0 && embeddings.data.len() == count * embeddings.dim,
                "the catalog has {count} items but {} embedding values of dimension {}",
                embeddings.data.len(),
                embeddings.dim
            );
            if let Some(at) = embeddings.data.iter().position(|x| !x.is_finite()) {
                bail!(
                    "item {:?} has an embedding that is not finite",
                    self.names[at / embeddings.dim]
                );
            }
        }
        codebooks(self).map(|_| ())
    }
}

/// K_l: the largest code of each level, plus one.
fn codebooks(items: &Items) -> Result<Vec<u32>> {
    let mut sizes = vec![0u64; items.levels];
    for row in items.codes.chunks_exact(items.levels.max(1)) {
        for (size, &code) in sizes.iter_mut().zip(row) {
            *size = (*size).max(code as u64 + 1);
        }
    }
    if sizes.iter().sum::<u64>() > MAX_VOCAB {
        bail!(
            "the codebooks have {sizes:?} codes, over {MAX_VOCAB} in all: look for a mistyped code"
        );
    }
    Ok(sizes.into_iter().map(|size| size as u32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items() -> Items {
        Items {
            names: ["w", "x", "y", "z"].map(String::from).into(),
            levels: 2,
            codes: vec![1, 0, 0, 4, 1, 0, 0, 2],
            ..Items::default()
        }
    }

    #[test]
    fn sids_are_sorted_and_share_items() {
        let catalog = Catalog::new(items()).unwrap();
        assert_eq!(catalog.codebooks(), [2, 5]);
        assert_eq!(catalog.vocab_size(), 9);
        assert_eq!(catalog.sids(), 3);
        assert_eq!(
            [0, 1, 2, 3].map(|item| catalog.item_sid(item)),
            [2, 1, 2, 0]
        );
        assert_eq!(catalog.items_of(2), [0, 2]);
        assert_eq!(catalog.items_of(0), [3]);
        assert_eq!(catalog.sid_codes(1), [0, 4]);
        assert_eq!(catalog.sid_tokens(1), [2, 8]);
        assert_eq!(catalog.token(1, 4), 8);
        let collisions = catalog.collisions();
        assert_eq!(
            (collisions.sids, collisions.items, collisions.largest),
            (1, 2, 2)
        );
        for sid in 0..3 {
            assert_eq!(catalog.sid_of_tokens(catalog.sid_tokens(sid)), Some(sid));
        }
        for illegal in [&[2, 4][..], &[2], &[2, 8, 8], &[]] {
            assert_eq!(catalog.sid_of_tokens(illegal), None, "{illegal:?}");
        }
    }

    #[test]
    fn bad_items_are_refused_by_name() {
        let refuse = |change: fn(&mut Items), wanted: &str| {
            let mut bad = items();
            change(&mut bad);
            let error = Catalog::new(bad).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        };
        refuse(|i| i.names.clear(), "no items");
        refuse(|i| i.names[3] = "w".into(), "\"w\" is there twice");
        refuse(|i| i.codes.truncate(7), "7 codes");
        refuse(|i| i.codes[3] = u32::MAX, "mistyped");
        refuse(
            |i| (i.levels, i.codes) = (65, vec![0; 4 * 65]),
            "65 codes, over 64",
        );
        refuse(|i| i.titles = vec!["one".into()], "1 titles");
        refuse(
            |i| i.worth = vec![1.0, 1.0, -2.0, 1.0],
            "\"y\" has worth -2",
        );
        refuse(|i| i.worth = vec![1.0], "1 worths");
        refuse(
            |i| {
                i.embeddings = Some(Embeddings {
                    dim: 1,
                    data: vec![0.0, f32::NAN, 0.0, 0.0],
                })
            },
            "\"x\" has an embedding",
        );
    }
}
