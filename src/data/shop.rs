//! The built-in shop: a small, deterministic, learnable store, so that `vstar train` runs without any file.
//!
//! Items stand in a taxonomy of department, category and maker, and these three are the levels of the SID. A visitor's
//! next purchase is drawn from a mixture: what usually follows the last purchase (a transition graph over categories,
//! as accessories follow a camera; there are two kinds of visitors, each with its own graph), the visitor's own taste
//! (a few favourite categories), or a whim. Inside a category the makers sell almost equally well. Their margins (the
//! worth of an item) differ a lot, depend mostly on the maker, and have nothing to do with how well an item sells:
//! likelihood alone cannot learn to prefer the better margin, a policy rewarded with it can, and among near-ties that
//! costs it little accuracy.
//!
//! A recommender that knew these probabilities would reach HR@10 0.31 and NDCG@10 0.14 on the test split, one that knew
//! only the last category 0.27, and the ten most popular items 0.04; weighing likelihood by the root of the worth gains
//! 44 % of worth-weighted HR@10 for 2 % of NDCG@10.
//!
//! The shop has its own fixed seed: it is the same for every seed of a run.

use super::{Log, Sequence, Source};
use crate::catalog::{Embeddings, Items};
use crate::rng::{Rng, Stream};

/// Longest history of an example: earlier purchases add next to nothing to what the last ten say.
pub(super) const MAX_HISTORY: usize = 10;

const SEED: u64 = 20_260_210;
const USERS: usize = 5_000;

/// Makers in each category, drawn from this range: 20 on average, hence about 2,000 items. More than the ten of HR@10,
/// so that a good list is a choice among near-ties.
const MAKERS_PER_CATEGORY: (usize, usize) = (12, 28);
/// Purchases of a visitor: six, and then on average about four more, at most twenty in all.
const LENGTH: (usize, usize) = (6, 20);
const MEAN_EXTRA: f32 = 4.4;

/// Kinds of visitors, equally many. A kind has its own popular categories and its own transition graph, so what comes
/// next depends on the whole history, which gives the kind away, and not on the last purchase only.
const KINDS: usize = 2;
/// Where the next category comes from: the transition graph, the visitor's taste, else a whim. The graph leads, so
/// that one category stands out after each purchase and its items are clearly ahead of all others.
const FOLLOW: f32 = 0.70;
const TASTE: f32 = 0.24;
/// Shares of a category's three successors: two in its department, the third anywhere.
const SUCCESSORS: [f32; 3] = [0.80, 0.12, 0.08];
/// Shares of a visitor's three favourite categories: two in one department, the third anywhere.
const FAVOURITES: [f32; 3] = [0.5, 0.3, 0.2];
/// Zipf exponent of the popularity of departments and categories: the long tail.
const CATEGORY_ZIPF: f32 = 1.2;
/// Zipf exponent of the makers inside a category: near-ties.
const MAKER_ZIPF: f32 = 0.05;

/// Makers with high margins, and the chance that an item of such a maker (of any other) has a high margin. About one
/// item in four; and since a maker is a code of the SID's last level, what a policy learns of it in one category
/// mostly holds in the next.
const PREMIUM_MAKERS: usize = 8;
const PREMIUM_CHANCE: (f32, f32) = (0.85, 0.08);
/// Margin of a high-margin item over that of the others, before `MARGIN_SPREAD` (a relative half-width). Below the
/// ratio of likelihoods between the expected category and the next, so that worth orders the items inside a
/// category before it reorders categories.
const PREMIUM_MARGIN: f32 = 4.0;
const MARGIN_SPREAD: f32 = 0.15;

/// Embeddings: a centroid per department, one per category around it, and each item around that.
const EMBEDDING_DIM: usize = 32;
const CATEGORY_SPREAD: f32 = 0.7;
const ITEM_SPREAD: f32 = 0.4;

/// Departments, and the categories of each.
const TAXONOMY: [(&str, &str); 10] = [
    (
        "Kitchen",
        "Kettles Knives Pans Mugs Scales Graters Teapots Toasters Aprons Jars",
    ),
    (
        "Photo",
        "Cameras Lenses Tripods Filters Flashes Straps Bags Batteries Cards Frames",
    ),
    (
        "Garden",
        "Spades Seeds Pots Hoses Gloves Rakes Shears Lanterns Feeders Benches",
    ),
    (
        "Office",
        "Pens Notebooks Binders Lamps Staplers Folders Chairs Inks Labels Desks",
    ),
    (
        "Sport",
        "Shoes Balls Rackets Mats Weights Bottles Helmets Towels Ropes Watches",
    ),
    (
        "Music",
        "Guitars Strings Picks Amplifiers Cables Stands Drums Keyboards Reeds Tuners",
    ),
    (
        "Toys",
        "Puzzles Blocks Dolls Trains Kites Cards Dice Robots Yo-yos Marbles",
    ),
    (
        "Pets",
        "Leashes Bowls Beds Brushes Treats Aquariums Cages Collars Litter Toys",
    ),
    (
        "Beauty",
        "Soaps Creams Brushes Combs Mirrors Perfumes Lotions Razors Masks Oils",
    ),
    (
        "Travel",
        "Suitcases Maps Adapters Pillows Locks Tents Stoves Torches Compasses Flasks",
    ),
];
const CATEGORIES: usize = 100;

const MAKERS: [&str; 32] = [
    "Alder", "Birch", "Cedar", "Dogwood", "Elm", "Fir", "Ginkgo", "Hazel", "Ironwood", "Juniper",
    "Kauri", "Larch", "Maple", "Nutmeg", "Oak", "Pine", "Quince", "Rowan", "Spruce", "Teak",
    "Umbra", "Viburnum", "Willow", "Xylo", "Yew", "Zelkova", "Aspen", "Beech", "Cypress", "Ebony",
    "Holly", "Laurel",
];

/// What a step of the construction draws for; each has its own counters.
#[derive(Clone, Copy)]
enum Draw {
    Popularity,
    Assortment,
    Graph,
    Margins,
    Embeddings,
    Visits,
}

fn rng(draw: Draw, document: usize) -> Rng {
    Rng::new(SEED, Stream::Shop, draw as u32, document as u32)
}

/// The store as its visitors see it: all that the next purchase depends on.
struct Shop {
    /// For each kind of visitor, the popularity of each category.
    popularity: Vec<Vec<f32>>,
    /// For each kind of visitor, what usually follows each category.
    successors: Vec<Vec<[usize; 3]>>,
    /// `(maker, sales weight)` of the items of each category; items are numbered in this order.
    assortment: Vec<Vec<(u32, f32)>>,
    /// First item of each category, and the number of items.
    first_item: Vec<usize>,
}

/// Builds the shop and everything its visitors bought.
pub(super) fn build() -> Source {
    let shop = Shop::new();
    let sequences: Vec<Vec<u32>> = (0..USERS).map(|user| shop.purchases(user)).collect();
    let mut items = Items {
        levels: 3,
        embeddings: Some(embeddings(&shop)),
        worth: margins(&shop, &sequences),
        ..Items::default()
    };
    for (category, assortment) in shop.assortment.iter().enumerate() {
        let (department, categories) = TAXONOMY[category / 10];
        let shelves: Vec<&str> = categories.split(' ').collect();
        for &(maker, _) in assortment {
            items.names.push(format!("{category:02}-{maker:02}"));
            items.titles.push(format!(
                "{department} / {} / {}",
                shelves[category % 10],
                MAKERS[maker as usize]
            ));
            items
                .codes
                .extend([category as u32 / 10, category as u32 % 10, maker]);
        }
    }
    let sequences = (0..).zip(sequences);
    Source {
        name: "shop".into(),
        items,
        users: (0..USERS)
            .map(|user| format!("visitor-{user:04}"))
            .collect(),
        log: Log::Sequences(
            sequences
                .map(|(user, items)| Sequence::untimed(user, items))
                .collect(),
        ),
        warnings: Vec::new(),
    }
}

/// What is lasting about a visitor.
struct Taste {
    kind: usize,
    favourites: [usize; 3],
}

impl Shop {
    fn new() -> Shop {
        let popularity: Vec<Vec<f32>> = (0..KINDS).map(category_popularity).collect();
        let successors = (popularity.iter().enumerate())
            .map(|(kind, popularity)| {
                let rng = |category| rng(Draw::Graph, kind * CATEGORIES + category);
                (0..CATEGORIES)
                    .map(|category| related(category, popularity, &mut rng(category)))
                    .collect()
            })
            .collect();
        let mut assortment = Vec::with_capacity(CATEGORIES);
        let mut first_item = vec![0];
        for category in 0..CATEGORIES {
            let rng = &mut rng(Draw::Assortment, category);
            let (least, most) = MAKERS_PER_CATEGORY;
            let count = least + rng.below(most - least + 1);
            let mut makers: Vec<u32> = (0..MAKERS.len() as u32).collect();
            rng.shuffle(&mut makers);
            makers.truncate(count);
            makers.sort();
            assortment.push(
                makers
                    .into_iter()
                    .zip(zipf(count, MAKER_ZIPF, rng))
                    .collect(),
            );
            first_item.push(first_item[category] + count);
        }
        Shop {
            popularity,
            successors,
            assortment,
            first_item,
        }
    }

    fn items(&self) -> usize {
        self.first_item[CATEGORIES]
    }

    fn category_of(&self, item: u32) -> usize {
        self.first_item
            .partition_point(|&first| first <= item as usize)
            - 1
    }

    /// Probability of each category being next, after a purchase from `last` (none at the start of a visit).
    fn next_category(&self, taste: &Taste, last: Option<usize>) -> Vec<f32> {
        let popularity = &self.popularity[taste.kind];
        let whim = (1.0 - FOLLOW - TASTE) / popularity.iter().sum::<f32>();
        let mut weights: Vec<f32> = popularity.iter().map(|share| share * whim).collect();
        for (category, share) in taste.favourites.into_iter().zip(FAVOURITES) {
            weights[category] += share * TASTE;
        }
        if let Some(category) = last {
            for (next, share) in self.successors[taste.kind][category]
                .into_iter()
                .zip(SUCCESSORS)
            {
                weights[next] += share * FOLLOW;
            }
        }
        weights
    }

    /// Sales weights of the items of `category`, none left for what is already in `bought`.
    fn next_item(&self, category: usize, bought: &[u32]) -> Vec<f32> {
        let item = |at: usize| (self.first_item[category] + at) as u32;
        let assortment = self.assortment[category].iter().enumerate();
        assortment
            .map(|(at, &(_, sales))| {
                if bought.contains(&item(at)) {
                    0.0
                } else {
                    sales
                }
            })
            .collect()
    }

    /// The taste of a visitor: the first draws of `rng`.
    fn taste(&self, rng: &mut Rng) -> Taste {
        let kind = rng.below(KINDS);
        let popularity = &self.popularity[kind];
        let home = rng.weighted(popularity);
        let [second, _, third] = related(home, popularity, rng);
        Taste {
            kind,
            favourites: [home, second, third],
        }
    }

    /// All purchases of a visitor, in order; no item twice.
    fn purchases(&self, user: usize) -> Vec<u32> {
        let rng = &mut rng(Draw::Visits, user);
        let taste = self.taste(rng);
        let (least, most) = LENGTH;
        let extra = -rng.uniform().ln() * MEAN_EXTRA;
        let length = (least + extra as usize).min(most);
        let mut items: Vec<u32> = Vec::with_capacity(length);
        while items.len() < length {
            let last = items.last().map(|&item| self.category_of(item));
            let category = rng.weighted(&self.next_category(&taste, last));
            let sales = self.next_item(category, &items);
            // A visitor who owns a whole category looks elsewhere.
            if sales.iter().any(|&weight| weight > 0.0) {
                items.push((self.first_item[category] + rng.weighted(&sales)) as u32);
            }
        }
        items
    }
}

/// `n` Zipf weights in random order.
fn zipf(n: usize, exponent: f32, rng: &mut Rng) -> Vec<f32> {
    let mut weights: Vec<f32> = (1..=n).map(|rank| (rank as f32).powf(-exponent)).collect();
    rng.shuffle(&mut weights);
    weights
}

/// Popularity of each category among visitors of a kind: its department's, times its own in there.
fn category_popularity(kind: usize) -> Vec<f32> {
    let rng = &mut rng(Draw::Popularity, kind);
    (zipf(10, CATEGORY_ZIPF, rng).into_iter())
        .flat_map(|department| {
            zipf(10, CATEGORY_ZIPF, rng)
                .into_iter()
                .map(move |own| department * own)
        })
        .collect()
}

/// Three other categories, distinct, drawn by popularity: two of the department of `category`, one of any.
fn related(category: usize, popularity: &[f32], rng: &mut Rng) -> [usize; 3] {
    let mut weights = popularity.to_vec();
    weights[category] = 0.0;
    let department = category / 10 * 10;
    let mut take = |weights: &mut Vec<f32>, from: std::ops::Range<usize>| {
        let taken = from.start + rng.weighted(&weights[from]);
        weights[taken] = 0.0;
        taken
    };
    let first = take(&mut weights, department..department + 10);
    let second = take(&mut weights, department..department + 10);
    [first, second, take(&mut weights, 0..CATEGORIES)]
}

/// The margin of each item, scaled so that the mean over all purchases is 1.
fn margins(shop: &Shop, sequences: &[Vec<u32>]) -> Vec<f32> {
    let rng = &mut rng(Draw::Margins, 0);
    let mut makers: Vec<usize> = (0..MAKERS.len()).collect();
    rng.shuffle(&mut makers);
    let premium_makers = &makers[..PREMIUM_MAKERS];
    let mut margins: Vec<f32> = (shop.assortment.iter().flatten())
        .map(|&(maker, _)| {
            let (of_premium, of_other) = PREMIUM_CHANCE;
            let premium = premium_makers.contains(&(maker as usize));
            let chance = if premium { of_premium } else { of_other };
            let margin = if rng.uniform() < chance {
                PREMIUM_MARGIN
            } else {
                1.0
            };
            margin * (1.0 + MARGIN_SPREAD * (2.0 * rng.uniform() - 1.0))
        })
        .collect();
    // All but the last two purchases of a visitor are training interactions under leave-one-out.
    let trained = sequences.iter().flat_map(|items| &items[..items.len() - 2]);
    let (sum, count) = trained.fold((0.0, 0), |(sum, count), &item| {
        (sum + margins[item as usize] as f64, count + 1)
    });
    let scale = count as f64 / sum;
    for margin in &mut margins {
        *margin = (*margin as f64 * scale) as f32;
    }
    margins
}

fn embeddings(shop: &Shop) -> Embeddings {
    let around = |centre: &[f32], spread: f32, rng: &mut Rng| -> Vec<f32> {
        centre.iter().map(|x| x + spread * rng.normal()).collect()
    };
    let mut data = Vec::with_capacity(shop.items() * EMBEDDING_DIM);
    let mut department = Vec::new();
    for (category, assortment) in shop.assortment.iter().enumerate() {
        let rng = &mut rng(Draw::Embeddings, category);
        if category % 10 == 0 {
            department = around(&[0.0; EMBEDDING_DIM], 1.0, rng);
        }
        let centre = around(&department, CATEGORY_SPREAD, rng);
        for _ in assortment {
            data.extend(around(&centre, ITEM_SPREAD, rng));
        }
    }
    Embeddings {
        dim: EMBEDDING_DIM,
        data,
    }
}

#[cfg(test)]
mod tests;
