use super::*;
use crate::device::cpu::Cpu;
use crate::kernels::harness::devices;
use std::sync::Arc;

fn cpu() -> DeviceRef {
    Arc::new(Cpu::new())
}

/// `each` points around each of `clusters` centres on a circle of radius 10, and which centre each is of; `spread` apart.
fn blobs(clusters: usize, each: usize, spread: f32) -> (Vec<f32>, Vec<u32>) {
    let mut draws = Rng::new(3, rng::Stream::Test, 0, 0);
    let mut owners: Vec<u32> = (0..clusters * each)
        .map(|i| (i % clusters) as u32)
        .collect();
    draws.shuffle(&mut owners);
    let mut points = Vec::new();
    for &owner in &owners {
        let angle = std::f32::consts::TAU * owner as f32 / clusters as f32;
        points.push(10.0 * angle.cos() + spread * draws.normal());
        points.push(10.0 * angle.sin() + spread * draws.normal());
        points.push(spread * draws.normal());
    }
    (points, owners)
}

fn rule(clusters: usize) -> Rule {
    Rule {
        clusters,
        slack: None,
        most_rounds: 100,
        seed: 1,
        level: 0,
    }
}

/// Clusters points of three numbers; the clustering and the error of each round.
fn cluster(device: &DeviceRef, points: &[f32], rule: &Rule) -> (Clustering, Vec<f64>) {
    let means = KMeans::new(device, points, 3, rule.clusters).unwrap();
    let mut errors = Vec::new();
    let made = means.cluster(rule, &mut |_, error| errors.push(error));
    (made.unwrap(), errors)
}

/// Whether two labellings cut the points into the same sets.
fn same_sets(a: &[u32], b: &[u32]) -> bool {
    let pairs: std::collections::BTreeSet<_> = a.iter().zip(b).collect();
    let distinct = |x: &[u32]| x.iter().collect::<std::collections::BTreeSet<_>>().len();
    pairs.len() == distinct(a) && pairs.len() == distinct(b)
}

#[test]
fn separable_clusters_are_found() {
    let (points, owners) = blobs(7, 40, 0.3);
    let (made, _) = cluster(&cpu(), &points, &rule(7));
    assert!(same_sets(&made.code, &owners));
    // What cannot be told apart is not found.
    let (points, owners) = blobs(7, 40, 30.0);
    let (made, _) = cluster(&cpu(), &points, &rule(7));
    assert!(!same_sets(&made.code, &owners));
}

#[test]
fn the_error_falls_to_a_fixed_point() {
    let (points, _) = blobs(5, 120, 4.0);
    let (made, errors) = cluster(&cpu(), &points, &rule(23));
    assert!(errors.len() > 4, "{errors:?}");
    // Only the last round may tell that nothing changes.
    for pair in errors.windows(2) {
        assert!(pair[1] <= pair[0] * (1.0 + 1e-6), "{errors:?}");
    }
    assert!(errors[errors.len() - 1] < 0.9 * errors[0]);
    // Written out: centroids are means of their points, and no other centroid is nearer to a point.
    let distance = |x: &[f32], c: &[f32]| -> f64 {
        x.iter()
            .zip(c)
            .map(|(x, c)| (*x as f64 - *c as f64).powi(2))
            .sum()
    };
    for (k, centroid) in made.centroids.chunks(3).enumerate() {
        let own = points
            .chunks(3)
            .zip(&made.code)
            .filter(|(_, code)| **code == k as u32);
        let own: Vec<&[f32]> = own.map(|(x, _)| x).collect();
        for (j, &mean) in centroid.iter().enumerate() {
            let sum: f64 = own.iter().map(|x| x[j] as f64).sum();
            assert!((sum / own.len() as f64 - mean as f64).abs() < 1e-4);
        }
    }
    let mut error = 0.0;
    for (x, &code) in points.chunks(3).zip(&made.code) {
        let own = distance(x, &made.centroids[code as usize * 3..][..3]);
        let least = made
            .centroids
            .chunks(3)
            .map(|c| distance(x, c))
            .fold(f64::MAX, f64::min);
        assert!(own <= least + 1e-4, "{own} {least}");
        error += own;
    }
    assert!((made.error() / error - 1.0).abs() < 1e-5);
}

#[test]
fn levels_go_on_with_what_is_left() {
    let (points, _) = blobs(5, 60, 2.0);
    let mut means = KMeans::new(&cpu(), &points, 3, 8).unwrap();
    let first = means.cluster(&rule(8), &mut |_, _| ()).unwrap();
    means.descend();
    let left = means.points().unwrap();
    for ((x, left), &code) in points.chunks(3).zip(left.chunks(3)).zip(&first.code) {
        for j in 0..3 {
            assert_eq!(left[j], x[j] - first.centroids[code as usize * 3 + j]);
        }
    }
    let second = means
        .cluster(
            &Rule {
                level: 1,
                ..rule(8)
            },
            &mut |_, _| (),
        )
        .unwrap();
    assert!(second.error() < first.error());
}

#[test]
fn empty_clusters_take_the_farthest_points() {
    let mut lists = Lists::new(&[2, 2, 2, 0, 2], 4);
    lists.fill_empty(&[0.1, 5.0, 3.0, 9.0, 0.0]);
    // Point 3 is alone in its cluster; 1 and 2 are the farthest of the rest.
    assert_eq!(lists.begins, [0, 1, 2, 4, 5]);
    assert_eq!(lists.members, [3, 1, 0, 4, 2]);
}

#[test]
fn fewer_distinct_points_than_clusters_are_no_fault() {
    let points: Vec<f32> = (0..20).flat_map(|i| [(i % 3) as f32, 1.0, 0.0]).collect();
    let (made, _) = cluster(&cpu(), &points, &rule(8));
    let used: std::collections::BTreeSet<_> = made.code.iter().collect();
    assert_eq!((used.len(), made.error()), (3, 0.0));
}

#[test]
fn a_seed_fixes_every_bit() {
    let (points, _) = blobs(5, 100, 4.0);
    let make = |seed| cluster(&cpu(), &points, &Rule { seed, ..rule(31) }).0;
    let (a, b, other) = (make(1), make(1), make(2));
    assert_eq!((&a.code, &a.centroids), (&b.code, &b.centroids));
    assert_ne!(a.code, other.code);
}

#[test]
fn both_devices_find_the_same_clusters() {
    let (points, _) = blobs(6, 150, 3.0);
    let made = [cpu(), devices::unchecked_gpu(), devices::bare_gpu()]
        .map(|device| cluster(&device, &points, &rule(37)).0);
    assert_eq!(made[0].code, made[1].code);
    assert_eq!(made[0].code, made[2].code);
    let (other, _) = cluster(
        &cpu(),
        &points,
        &Rule {
            seed: 2,
            ..rule(37)
        },
    );
    assert_ne!(made[0].code, other.code, "another start finds others");
}

#[test]
fn bounded_clusters_stay_within_the_bound_on_both_devices() {
    // Nine points of ten are of one blob.
    let (mut points, _) = blobs(1, 900, 0.5);
    points.extend(blobs(5, 20, 0.5).0);
    let largest = |made: &Clustering| {
        let mut sizes = [0; 16];
        made.code.iter().for_each(|&k| sizes[k as usize] += 1);
        sizes.into_iter().max().unwrap()
    };
    let bounded = Rule {
        slack: Some(0.1),
        ..rule(16)
    };
    let capacity = balance::capacity(1000, 16, 0.1);
    for device in [cpu(), devices::unchecked_gpu()] {
        let (made, errors) = cluster(&device, &points, &bounded);
        assert!(largest(&made) <= capacity);
        assert!(errors.len() > 2);
        assert!(made.error() <= errors[0]);
        let (free, _) = cluster(&device, &points, &rule(16));
        assert!(largest(&free) > capacity, "the bound binds");
    }
}
