//! What kernel tests and `vstar validate` share: buffers with sentinels around them, random data from the counter-based
//! generator, and comparisons in f64 that carry their own negative control.

use crate::device::lockstep::{HALF_TOLERANCE, Lockstep, widened};
use crate::device::tuning::{Offer, bits};
use crate::device::{ALIGN_WORDS, Buffer, DeviceRef, Precision, Slice, Stream};
use crate::rng::{self, Rng};
use anyhow::{Result, ensure};
use half::f16;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Fills the words before and after every buffer: a NaN with a payload no kernel produces.
const SENTINEL: u32 = 0x7fc5_a5a5;

/// A buffer of a test: its data lies between two runs of sentinels.
pub struct TestBuffer {
    name: &'static str,
    buffer: Buffer,
    /// What it held at first.
    pub words: Vec<u32>,
    /// Elements, and how they are stored.
    len: usize,
    precision: Precision,
}

impl TestBuffer {
    pub fn slice(&self) -> Slice {
        let words = self.buffer.slice(ALIGN_WORDS, self.words.len());
        self.precision.of(words).first(self.len)
    }

    /// What it held at first, as f64.
    pub fn f64(&self) -> Vec<f64> {
        self.floats(&self.words)
            .into_iter()
            .map(f64::from)
            .collect()
    }

    /// Its words as numbers.
    fn floats(&self, words: &[u32]) -> Vec<f32> {
        let mut floats = match self.precision {
            Precision::F32 => bytemuck::cast_slice(words).to_vec(),
            Precision::F16 => widened(words),
        };
        floats.truncate(self.len);
        floats
    }
}

/// One device under test with the stream being recorded.
pub struct Harness {
    device: DeviceRef,
    stream: Stream,
    draws: Rng,
    runs: u64,
    precision: Precision,
    /// Whether some buffer's precision mattered.
    reals: bool,
    /// By kernel and form, as [`Met`].
    met: BTreeMap<(&'static str, &'static str), bool>,
}

/// The forms that launches could have run in, by name: whether one of them works without subgroup operations. Empty if
/// no kernel had more than one form.
pub type Met = BTreeMap<&'static str, bool>;

impl Harness {
    pub fn new(device: DeviceRef) -> Self {
        Self::with_precision(device, Precision::F32)
    }

    /// One whose [`Harness::real`] buffers hold numbers of that precision.
    pub fn with_precision(device: DeviceRef, precision: Precision) -> Self {
        Harness {
            device,
            precision,
            reals: false,
            stream: Stream::new(),
            draws: Rng::new(1, rng::Stream::Test, 0, 0),
            runs: 0,
            met: BTreeMap::new(),
        }
    }

    pub fn device(&self) -> &DeviceRef {
        &self.device
    }

    pub fn stream(&mut self) -> &mut Stream {
        &mut self.stream
    }

    pub fn draws(&mut self) -> &mut Rng {
        &mut self.draws
    }

    /// Whether other things are seen with another precision.
    pub fn has_reals(&self) -> bool {
        self.reals
    }

    /// Streams run so far.
    pub fn runs(&self) -> u64 {
        self.runs
    }

    /// The forms met so far: a test is repeated in each.
    pub fn met(&self) -> Met {
        let mut met = Met::new();
        for (&(_, form), bare) in &self.met {
            *met.entry(form).or_default() |= bare;
        }
        met
    }

    /// Whether some launch so far could have run in this form of this kernel.
    pub fn has_met(&self, kernel: &'static str, form: &'static str) -> bool {
        self.met.contains_key(&(kernel, form))
    }

    fn meet(&mut self) {
        for launch in &self.stream.launches {
            let kernel = launch.kernel;
            if kernel.forms.is_empty() {
                continue;
            }
            let bare = Offer::default().forms(kernel, launch.halves());
            for form in bits(kernel.fitting(launch.params())) {
                let key = (kernel.name, kernel.form_name(form));
                *self.met.entry(key).or_default() |= bare >> form & 1 == 1;
            }
        }
    }

    /// A buffer holding `words`.
    pub fn u32(&mut self, name: &'static str, words: &[u32]) -> TestBuffer {
        assert!(!words.is_empty(), "{name} is empty");
        let tail = words.len().next_multiple_of(ALIGN_WORDS) - words.len() + ALIGN_WORDS;
        let mut image = vec![SENTINEL; ALIGN_WORDS];
        image.extend_from_slice(words);
        image.extend(std::iter::repeat_n(SENTINEL, tail));
        let buffer = Buffer::with_u32(&self.device, name, &image).expect("test buffer");
        TestBuffer {
            name,
            buffer,
            words: words.to_vec(),
            len: words.len(),
            precision: Precision::F32,
        }
    }

    /// `n` standard normal values as kernels store what may be f32 or f16.
    pub fn real(&mut self, name: &'static str, n: usize) -> TestBuffer {
        self.reals = true;
        let values: Vec<f32> = (0..n).map(|_| self.draws.normal()).collect();
        self.stored(name, &values)
    }

    /// `values` so stored, or the nearest that can be.
    pub fn stored(&mut self, name: &'static str, values: &[f32]) -> TestBuffer {
        let precision = self.precision;
        let words = match precision {
            Precision::F32 => bytemuck::cast_slice(values).to_vec(),
            Precision::F16 => {
                let half = |v: Option<&f32>| f16::from_f32(v.copied().unwrap_or(0.0)).to_bits();
                let pair = |v: &[f32]| half(v.first()) as u32 | (half(v.get(1)) as u32) << 16;
                values.chunks(2).map(pair).collect::<Vec<u32>>()
            }
        };
        TestBuffer {
            len: values.len(),
            precision,
            ..self.u32(name, &words)
        }
    }

    /// A buffer holding `values`.
    pub fn f32(&mut self, name: &'static str, values: &[f32]) -> TestBuffer {
        self.u32(name, bytemuck::cast_slice(values))
    }

    /// `n` standard normal values.
    pub fn random(&mut self, name: &'static str, n: usize) -> TestBuffer {
        self.random_scaled(name, n, 1.0)
    }

    /// `n` normal values of the given standard deviation.
    pub fn random_scaled(&mut self, name: &'static str, n: usize, scale: f32) -> TestBuffer {
        let values: Vec<f32> = (0..n).map(|_| scale * self.draws.normal()).collect();
        self.f32(name, &values)
    }

    /// Runs what was recorded. On a lockstep device this is the comparison of shader and twin.
    pub fn run(&mut self) -> Result<()> {
        self.runs += 1;
        self.meet();
        let result = self.device.run(&self.stream);
        self.stream.clear();
        result
    }

    /// The buffer's words now. Errors: a sentinel beside it was overwritten.
    pub fn read_u32(&self, buffer: &TestBuffer) -> Result<Vec<u32>> {
        let image = self.device.read(&[buffer.buffer.all()])?.remove(0);
        let end = ALIGN_WORDS + buffer.words.len();
        for (i, &word) in image.iter().enumerate() {
            ensure!(
                (ALIGN_WORDS..end).contains(&i) || word == SENTINEL,
                "buffer `{}`: written {} words outside its bounds",
                buffer.name,
                if i < end {
                    ALIGN_WORDS - i
                } else {
                    i + 1 - end
                }
            );
        }
        let spare = buffer.precision == Precision::F16 && !buffer.len.is_multiple_of(2);
        ensure!(
            !spare || image[end - 1] >> 16 == 0,
            "buffer `{}`: written one element outside its bounds",
            buffer.name
        );
        Ok(image[ALIGN_WORDS..end].to_vec())
    }

    pub fn read_f32(&self, buffer: &TestBuffer) -> Result<Vec<f32>> {
        Ok(buffer.floats(&self.read_u32(buffer)?))
    }

    /// Asserts that the buffer equals `want` within `tolerance` by relative norm, in f64, that its sentinels stand, and
    /// that one corrupted element would have failed this very comparison. What is stored as f16 may be off by one unit in
    /// the last place.
    pub fn expect(&self, buffer: &TestBuffer, want: &[f64], tolerance: f64) {
        let tolerance = match buffer.precision {
            Precision::F32 => tolerance,
            Precision::F16 => HALF_TOLERANCE,
        };
        let got = self.read_f32(buffer).expect("sentinels");
        let error = relative_error(want, &got);
        assert!(
            error <= tolerance,
            "{}, `{}`: relative error {error:.2e} above {tolerance:.0e}",
            self.device.info(),
            buffer.name
        );
        let mut corrupted = got;
        let scale = (want.iter().map(|w| w * w).sum::<f64>() / want.len() as f64).sqrt();
        let middle = corrupted.len() / 2;
        let shift = (10.0 * tolerance.max(1e-6) * scale * (want.len() as f64).sqrt()).max(1e-6);
        corrupted[middle] += shift as f32;
        assert!(
            relative_error(want, &corrupted) > tolerance,
            "`{}`: a corrupted element passes the comparison",
            buffer.name
        );
    }

    /// Asserts integers equal, and that the sentinels stand.
    pub fn expect_u32(&self, buffer: &TestBuffer, want: &[u32]) {
        let got = self.read_u32(buffer).expect("sentinels");
        assert_eq!(got, want, "{}, `{}`", self.device.info(), buffer.name);
    }
}

/// Relative error by the Euclidean norm against f64 values; absolute where they are all zero.
pub fn relative_error(want: &[f64], got: &[f32]) -> f64 {
    assert_eq!(want.len(), got.len(), "compared slices differ in length");
    let norm = want.iter().map(|w| w * w).sum::<f64>().sqrt();
    let difference = want
        .iter()
        .zip(got)
        .map(|(w, &g)| (w - g as f64).powi(2))
        .sum::<f64>()
        .sqrt();
    if difference.is_nan() {
        return f64::INFINITY;
    }
    if norm == 0.0 {
        difference
    } else {
        difference / norm
    }
}

/// Central differences of `f` at `x`, for gradients in f64.
pub fn finite_difference(f: impl Fn(&[f64]) -> f64, x: &[f64]) -> Vec<f64> {
    let mut at = x.to_vec();
    (0..x.len())
        .map(|i| {
            let h = 1e-5 * x[i].abs().max(1.0);
            at[i] = x[i] + h;
            let up = f(&at);
            at[i] = x[i] - h;
            let down = f(&at);
            at[i] = x[i];
            (up - down) / (2.0 * h)
        })
        .collect()
}

/// A lockstep pair of a fresh CPU device and `subject`, which must be fresh too.
pub fn lockstep_pair(subject: DeviceRef) -> Arc<Lockstep> {
    Arc::new(Lockstep::new(
        Arc::new(crate::device::cpu::Cpu::new()),
        subject,
    ))
}

#[cfg(test)]
pub mod devices {
    //! The devices kernel tests run on. A machine without any Vulkan, Metal or DX12 adapter fails them: it must not
    //! skip them silently.

    use super::*;
    use crate::device::choose::{DeviceChoice, choose_adapter};
    use crate::device::cpu::Cpu;
    use crate::device::gpu::{Gpu, GpuOptions};
    use crate::device::tuning::Forms;

    fn gpu(options: GpuOptions) -> DeviceRef {
        let choice = DeviceChoice {
            device: "gpu".into(),
            ..Default::default()
        };
        let adapter = choose_adapter(&choice)
            .expect("GPU tests need an adapter; scripts/test installs a software one")
            .expect("an adapter");
        Arc::new(Gpu::open(&adapter, options).expect("a device"))
    }

    /// Under wgpu's default limits, with naga's checks: what a stranger's GPU gives. A grid of more than three workgroups is
    /// dispatched in pieces.
    const BARE: GpuOptions = GpuOptions {
        checked: true,
        bare: true,
        max_groups: Some(3),
        ..GpuOptions::DEFAULT
    };

    /// As a release run opens it, without checks, but exposed: a write out of bounds meets the sentinels.
    const UNCHECKED: GpuOptions = GpuOptions {
        exposed: true,
        ..GpuOptions::DEFAULT
    };

    pub fn bare_gpu() -> DeviceRef {
        gpu(BARE)
    }

    pub fn unchecked_gpu() -> DeviceRef {
        gpu(UNCHECKED)
    }

    /// Runs a test body on the CPU device, and on the GPU with and without checks in every form.
    pub fn each(body: impl Fn(&mut Harness)) {
        let mut cpu = Harness::new(Arc::new(Cpu::new()));
        body(&mut cpu);
        if cpu.has_reals() {
            let cpu = Arc::new(Cpu::new());
            body(&mut Harness::with_precision(cpu, Precision::F16));
        }
        for (options, precision) in openings(&cpu) {
            if let Some(gpu) = storing(gpu(options), precision) {
                body(&mut Harness::with_precision(gpu, precision));
            }
        }
    }

    /// Runs a kernel's cases in lockstep, shader against twin, with and without checks in every form.
    pub fn lockstep(cases: crate::kernels::Cases) {
        let mut cpu = Harness::new(Arc::new(Cpu::new()));
        cases(&mut cpu).unwrap();
        assert!(cpu.runs() > 0, "no case ran");
        for (options, precision) in openings(&cpu) {
            let Some(gpu) = storing(gpu(options), precision) else {
                continue;
            };
            let pair = lockstep_pair(gpu);
            let outcome = cases(&mut Harness::with_precision(pair, precision));
            outcome.unwrap_or_else(|e| panic!("{:?}, {precision:?}: {e:#}", options.forms));
        }
    }

    /// The device if it can store numbers so. One without f16 is told of, not passed over in silence.
    fn storing(gpu: DeviceRef, precision: Precision) -> Option<DeviceRef> {
        let can = precision == Precision::F32 || gpu.has_halves();
        if !can {
            println!("not tested: {} has no f16", gpu.info());
        }
        can.then_some(gpu)
    }

    /// How to open the GPU, and what to store, to see everything that the forms met on the CPU do. f16 needs a feature, so
    /// it is not bare.
    fn openings(cpu: &Harness) -> Vec<(GpuOptions, Precision)> {
        let (f32, f16) = (Precision::F32, Precision::F16);
        let met = cpu.met();
        let mut forms: Vec<_> = met
            .iter()
            .map(|(&name, &bare)| (Forms::Named(name), bare))
            .collect();
        if forms.is_empty() {
            forms.push((Forms::Fixed, true));
        }
        forms
            .into_iter()
            .flat_map(|(forms, bare)| {
                let unchecked = GpuOptions { forms, ..UNCHECKED };
                [
                    Some((unchecked, f32)),
                    cpu.has_reals().then_some((unchecked, f16)),
                    bare.then_some((GpuOptions { forms, ..BARE }, f32)),
                ]
            })
            .flatten()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Grid, Kernel};
    use crate::kernels::fill::{FILL, Params};

    /// Fills `n` words with a copy of `fill` in which `from` reads `to`, and reads them back.
    fn fill_with(from: &str, to: &str, n: usize) -> Result<Vec<u32>> {
        fill_on(devices::unchecked_gpu(), from, to, n)
    }

    fn fill_on(device: DeviceRef, from: &str, to: &str, n: usize) -> Result<Vec<u32>> {
        let source = FILL.source.replace(from, to);
        assert_ne!(source, FILL.source);
        let broken: &'static Kernel = Box::leak(Box::new(Kernel {
            name: "broken fill",
            source: source.leak(),
            forms: &[],
            ..FILL
        }));
        let mut h = Harness::new(device);
        let y = h.u32("y", &vec![1; n]);
        let params = Params {
            n: n as u32,
            value: 7,
        };
        let grid = Grid::cover(n + 1, 256);
        h.stream().push(broken, &params, &[y.slice()], grid);
        h.run()?;
        h.read_u32(&y)
    }

    #[test]
    fn a_write_past_the_end_meets_the_sentinels() {
        for n in [1, 64, 255, 256] {
            let error = fill_with("i < p.n", "i <= p.n", n).unwrap_err().to_string();
            assert_eq!(error, "buffer `y`: written 1 words outside its bounds");
            let right = fill_with("i < p.n", "!(i >= p.n)", n).unwrap();
            assert_eq!(right, vec![7; n]);
        }
    }

    /// A kernel that asks for the workgroup's number in its dispatch, not in its grid, is caught where grids are cut.
    #[test]
    fn a_shader_that_ignores_where_its_piece_begins_is_noticed() {
        let fill = |to| fill_on(devices::bare_gpu(), "group_number(group)", to, 1500).unwrap();
        assert_ne!(fill("group.x"), [7; 1500]);
        assert_eq!(fill("(group_number(group))"), [7; 1500]);
    }
}
