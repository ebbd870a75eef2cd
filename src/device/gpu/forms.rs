//! Deciding the form of each launch, and measuring forms where that is asked for.
//!
//! A form is measured with the very launch that needs it: on its inputs, which the launches before it have made, and on
//! copies of its outputs. So the data are those of the run, and nothing of the run is changed. One whose outputs are not
//! those of the portable form is left out: drivers have faults, and some forms are made of what is experimental.

use super::pieces::Alone;
use super::{Gpu, GpuOptions, State, bind_group_key, loops, new_buffer};
use crate::device::lockstep::{Elements, relative_error};
use crate::device::stream::{Launch, Stream};
use crate::device::tuning::{self, Choices, Class, Forms, bits};
use crate::device::{Access, Cost, DeviceInfo, Home, Kernel, Slice};
use anyhow::Result;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Measuring stops here, compilation included; classes met later get the fixed choice.
const BUDGET: Duration = Duration::from_secs(6);

/// A timed submission lasts about this long, so that submitting weighs little.
const SPAN: Duration = Duration::from_micros(1500);

/// Timed submissions per form, of which the best counts.
const TRIES: usize = 3;

/// Bytes of each output that are held against those of the portable form, and by how much they may differ: sums of other
/// orders, and f16 in the last place.
const COMPARED: u64 = 1 << 20;
const AGREEMENT: f64 = 2e-3;

/// How long one form took for one shape class.
#[derive(Clone, Debug)]
pub struct Measurement {
    pub kernel: &'static str,
    /// The class as the cache file names it.
    pub class: String,
    pub form: &'static str,
    pub seconds: f64,
    /// The floor of the launch that was timed.
    pub cost: Cost,
    pub chosen: bool,
}

/// The choices made so far.
pub(super) struct Selection {
    mode: Forms,
    /// Takes precedence over everything else where it fits.
    insisted: Option<&'static str>,
    info: DeviceInfo,
    /// The file to keep choices in.
    file: Option<PathBuf>,
    /// By class, for the next launch.
    chosen: HashMap<Class, usize>,
    /// By the class's text, to be kept: those made here and those that were given.
    table: Choices,
    measurements: Vec<Measurement>,
    spent: Duration,
    unsaved: bool,
    /// Classes that are to be measured when they occur, with all pipelines made.
    expected: HashSet<Class>,
    /// The form of each launch of the stream being run.
    forms: Vec<usize>,
}

impl Selection {
    /// What a device measures that was opened for a test is not kept.
    pub(super) fn new(info: &DeviceInfo, options: GpuOptions) -> Selection {
        let file = match options.bare || options.exposed {
            true => None,
            false => tuning::cache_file(info),
        };
        Selection {
            mode: options.forms,
            insisted: None,
            info: info.clone(),
            chosen: HashMap::new(),
            table: match (options.forms, &file) {
                (Forms::Measured, Some(file)) => tuning::load(file, info),
                _ => Choices::default(),
            },
            file,
            measurements: Vec::new(),
            spent: Duration::ZERO,
            unsaved: false,
            expected: HashSet::new(),
            forms: Vec::new(),
        }
    }

    pub(super) fn choices(&self) -> Choices {
        self.table.clone()
    }

    pub(super) fn set(&mut self, choices: &Choices) {
        self.chosen.clear();
        self.table.0.extend(choices.0.clone());
    }

    pub(super) fn insist(&mut self, form: Option<&'static str>) {
        self.insisted = form;
    }

    /// The form of launch `i` of the stream being run.
    pub(super) fn form(&self, i: usize) -> usize {
        self.forms[i]
    }

    fn insisted(&self, kernel: &Kernel, class: Class) -> Option<usize> {
        tuning::named(kernel, class.candidates, self.insisted?)
    }

    /// The form of a launch; none if it has to be measured.
    fn decide(&mut self, launch: &Launch, class: Class) -> Option<usize> {
        let (kernel, candidates) = (launch.kernel, class.candidates);
        let known = self.chosen.get(&class).copied();
        if let Some(form) = self.insisted(kernel, class).or(known) {
            return Some(form);
        }
        let fixed = || tuning::fixed(kernel, candidates, self.info.software);
        let known = |name: &str| tuning::named(kernel, candidates, name);
        let form = match self.mode {
            Forms::Named(name) => known(name).unwrap_or_else(fixed),
            _ if candidates == 1 => 0,
            mode => match self.table.0.get(&class.text(kernel)) {
                Some(name) if known(name).is_some() => known(name)?,
                _ if mode == Forms::Fixed => fixed(),
                _ if self.promising(kernel, candidates).count_ones() == 1 => fixed(),
                _ if mode == Forms::Measured && self.spent > BUDGET => {
                    // Not measured, so not kept in the file; but this run stays with it.
                    let text = class.text(kernel);
                    let form = fixed();
                    self.table.0.insert(text, kernel.form_name(form).into());
                    form
                }
                _ => return None,
            },
        };
        self.chosen.insert(class, form);
        Some(form)
    }

    /// The forms worth measuring. Those for hardware need not be tried on a processor, unless everything is to be known.
    fn promising(&self, kernel: &Kernel, candidates: u32) -> u32 {
        let tried = |form: usize| {
            form == 0 || !self.info.software || kernel.forms[form - 1].home != Home::Hardware
        };
        match self.mode {
            Forms::Remeasured => candidates,
            _ => bits(candidates)
                .filter(|&form| tried(form))
                .map(|form| 1 << form)
                .sum(),
        }
    }

    fn record(&mut self, launch: &Launch, class: Class, seconds: &[(usize, f64)]) -> usize {
        let kernel = launch.kernel;
        let fastest = seconds.iter().min_by(|a, b| a.1.total_cmp(&b.1));
        let form = match fastest {
            Some(&(form, _)) => form,
            None => tuning::fixed(kernel, class.candidates, self.info.software),
        };
        let text = class.text(kernel);
        for &(measured, seconds) in seconds {
            self.measurements.push(Measurement {
                kernel: kernel.name,
                class: text.clone(),
                form: kernel.form_name(measured),
                seconds,
                cost: launch.cost(),
                chosen: measured == form,
            });
        }
        self.table.0.insert(text, kernel.form_name(form).into());
        self.chosen.insert(class, form);
        self.unsaved = true;
        form
    }
}

impl Gpu {
    /// What was measured so far.
    pub fn measurements(&self) -> Vec<Measurement> {
        self.state.lock().unwrap().selection.measurements.clone()
    }

    pub(super) fn class(&self, launch: &Launch) -> Class {
        let offered = self.offer.forms(launch.kernel, launch.halves());
        Class::of(launch, loops::ending(launch, offered, self.longest_loop))
    }

    /// The form in which a launch like this one ran last, or the one insisted on.
    pub(super) fn selected(&self, state: &State, launch: &Launch) -> &'static str {
        let kernel = launch.kernel;
        if kernel.forms.is_empty() {
            return kernel.form_name(0);
        }
        let (class, selection) = (self.class(launch), &state.selection);
        let chosen = selection.chosen.get(&class).copied();
        let form = selection.insisted(kernel, class).or(chosen);
        kernel.form_name(form.unwrap_or(0))
    }

    /// Makes the pipelines that a launch will run in: that of its form, or, where that has to be measured first, which takes
    /// the launch's own data, those of all forms to measure.
    pub(super) fn expect(&self, state: &mut State, launch: &Launch) -> Result<()> {
        let (kernel, class) = (launch.kernel, self.class(launch));
        match state.selection.decide(launch, class) {
            Some(form) => self.pipeline(state, kernel, (form, launch.halves()))?,
            None if state.selection.expected.insert(class) => {
                self.measurable(state, launch, class)?;
            }
            None => {}
        }
        Ok(())
    }

    /// The forms to measure for a class, of which the pipelines are made: those that compile.
    fn measurable(&self, state: &mut State, launch: &Launch, class: Class) -> Result<u32> {
        let kernel = launch.kernel;
        let mut candidates = state.selection.promising(kernel, class.candidates);
        for form in bits(candidates) {
            match self.pipeline(state, kernel, (form, launch.halves())) {
                // A driver that does not take this form may take the portable one.
                Err(_) if form > 0 => candidates &= !(1 << form),
                outcome => outcome?,
            }
        }
        Ok(candidates)
    }

    /// Decides every launch of the stream and makes what it needs. Where one has to be measured, those before it are
    /// submitted; where one has to be timed, it too. The number of those is returned.
    pub(super) fn select(&self, state: &mut State, stream: &Stream) -> Result<usize> {
        state.selection.forms.clear();
        state.pace.clear();
        let mut submitted = 0;
        for (i, launch) in stream.launches.iter().enumerate() {
            let class = self.class(launch);
            let form = if launch.kernel.forms.is_empty() {
                0
            } else {
                match state.selection.decide(launch, class) {
                    Some(form) => form,
                    None => {
                        self.submit(state, stream, submitted..i);
                        self.resolve(state, i);
                        submitted = i;
                        let started = Instant::now();
                        let seconds = self.measure(state, launch, class, i)?;
                        state.selection.spent += started.elapsed();
                        let form = state.selection.record(launch, class, &seconds);
                        if let Some(&(_, lasted)) = seconds.iter().find(|(f, _)| *f == form) {
                            self.learn(state, launch, form, lasted)?;
                        }
                        form
                    }
                }
            };
            state.selection.forms.push(form);
            self.pipeline(state, launch.kernel, (form, launch.halves()))?;
            self.bind(state, bind_group_key(launch));
            if self.pace(state, stream, (submitted, i), class)? {
                submitted = i + 1;
            }
        }
        if std::mem::take(&mut state.selection.unsaved) {
            // Kept before it is used. Where nothing can be kept, the next process measures again: that costs time only.
            let Selection {
                info, file, table, ..
            } = &state.selection;
            let _ = file.as_ref().map(|file| tuning::save(file, info, table));
        }
        Ok(submitted)
    }

    /// Fills in the parameters of launch `i`, which is to be measured before it is submitted: rows past the true number
    /// may hold anything.
    pub(super) fn resolve(&self, state: &State, i: usize) {
        let mut encoder = self.device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            state.resolve(&mut pass, i);
        }
        self.queue.submit([encoder.finish()]);
    }

    /// Seconds each candidate that compiles takes for this launch, whose parameters are in `slot`; nothing if there is no
    /// memory for copies of its outputs.
    fn measure(
        &self,
        state: &mut State,
        launch: &Launch,
        class: Class,
        slot: usize,
    ) -> Result<Vec<(usize, f64)>> {
        let kernel = launch.kernel;
        let candidates = self.measurable(state, launch, class)?;
        // For each output, the buffer in its place.
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let usage = wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_DST
            | wgpu::BufferUsages::COPY_SRC;
        let arguments: Vec<_> = kernel.bindings.iter().zip(launch.slices()).collect();
        let copies: Vec<Option<wgpu::Buffer>> = arguments
            .iter()
            .map(|(binding, slice)| match binding.access {
                Access::In => None,
                Access::Out => {
                    let bytes = 4 * slice.words().len as usize;
                    Some(new_buffer(&self.device, "measured", bytes, usage))
                }
            })
            .collect();
        if pollster::block_on(scope.pop()).is_some() {
            return Ok(Vec::new());
        }
        let original = |slice: &Slice| {
            let buffer = state.buffers[slice.buffer as usize].as_ref();
            buffer.expect("buffer is alive")
        };
        let bound = arguments
            .iter()
            .zip(&copies)
            .map(|((_, slice), copy)| match copy {
                Some(copy) => (
                    copy,
                    Slice {
                        offset: 0,
                        ..**slice
                    },
                ),
                None => (original(slice), **slice),
            });
        let group = self.bind_group(state, kernel, bound);
        let restore = || {
            let mut encoder = self.device.create_command_encoder(&Default::default());
            for ((_, slice), copy) in arguments.iter().zip(&copies) {
                if let Some(copy) = copy {
                    let slice = slice.words();
                    let (from, bytes) = (4 * slice.offset as u64, 4 * slice.len as u64);
                    encoder.copy_buffer_to_buffer(original(&slice), from, copy, 0, bytes);
                }
            }
            self.queue.submit([encoder.finish()]);
            self.wait()
        };
        let outputs = || -> Result<Vec<Vec<u32>>> {
            let written = copies.iter().flatten();
            let beginning = |copy: &wgpu::Buffer| 0..copy.size().min(COMPARED);
            written
                .map(|copy| self.words(copy, beginning(copy)))
                .collect()
        };
        let (mut seconds, mut right) = (Vec::new(), Vec::new());
        let mut best = f64::INFINITY;
        // The portable form first: it says what is right.
        for form in bits(candidates) {
            restore()?;
            let alone = Alone {
                launch,
                form,
                slot,
                group: &group,
            };
            // May compile.
            let first = self.first_run(state, &alone)?;
            let got = outputs()?;
            if form == 0 {
                right = got;
            } else if !agree(launch, &right, &got) {
                continue;
            }
            let mut own = self.run_again(state, &alone, first)?;
            if own < 2.0 * best {
                let groups = launch.groups(form).0;
                let repeats = ((SPAN.as_secs_f64() / own) as usize).clamp(1, 50);
                for _ in 0..TRIES {
                    own = own.min(self.run_alone(state, &alone, 0..groups, repeats)?);
                }
            }
            best = best.min(own);
            seconds.push((form, own));
        }
        Ok(seconds)
    }
}

/// Whether the beginnings of a launch's outputs are those that the portable form left, but for rounding. Elements that are
/// no numbers in either count as equal: rows past the true number may hold anything.
fn agree(launch: &Launch, want: &[Vec<u32>], got: &[Vec<u32>]) -> bool {
    let bindings = launch.kernel.bindings.iter().zip(launch.slices());
    let outputs = bindings.filter(|(binding, _)| binding.access == Access::Out);
    outputs
        .zip(want.iter().zip(got))
        .all(|((binding, slice), (want, got))| {
            let elements = Elements::of(binding.ty, *slice);
            let [want, got] = [want, got].map(|words| elements.floats(words));
            let pairs = want.iter().zip(&got);
            let (want, got): (Vec<f32>, Vec<f32>) = pairs
                .filter(|(w, g)| w.is_finite() || g.is_finite())
                .unzip();
            relative_error(&want, &got) <= AGREEMENT
        })
}

impl State {
    /// Encodes what puts the device's words into the parameters of launch `i`, and of those after it that wait no longer.
    pub(super) fn resolve(&self, pass: &mut wgpu::ComputePass, i: usize) {
        let segments = &self.patches.segments;
        let first = segments.partition_point(|segment| segment.before < i);
        let due = segments.iter().enumerate().skip(first);
        for (number, segment) in due.take_while(|(_, segment)| segment.before == i) {
            self.resolver.dispatch(pass, number, segment);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::device::choose::{DeviceChoice, choose_adapter};
    use crate::device::{Buffer, Device, DeviceRef, Grid};
    use crate::kernels::fill;
    use crate::kernels::matmul::{Dims, Form, matmul};
    use std::sync::Arc;

    const DIMS: Dims = Dims { m: 20, n: 12, k: 8 };

    pub fn gpu(forms: Forms) -> Arc<Gpu> {
        gpu_with(GpuOptions {
            exposed: true,
            forms,
            ..Default::default()
        })
    }

    pub fn gpu_with(options: GpuOptions) -> Arc<Gpu> {
        let choice = DeviceChoice {
            device: "gpu".into(),
            ..Default::default()
        };
        let adapter = choose_adapter(&choice).unwrap().unwrap();
        Arc::new(Gpu::open(&adapter, options).unwrap())
    }

    /// A product added to itself twice: what it comes to, and the form of the second.
    fn product(gpu: &Arc<Gpu>) -> (Vec<f32>, &'static str) {
        let device: DeviceRef = gpu.clone();
        let values = |n: usize| (0..n).map(|i| (i % 7) as f32 - 3.0).collect::<Vec<_>>();
        let buffer = |n| Buffer::with_f32(&device, "operand", &values(n)).unwrap();
        let (a, b) = (buffer(DIMS.m * DIMS.k), buffer(DIMS.k * DIMS.n));
        let c = Buffer::new(&device, "c", DIMS.m * DIMS.n).unwrap();
        let mut stream = Stream::new();
        for accumulate in [false, true] {
            matmul(
                &mut stream,
                Form::NN,
                a.all(),
                b.all(),
                c.all(),
                DIMS,
                accumulate,
            );
        }
        device.run(&stream).unwrap();
        (c.read_f32().unwrap(), device.form(&stream.launches[1]))
    }

    #[test]
    fn measuring_changes_nothing_and_its_choice_can_be_kept() {
        let (want, _) = product(&gpu(Forms::Named("portable")));
        let first = gpu(Forms::Remeasured);
        let (got, form) = product(&first);
        assert_eq!(got, want);
        assert!(!first.measurements().is_empty());
        // Another process, given the choices, measures nothing and does the same.
        let second = gpu(Forms::Measured);
        second.choose(&first.choices());
        assert_eq!(product(&second), (want, form));
        assert!(second.measurements().is_empty());
        assert_eq!(second.choices(), first.choices());
    }

    /// A fill with another text beside its own, measured: the forms that counted.
    fn measured(from: &str, to: &str) -> Vec<&'static str> {
        let other = fill::FILL.source.replace(from, to);
        assert_ne!(other, fill::FILL.source);
        let grid = |w: &[u32]| Grid(w[0].div_ceil(256));
        let form = crate::device::Form {
            home: Home::Any,
            ..crate::device::Form::direct(other.leak(), |_| true, grid)
        };
        let kernel: &'static Kernel = Box::leak(Box::new(Kernel {
            name: "fill of two forms",
            forms: Box::leak(Box::new([form])),
            ..fill::FILL
        }));
        let gpu = gpu(Forms::Remeasured);
        let device: DeviceRef = gpu.clone();
        let y = Buffer::new(&device, "y", 300).unwrap();
        let mut stream = Stream::new();
        let params = fill::Params { n: 300, value: 7 };
        stream.push(kernel, &params, &[y.all()], grid(&[300]));
        device.run(&stream).unwrap();
        assert_eq!(y.read_u32().unwrap(), vec![7; 300]);
        gpu.measurements().iter().map(|m| m.form).collect()
    }

    #[test]
    fn a_form_that_is_wrong_does_not_count() {
        assert_eq!(
            measured("y[i] = p.value", "y[i] = p.value + 1u"),
            ["portable"]
        );
        assert_eq!(measured("i < p.n", "i < p.n - 1u"), ["portable"]);
        // Nothing is wrong with this one.
        let right = measured("i < p.n", "!(i >= p.n)");
        assert_eq!(right, ["portable", "direct"]);
    }

    #[test]
    fn insisting_on_a_form_leaves_the_choices_alone() {
        let gpu = gpu(Forms::Fixed);
        let (_, chosen) = product(&gpu);
        let other = match chosen {
            "portable" => "tiled",
            _ => "portable",
        };
        gpu.insist(Some(other));
        assert_eq!(product(&gpu).1, other);
        gpu.insist(Some("lost"));
        assert_eq!(product(&gpu).1, chosen);
        gpu.insist(None);
        assert_eq!(product(&gpu).1, chosen);
    }

    #[test]
    fn a_choice_that_does_not_exist_is_ignored() {
        let first = gpu(Forms::Remeasured);
        product(&first);
        let mut choices = first.choices();
        choices
            .0
            .values_mut()
            .for_each(|form| *form = "lost".into());
        let second = gpu(Forms::Fixed);
        second.choose(&choices);
        assert_eq!(product(&second), product(&gpu(Forms::Fixed)));
    }
}
