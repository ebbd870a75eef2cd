use super::*;
use crate::catalog::Catalog;

fn purchases(log: &Log) -> Vec<&[u32]> {
    let Log::Sequences(sequences) = log else {
        panic!("the shop has whole sequences");
    };
    sequences.iter().map(|sequence| &*sequence.items).collect()
}

/// HR@10, NDCG@10 and worth-weighted HR@10 of the last purchase of every visitor, for the list that a score
/// `f(probability, item)` puts first.
fn ranked(shop: &Shop, score: impl Fn(f32, usize) -> f32, worth: &[f32]) -> [f64; 3] {
    let mut totals = [0.0; 3];
    for user in 0..USERS {
        let taste = shop.taste(&mut rng(Draw::Visits, user));
        let purchases = shop.purchases(user);
        let (&target, history) = purchases.split_last().unwrap();
        let last = shop.category_of(*history.last().unwrap());
        let mut scores = Vec::with_capacity(shop.items());
        for (category, share) in shop
            .next_category(&taste, Some(last))
            .into_iter()
            .enumerate()
        {
            let sales = shop.next_item(category, history);
            let total: f32 = sales.iter().sum::<f32>().max(f32::MIN_POSITIVE);
            scores.extend(sales.iter().map(|weight| share * weight / total));
        }
        for (item, value) in scores.iter_mut().enumerate() {
            *value = score(*value, item);
        }
        let own = scores[target as usize];
        let rank = scores.iter().filter(|&&other| other > own).count();
        if rank < 10 {
            let gain = 1.0 / (rank as f64 + 2.0).log2();
            totals[0] += 1.0 / USERS as f64;
            totals[1] += gain / USERS as f64;
            totals[2] += worth[target as usize] as f64 / USERS as f64;
        }
    }
    totals
}

#[test]
fn the_shop_is_as_large_and_as_skewed_as_it_says() {
    let shop = build();
    let catalog = &Catalog::new(shop.items).unwrap();
    assert!(
        (1_900..2_100).contains(&catalog.items()),
        "{}",
        catalog.items()
    );
    assert_eq!(catalog.sids(), catalog.items());
    assert_eq!(catalog.codebooks(), [10, 10, 32]);
    assert_eq!(catalog.embeddings().unwrap().dim, EMBEDDING_DIM);
    let sequences = purchases(&shop.log);
    let total: usize = sequences.iter().map(|items| items.len()).sum();
    let mean = total as f64 / USERS as f64;
    assert!((9.0..11.0).contains(&mean), "{mean}");
    for &items in &sequences {
        assert!((LENGTH.0..=LENGTH.1).contains(&items.len()));
        let distinct: std::collections::HashSet<_> = items.iter().collect();
        assert_eq!(distinct.len(), items.len(), "an item twice");
    }
    // Worth: two classes, mean 1 over training purchases, and popularity does not follow it.
    let trained = || sequences.iter().flat_map(|items| &items[..items.len() - 2]);
    let total: f64 = trained()
        .map(|&item| catalog.worth()[item as usize] as f64)
        .sum();
    assert!((total / trained().count() as f64 - 1.0).abs() < 1e-5);
    let high = catalog.worth().iter().filter(|&&worth| worth > 1.5).count();
    assert!(
        (0.2..0.35).contains(&(high as f64 / catalog.items() as f64)),
        "{high}"
    );
    let mean: f64 = catalog
        .worth()
        .iter()
        .map(|&worth| worth as f64)
        .sum::<f64>()
        / catalog.items() as f64;
    assert!((mean - 1.0).abs() < 0.05, "{mean}");
}

/// What can be learned here, by the probabilities the shop was drawn from: a model that knows them all.
#[test]
fn worth_is_to_be_had_at_little_cost_and_popularity_is_no_answer() {
    let shop = Shop::new();
    let data = build();
    let worth = &data.items.worth;
    let sequences = purchases(&data.log);
    let mut counts = vec![0.0f32; shop.items()];
    for &item in sequences.iter().flat_map(|items| &items[..items.len() - 2]) {
        counts[item as usize] += 1.0;
    }
    let [likely, popular, worthy] = [
        ranked(&shop, |p, _| p, worth),
        ranked(&shop, |_, item| counts[item], worth),
        ranked(&shop, |p, item| p * worth[item].sqrt(), worth),
    ];
    let [hits, gain, value] = likely;
    assert!((0.25..0.40).contains(&hits), "{likely:?}");
    assert!(popular[0] < 0.2 * hits, "{popular:?}");
    assert!(worthy[2] > 1.3 * value, "{worthy:?} {likely:?}");
    assert!(worthy[1] > 0.95 * gain, "{worthy:?} {likely:?}");
}

/// A change of any draw changes every published figure: let it be on purpose.
#[test]
fn the_shop_is_always_the_same() {
    let shop = Shop::new();
    let mark = (0..USERS)
        .flat_map(|user| shop.purchases(user))
        .fold(0u64, |mark, item| {
            mark.wrapping_mul(31).wrapping_add(item as u64)
        });
    assert_eq!(mark, 11_863_053_481_052_255_562);
}
