//! Cutting what runs so that no driver's watchdog is woken.
//!
//! A driver takes a GPU that does not answer for a few seconds for hung and resets it. So neither a dispatch nor a submission
//! is to last longer than [`super::GpuOptions::max_launch`]: a launch that would is dispatched in several pieces of its grid,
//! a stream that would in several submissions. The same workgroups run on the same data, so the results are the same bits.
//!
//! How long a launch lasts follows from its floor and from how many seconds a unit of the floor took when a launch of its
//! shape class and form was timed. One that was not is taken to run at a rate below that of any device; only if it might be
//! long at that rate is it timed, where it first occurs, in pieces that grow from one that is short even so.

use super::{Gpu, SLOT_BYTES, State, new_buffer};
use crate::device::stream::{Launch, Stream};
use crate::device::tuning::Class;
use anyhow::Result;
use std::collections::HashMap;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Watchdogs wait for two seconds and more.
pub const MAX_LAUNCH: Duration = Duration::from_millis(250);

/// Workgroups of one dispatch: every adapter's limit.
const MAX_GROUPS: u32 = 65_535;

/// Seconds per unit of a floor where nothing is known: ten times what the worst kernel takes on a software adapter.
const SLOWEST: f64 = 1e-8;

/// A piece is to last the limit over this: not all workgroups of a launch take as long, and clocks vary.
const MARGIN: f64 = 2.0;

/// A launch that lasts less than this share of the limit, even at the slowest rate, need not be timed.
const SHORT: f64 = 0.125;

/// A launch over less than this share of the most it could run over, which the device knew, says nothing of its rate.
const TELLING: f64 = 1.0 / 64.0;

/// A piece under way may be this much longer than the last.
const GROWTH: u32 = 8;

/// Pieces of one submission that begin behind their grid's first workgroup.
const SLOTS: usize = 1024;

/// What lasts: a shape class in a form.
type Kind = (Class, usize);

/// Part of a launch's grid: one dispatch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Piece {
    pub launch: usize,
    pub first: u32,
    pub groups: u32,
    /// No piece of the launch follows.
    pub last: bool,
    seconds: f64,
}

/// What is known of how long launches last.
pub(super) struct Pace {
    /// Seconds that a dispatch and a submission may last, if there is a limit.
    limit: Option<f64>,
    /// Most workgroups of a dispatch.
    most: u32,
    /// Seconds per unit of the floor.
    rates: HashMap<Kind, f64>,
    /// How long each launch of the stream being run will last.
    expected: Vec<f64>,
}

impl Pace {
    pub fn new(limit: Option<Duration>, most: Option<u32>) -> Pace {
        Pace {
            limit: limit.map(|limit| limit.as_secs_f64()),
            most: most.unwrap_or(MAX_GROUPS).clamp(1, MAX_GROUPS),
            rates: HashMap::new(),
            expected: Vec::new(),
        }
    }

    pub fn clear(&mut self) {
        self.expected.clear();
    }

    /// Notes the next launch of the stream, of so much work; whether it has to be timed.
    fn expect(&mut self, kind: Kind, work: u64) -> bool {
        let work = work as f64;
        let rate = self.rates.get(&kind).copied();
        // What was not timed is no slower than what was.
        let slowest = || self.rates.values().copied().fold(0.0, f64::max);
        let unknown = || match self.rates.is_empty() {
            true => SLOWEST,
            false => slowest().min(SLOWEST),
        };
        self.expected.push(work * rate.unwrap_or_else(unknown));
        let long = |limit: f64| work * SLOWEST > SHORT * limit;
        rate.is_none() && self.limit.is_some_and(long)
    }

    /// Learns how long work of a kind lasted, of which the device says that it was so much of what it could have been.
    fn learn(&mut self, kind: Kind, (done, most): (u64, u64), seconds: f64) {
        let telling = done as f64 >= TELLING * most as f64;
        let rate = match telling && done > 0 {
            true => seconds / done as f64,
            false => SLOWEST,
        };
        self.rates.insert(kind, rate);
        if let Some(last) = self.expected.last_mut() {
            *last = most as f64 * rate;
        }
    }

    /// Workgroups of a piece of a grid of `groups`, all of which last so many seconds.
    fn groups_of_piece(&self, groups: u32, seconds: f64) -> u32 {
        let Some(limit) = self.limit else {
            return self.most;
        };
        match MARGIN * seconds > limit {
            true => self.groups_in(limit / MARGIN, seconds / groups as f64),
            false => self.most,
        }
    }

    /// Workgroups that take so many seconds, each of them.
    fn groups_in(&self, seconds: f64, each: f64) -> u32 {
        ((seconds / each) as u32).clamp(1, self.most)
    }

    /// Cuts launch `launch` of the stream, of so many workgroups.
    fn cut(&self, launch: usize, groups: u32, pieces: &mut Vec<Piece>) {
        let seconds = self.expected[launch];
        let most = self.groups_of_piece(groups, seconds);
        for first in (0..groups).step_by(most as usize) {
            let here = most.min(groups - first);
            pieces.push(Piece {
                launch,
                first,
                groups: here,
                last: first + here == groups,
                seconds: seconds * here as f64 / groups as f64,
            });
        }
    }

    /// How many of these pieces one submission takes.
    pub fn submission(&self, pieces: &[Piece]) -> usize {
        let limit = self.limit.unwrap_or(f64::INFINITY);
        let (mut slots, mut seconds) = (0, 0.0);
        let full = |piece: &Piece| {
            slots += (piece.first > 0) as usize;
            seconds += piece.seconds;
            slots > SLOTS || seconds > limit
        };
        let fit = pieces.iter().position(full);
        // One that is too long alone goes alone.
        fit.map_or(pieces.len(), |fit| fit.max(1))
    }
}

/// The unit of work is an operation, or a byte moved, whichever there are more of.
fn work(launch: &Launch) -> u64 {
    let cost = launch.cost();
    cost.operations.max(cost.bytes).max(1)
}

/// The numbers of the first workgroups of pieces, for `shaders/shared/grid.wgsl`: a slot each, the first of which is that of
/// every grid's first piece and holds 0.
pub(super) struct Firsts {
    pub layout: wgpu::BindGroupLayout,
    buffer: wgpu::Buffer,
    group: wgpu::BindGroup,
}

impl Firsts {
    pub fn new(device: &wgpu::Device) -> Firsts {
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some("first workgroup"),
            entries: &[super::pipelines::uniform_entry()],
        });
        let buffer = new_buffer(
            device,
            "first workgroups",
            (1 + SLOTS) * SLOT_BYTES,
            wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
        );
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("first workgroup"),
            layout: &layout,
            entries: &[wgpu::BindGroupEntry {
                binding: 0,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: &buffer,
                    offset: 0,
                    size: wgpu::BufferSize::new(SLOT_BYTES as u64),
                }),
            }],
        });
        Firsts {
            layout,
            buffer,
            group,
        }
    }

    /// Gives those of one submission their slots, in order. Earlier submissions have read theirs before this lands.
    pub fn upload(&self, queue: &wgpu::Queue, pieces: &[Piece]) {
        let mut bytes = Vec::new();
        for piece in pieces.iter().filter(|piece| piece.first > 0) {
            bytes.extend(piece.first.to_le_bytes());
            bytes.resize(bytes.len().next_multiple_of(SLOT_BYTES), 0);
        }
        if !bytes.is_empty() {
            queue.write_buffer(&self.buffer, SLOT_BYTES as u64, &bytes);
        }
    }

    /// Encodes the dispatch of a piece; `slots` counts those that pieces of the submission have taken.
    pub fn dispatch(&self, pass: &mut wgpu::ComputePass, piece: &Piece, slots: &mut usize) {
        let slot = match piece.first {
            0 => 0,
            _ => {
                *slots += 1;
                *slots
            }
        };
        pass.set_bind_group(1, &self.group, &[(slot * SLOT_BYTES) as u32]);
        pass.dispatch_workgroups(piece.groups, 1, 1);
    }
}

/// A launch that runs on its own, on the buffers that `group` binds.
pub(super) struct Alone<'a> {
    pub launch: &'a Launch,
    pub form: usize,
    /// Where its parameters are.
    pub slot: usize,
    pub group: &'a wgpu::BindGroup,
}

impl Gpu {
    /// Notes launch `i` of the stream, decided and bound, and runs it if its kind has to be timed; whether it did. Launches
    /// before it from `submitted` are submitted then.
    pub(super) fn pace(
        &self,
        state: &mut State,
        stream: &Stream,
        (submitted, i): (usize, usize),
    ) -> Result<bool> {
        let (launch, form) = (&stream.launches[i], state.selection.form(i));
        let kind = (self.class(launch), form);
        if !state.pace.expect(kind, work(launch)) {
            return Ok(false);
        }
        self.submit(state, stream, submitted..i);
        self.resolve(state, i);
        let group = state.bind_groups[&super::bind_group_key(launch)].clone();
        let alone = Alone {
            launch,
            form,
            slot: i,
            group: &group,
        };
        let seconds = self.first_run(state, &alone)?;
        self.learn(state, launch, form, seconds)?;
        Ok(true)
    }

    /// Learns from a launch that lasted so long; all that was submitted is done.
    pub(super) fn learn(
        &self,
        state: &mut State,
        launch: &Launch,
        form: usize,
        seconds: f64,
    ) -> Result<()> {
        let mut words = Vec::new();
        for (_, patch) in launch.patches() {
            let buffer = state.buffers[patch.word.buffer as usize].as_ref();
            let at = 4 * patch.word.offset as u64;
            let held = self.words(buffer.expect("buffer is alive"), at..at + 4)?;
            words.push((patch.word, held[0]));
        }
        let held = |word| words.iter().find(|(known, _)| *known == word);
        let done = launch.resolved(|word| held(word).expect("all were read").1);
        let kind = (self.class(launch), form);
        let works = (work(&done), work(launch));
        state.pace.learn(kind, works, seconds);
        Ok(())
    }

    /// Runs a launch of a kind that was not timed, in pieces that are not too long whatever its rate. The seconds it would
    /// last; what a driver does when a pipeline is first used counts only where there was but one piece.
    pub(super) fn first_run(&self, state: &State, alone: &Alone) -> Result<f64> {
        let groups = alone.launch.groups(alone.form).0;
        let slowest = SLOWEST * work(alone.launch) as f64 / groups as f64;
        let limit = state.pace.limit.unwrap_or(f64::INFINITY);
        let first = state.pace.groups_in(SHORT * limit, slowest).min(groups);
        let lasted = self.run_alone(state, alone, 0..first, 1)?;
        if first == groups {
            return Ok(lasted);
        }
        let (mut next, mut done, mut seconds) = (first, first, 0.0);
        while done < groups {
            let here = next.min(groups - done);
            seconds += self.run_alone(state, alone, done..done + here, 1)?;
            done += here;
            let each = seconds / (done - first) as f64;
            let safe = state.pace.groups_in(limit / MARGIN, each);
            next = safe.min(here.saturating_mul(GROWTH));
        }
        Ok(seconds * groups as f64 / (groups - first) as f64)
    }

    /// Runs a launch that lasts about `seconds`; the seconds it lasted.
    pub(super) fn run_again(&self, state: &State, alone: &Alone, seconds: f64) -> Result<f64> {
        let groups = alone.launch.groups(alone.form).0;
        let most = state.pace.groups_of_piece(groups, seconds);
        (0..groups)
            .step_by(most as usize)
            .map(|first| {
                let last = groups.min(first.saturating_add(most));
                self.run_alone(state, alone, first..last, 1)
            })
            .sum()
    }

    /// Runs these workgroups of a launch so many times and waits for them; seconds of one time.
    pub(super) fn run_alone(
        &self,
        state: &State,
        alone: &Alone,
        groups: Range<u32>,
        repeats: usize,
    ) -> Result<f64> {
        let (launch, most) = (alone.launch, state.pace.most);
        let pieces: Vec<Piece> = groups
            .clone()
            .step_by(most as usize)
            .map(|first| Piece {
                launch: alone.slot,
                first,
                groups: most.min(groups.end - first),
                last: false,
                seconds: 0.0,
            })
            .collect();
        let started = Instant::now();
        for pieces in pieces.chunks(SLOTS) {
            state.firsts.upload(&self.queue, pieces);
            let mut encoder = self.device.create_command_encoder(&Default::default());
            {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                let key = (launch.kernel.name, alone.form, launch.halves());
                pass.set_pipeline(&state.pipelines[&key]);
                pass.set_bind_group(0, alone.group, &[(alone.slot * SLOT_BYTES) as u32]);
                for _ in 0..repeats {
                    let mut slots = 0;
                    for piece in pieces {
                        state.firsts.dispatch(&mut pass, piece, &mut slots);
                    }
                }
            }
            self.queue.submit([encoder.finish()]);
        }
        self.wait()?;
        Ok(started.elapsed().as_secs_f64() / repeats as f64)
    }

    /// Cuts launches of the stream that were loaded.
    pub(super) fn pieces(&self, state: &State, stream: &Stream, range: Range<usize>) -> Vec<Piece> {
        let mut pieces = Vec::with_capacity(range.len());
        for i in range {
            let groups = stream.launches[i].groups(state.selection.form(i)).0;
            state.pace.cut(i, groups, &mut pieces);
        }
        pieces
    }

    /// Encodes and submits launches of the stream that were loaded.
    pub(super) fn submit(&self, state: &mut State, stream: &Stream, range: Range<usize>) {
        let pieces = self.pieces(state, stream, range);
        let mut rest = &pieces[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(state.pace.submission(rest));
            state.firsts.upload(&self.queue, now);
            let mut encoder = self.device.create_command_encoder(&Default::default());
            {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                let mut slots = 0;
                for piece in now {
                    if piece.first == 0 {
                        state.resolve(&mut pass, piece.launch);
                    }
                    state.encode(&mut pass, (stream, piece), &mut slots);
                }
            }
            self.queue.submit([encoder.finish()]);
            state.counters.submissions += 1;
            state.counters.dispatches += now.len() as u64;
            rest = later;
        }
    }
}

impl State {
    /// Encodes a piece of a launch of the stream that was loaded; `slots` as [`Firsts::dispatch`] counts them.
    pub(super) fn encode(
        &self,
        pass: &mut wgpu::ComputePass,
        (stream, piece): (&Stream, &Piece),
        slots: &mut usize,
    ) {
        let (i, launch) = (piece.launch, &stream.launches[piece.launch]);
        let key = (launch.kernel.name, self.selection.form(i), launch.halves());
        pass.set_pipeline(&self.pipelines[&key]);
        let group = &self.bind_groups[&super::bind_group_key(launch)];
        pass.set_bind_group(0, group, &[(i * SLOT_BYTES) as u32]);
        self.firsts.dispatch(pass, piece, slots);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::gpu::GpuOptions;
    use crate::device::gpu::forms::tests::gpu_with;
    use crate::device::{Buffer, DeviceRef, Grid};
    use crate::kernels::fill;
    use crate::kernels::matmul::{Dims, Form, matmul};
    use std::sync::Arc;

    /// Two kinds of launch.
    fn kinds() -> [Kind; 2] {
        let mut stream = Stream::new();
        let slice = crate::device::Slice {
            buffer: 0,
            offset: 0,
            len: 64,
            half: false,
        };
        fill::fill_u32(&mut stream, slice, 1);
        let class = Class::of(&stream.launches[0], 1);
        [(class, 0), (class, 1)]
    }

    /// What a launch of this kind and so much work, in 1000 workgroups, is cut in.
    fn cut(pace: &mut Pace, kind: Kind, work: u64) -> Vec<Piece> {
        pace.clear();
        pace.expect(kind, work);
        let mut pieces = Vec::new();
        pace.cut(0, 1000, &mut pieces);
        pieces
    }

    #[test]
    fn what_is_short_at_any_rate_is_neither_timed_nor_cut() {
        let (mut pace, [kind, _]) = (Pace::new(Some(MAX_LAUNCH), None), kinds());
        assert!(!pace.expect(kind, 3_000_000));
        assert!(pace.expect(kind, 4_000_000));
        assert_eq!(cut(&mut pace, kind, 3_000_000).len(), 1);
        let mut free = Pace::new(None, None);
        assert!(!free.expect(kind, u64::MAX));
        assert_eq!(cut(&mut free, kind, u64::MAX).len(), 1);
    }

    #[test]
    fn a_rate_that_was_learnt_says_how_to_cut() {
        let (mut pace, [kind, other]) = (Pace::new(Some(MAX_LAUNCH), None), kinds());
        // A unit takes a nanosecond, so this a second: eight pieces of half the limit.
        pace.learn(kind, (1_000_000, 1_000_000), 1e-3);
        assert!(!pace.expect(kind, u64::MAX));
        let pieces = cut(&mut pace, kind, 1_000_000_000);
        assert_eq!(pieces.len(), 8);
        let mut next = 0;
        for piece in &pieces {
            assert_eq!(piece.first, next);
            assert_eq!(piece.last, piece.first + piece.groups == 1000);
            next += piece.groups;
        }
        assert_eq!(next, 1000);
        // Two of them fill a submission.
        assert_eq!(pace.submission(&pieces), 2);
        // A tenth of that fits.
        assert_eq!(cut(&mut pace, kind, 100_000_000).len(), 1);
        // What was not timed is expected to be no slower.
        assert!(pace.expect(other, 1_000_000_000));
        pace.learn(other, (1_000_000, 1_000_000), 1e-9);
        assert_eq!(cut(&mut pace, other, 1_000_000_000).len(), 1);
    }

    #[test]
    fn a_launch_over_next_to_nothing_says_nothing_of_its_rate() {
        let (mut pace, [kind, _]) = (Pace::new(Some(MAX_LAUNCH), None), kinds());
        pace.learn(kind, (10, 100_000_000), 1e-6);
        assert_eq!(cut(&mut pace, kind, 100_000_000).len(), 8);
        pace.learn(kind, (50_000_000, 100_000_000), 0.01);
        assert_eq!(cut(&mut pace, kind, 100_000_000).len(), 1);
    }

    #[test]
    fn a_group_that_is_too_long_goes_alone_and_slots_bound_a_submission() {
        let (mut pace, [kind, _]) = (Pace::new(Some(MAX_LAUNCH), None), kinds());
        pace.learn(kind, (1, 1), 1.0);
        let pieces = cut(&mut pace, kind, 1000);
        assert_eq!(pieces.len(), 1000);
        assert_eq!(pace.submission(&pieces), 1);
        let mut pace = Pace::new(None, Some(1));
        pace.expect(kind, 1);
        let mut pieces = Vec::new();
        pace.cut(0, 3000, &mut pieces);
        assert_eq!(pieces.len(), 3000);
        assert_eq!(pace.submission(&pieces), 1 + SLOTS);
    }

    const DIMS: Dims = Dims {
        m: 200,
        n: 300,
        k: 400,
    };

    /// A product of a GPU opened so, added to itself, thrice; what it came to, and the counters of the last two times.
    fn product(options: GpuOptions) -> (Vec<u32>, [crate::device::Counters; 2]) {
        let gpu = gpu_with(options);
        let device: DeviceRef = gpu.clone();
        let values = |n: usize| (0..n).map(|i| (i % 17) as f32 - 8.3).collect::<Vec<_>>();
        let buffer = |n| Buffer::with_f32(&device, "operand", &values(n)).unwrap();
        let (a, b) = (buffer(DIMS.m * DIMS.k), buffer(DIMS.k * DIMS.n));
        let c = buffer(DIMS.m * DIMS.n);
        let mut stream = Stream::new();
        for _ in 0..2 {
            let (a, b, c) = (a.all(), b.all(), c.all());
            matmul(&mut stream, Form::NN, a, b, c, DIMS, true);
        }
        let run = |gpu: &Arc<Gpu>| {
            let before = device.counters();
            crate::device::Device::run(&**gpu, &stream).unwrap();
            device.counters() - before
        };
        run(&gpu);
        let counters = [run(&gpu), run(&gpu)];
        (c.read_u32().unwrap(), counters)
    }

    /// In pieces, and timed first, which adds to the product no more often.
    #[test]
    fn pieces_have_the_same_bits() {
        let whole = GpuOptions {
            max_launch: None,
            ..Default::default()
        };
        let (want, [counters, _]) = product(whole);
        assert_eq!((counters.submissions, counters.dispatches), (1, 2));
        let short = Duration::from_micros(10);
        let cut = [
            GpuOptions {
                max_groups: Some(1),
                ..whole
            },
            GpuOptions {
                max_launch: Some(short),
                ..whole
            },
            GpuOptions {
                max_launch: Some(short),
                forms: crate::device::tuning::Forms::Remeasured,
                exposed: true,
                ..whole
            },
        ];
        for options in cut {
            let (got, counters) = product(options);
            let forms = options.forms == whole.forms;
            assert!(!forms || got == want, "{options:?}");
            for c in counters {
                assert!(c.dispatches > 2, "{options:?}: {c:?}");
                let cut = options.max_launch.is_some();
                assert_eq!(c.submissions > 1, cut, "{options:?}: {c:?}");
            }
        }
    }

    /// One that is timed is run once, over the length that the device knows.
    #[test]
    fn timing_runs_what_the_device_knows() {
        let options = GpuOptions {
            max_launch: Some(Duration::from_micros(1)),
            ..Default::default()
        };
        let device: DeviceRef = gpu_with(options);
        let count = Buffer::new(&device, "count", 64).unwrap();
        let y = Buffer::new(&device, "y", 1 << 20).unwrap();
        let mut stream = Stream::new();
        fill::fill_u32(&mut stream, count.all(), 30_000);
        let params = fill::Params {
            n: 1 << 20,
            value: 7,
        };
        let word = crate::device::Word::at(count.all(), 5);
        let size = crate::device::Size::held(word, 1 << 20);
        let grid = Grid::cover(1 << 20, 256);
        let pushed = stream.push(&fill::FILL, &params, &[y.all()], grid);
        pushed.size("n", size);
        for _ in 0..2 {
            device.run(&stream).unwrap();
            let filled = y.read_u32().unwrap().iter().filter(|&&w| w == 7).count();
            assert_eq!(filled, 30_000);
        }
    }
}
