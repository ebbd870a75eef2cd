//! Dispatching launches, whole or in pieces, and streams, in one submission or several, as [`super::pace`] cuts them; and
//! timing what it does not know yet.

use super::pace::{Piece, SLOTS, parts, work};
use super::{Gpu, SLOT_BYTES, State, bind_group_key, new_buffer};
use crate::device::stream::{Launch, Stream};
use crate::device::tuning::Class;
use anyhow::Result;
use std::ops::Range;
use std::time::Instant;

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
    /// Notes launch `i` of the stream, of this class, decided and bound, and runs it if its kind has to be timed; whether it did. Launches
    /// before it from `submitted` are submitted then.
    pub(super) fn pace(
        &self,
        state: &mut State,
        stream: &Stream,
        (submitted, i): (usize, usize),
        class: Class,
    ) -> Result<bool> {
        let (launch, form) = (&stream.launches[i], state.selection.form(i));
        if !state.pace.expect((class, form), work(launch)) {
            return Ok(false);
        }
        self.submit(state, stream, submitted..i);
        self.resolve(state, i);
        // What was submitted before must not count.
        self.wait()?;
        let group = state.bind_groups[&bind_group_key(launch)].clone();
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
        let first = state.pace.first_piece(groups, work(alone.launch));
        let lasted = self.run_alone(state, alone, 0..first, 1)?;
        if first == groups {
            return Ok(lasted);
        }
        let (mut next, mut done, mut seconds) = (first, first, 0.0);
        while done < groups {
            let here = next.min(groups - done);
            seconds += self.run_alone(state, alone, done..done + here, 1)?;
            done += here;
            next = state.pace.next_piece(here, seconds / (done - first) as f64);
        }
        Ok(seconds * groups as f64 / (groups - first) as f64)
    }

    /// Runs a launch that lasts about `seconds`; the seconds it lasted.
    pub(super) fn run_again(&self, state: &State, alone: &Alone, seconds: f64) -> Result<f64> {
        let groups = alone.launch.groups(alone.form).0;
        let most = state.pace.groups_of_piece(groups, seconds);
        parts(0..groups, most)
            .map(|part| self.run_alone(state, alone, part, 1))
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
        let launch = alone.launch;
        let pieces = parts(groups, state.pace.most).map(|part| Piece {
            launch: alone.slot,
            first: part.start,
            groups: part.len() as u32,
            last: false,
            seconds: 0.0,
        });
        let pieces: Vec<Piece> = pieces.collect();
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
        let group = &self.bind_groups[&bind_group_key(launch)];
        pass.set_bind_group(0, group, &[(i * SLOT_BYTES) as u32]);
        self.firsts.dispatch(pass, piece, slots);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::gpu::GpuOptions;
    use crate::device::gpu::forms::tests::gpu_with;
    use crate::device::tuning::Forms;
    use crate::device::{Buffer, Counters, Device, DeviceRef, Grid, Size, Word};
    use crate::kernels::fill;
    use crate::kernels::matmul::{Dims, Form, matmul};
    use std::sync::Arc;
    use std::time::Duration;

    const DIMS: Dims = Dims {
        m: 200,
        n: 300,
        k: 400,
    };

    /// A product of a GPU opened so, added to itself, thrice; what it came to, and the counters of the last two times.
    fn product(options: GpuOptions) -> (Vec<u32>, [Counters; 2]) {
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
            gpu.run(&stream).unwrap();
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
                forms: Forms::Remeasured,
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

    /// One that is timed runs over the length that the device knows.
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
        let word = Word::at(count.all(), 5);
        let size = Size::held(word, 1 << 20);
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
