//! Adapters that lack something: the features of this one are hidden, one by one and all together, and a whole step still is
//! the CPU's.

#[path = "support/devices.rs"]
mod devices;
#[path = "support/steps.rs"]
mod steps;
#[path = "support/toy.rs"]
mod toy;
#[path = "support/train.rs"]
mod train;

use devices::gpu;
use steps::{CAUSAL, fine_tune};
use train::{config, dataset, engine};
use vstar::decode::search::{Decoding, Searcher};
use vstar::device::gpu::GpuOptions;
use vstar::device::{Buffer, DeviceRef, Grid, MAX_BUFFER_WORDS, Stream};
use vstar::kernels::half_test::half_test;
use vstar::kernels::harness::lockstep_pair;
use vstar::kernels::{add, fill};
use wgpu::Features;

/// With these features hidden, and timestamps asked for.
fn without(features: Features) -> DeviceRef {
    gpu(GpuOptions {
        timed: true,
        without: features,
        ..Default::default()
    })
}

#[test]
fn whole_steps_do_without_any_feature() {
    let all = Features::SUBGROUP | Features::SHADER_F16 | Features::TIMESTAMP_QUERY;
    for hidden in [
        Features::SUBGROUP,
        Features::SHADER_F16,
        Features::TIMESTAMP_QUERY,
        all,
    ] {
        // Every launch is compared.
        let pair = lockstep_pair(without(hidden));
        let device: DeviceRef = pair.clone();
        let (data, config) = (dataset(), config(&[]));
        let engine = engine(&device, &config, &data);
        fine_tune(&engine, &data, CAUSAL, (2, 1e-3));
        let histories: Vec<&[u32]> = data.test[..4].iter().map(|e| &e.history[..]).collect();
        let decoding = Decoding::rollout(&config, &data, 4);
        let mut searcher = Searcher::new(&engine.model, &data, &decoding).unwrap();
        searcher
            .search(&engine.model, &data.catalog, &histories, 0, 0)
            .unwrap();
        let forms: Vec<String> = pair.worst().into_keys().collect();
        let subgroup = forms.iter().any(|form| form.contains("subgroup"));
        assert!(forms.len() > 20, "{forms:?}");
        assert!(
            !(hidden.contains(Features::SUBGROUP) && subgroup),
            "{forms:?}"
        );
    }
}

#[test]
fn f16_is_refused_where_it_is_hidden() {
    let device = without(Features::SHADER_F16);
    assert!(!device.has_halves());
    let (data, config) = (dataset(), config(&["precision=f16"]));
    let message = vstar::learn::job::tried_precision(&device, &config).and_then(|precision| {
        let architecture = vstar::learn::job::architecture(&config, &data);
        vstar::model::Model::new(&device, &architecture, 32, precision).map(drop)
    });
    let message = message.unwrap_err().to_string();
    assert!(message.contains("f16"), "{message}");
    let other = without(Features::empty());
    assert!(!other.has_halves() || half_test(&other).is_ok());
}

#[test]
fn launches_are_timed_with_timestamps_and_without() {
    for hidden in [Features::empty(), Features::TIMESTAMP_QUERY] {
        let device = without(hidden);
        let [x, y] = [1 << 16; 2].map(|n| Buffer::new(&device, "timed", n).unwrap());
        let mut s = Stream::new();
        fill::fill_f32(&mut s, x.all(), 1.0);
        add::add(&mut s, x.all(), y.all(), 1 << 16);
        let times = device.time(&s).unwrap();
        assert_eq!(times.launches.len(), 2, "{hidden:?}");
        assert!(
            times
                .launches
                .iter()
                .flatten()
                .all(|t| t.is_finite() && *t >= 0.0),
            "{hidden:?}"
        );
        assert!(y.read_f32().unwrap().iter().all(|&v| v >= 1.0));
    }
}

/// More workgroups than one dimension holds, under the least limits: no larger binding and no immediates either.
#[test]
fn the_least_limits_are_enough() {
    let device = gpu(GpuOptions {
        bare: true,
        ..Default::default()
    });
    assert_eq!(device.max_buffer_words(), MAX_BUFFER_WORDS);
    let n = 65_536 * 256 + 300;
    let y = Buffer::new(&device, "large", n).unwrap();
    let mut s = Stream::new();
    let params = fill::Params {
        n: n as u32,
        value: 7,
    };
    s.push(&fill::FILL, &params, &[y.all()], Grid::cover(n, 256));
    assert!(s.launches[0].grid.0 > 65_535);
    device.run(&s).unwrap();
    assert!(y.read_u32().unwrap().iter().all(|&word| word == 7));
}
