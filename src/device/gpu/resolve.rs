//! Parameters that the device holds ([`crate::device::size`]): before the launches that need them, one dispatch copies
//! the words, through their arithmetic, into those launches' parameter slots. The host neither waits nor looks.

use super::{SLOT_BYTES, new_buffer};
use crate::device::Stream;
use crate::device::size::{Patch, Value};
use std::collections::HashMap;

const PATCH_WORDS: usize = 7;
const LENGTH: u32 = 0;
const SHARE: u32 = 1;

/// Patches to apply before launch `before`, all from one buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub before: usize,
    buffer: u32,
    first: u32,
    count: u32,
}

/// A stream's patches: the table the shader reads, and where each part of it is applied.
#[derive(Default)]
pub(super) struct Patches {
    pub segments: Vec<Segment>,
    table: Vec<u32>,
}

impl Patches {
    /// Collects what `stream` needs. A word may change with every launch that writes to its buffer, so a part ends there.
    pub fn collect(&mut self, stream: &Stream) {
        self.segments.clear();
        self.table.clear();
        let mut buffers: Vec<u32> = Vec::new();
        for (_, patch) in stream.launches.iter().flat_map(|l| l.patches()) {
            if !buffers.contains(&patch.word.buffer) {
                buffers.push(patch.word.buffer);
            }
        }
        for buffer in buffers {
            let mut open: Option<Segment> = None;
            for (i, launch) in stream.launches.iter().enumerate() {
                for (index, patch) in launch.patches().filter(|(_, p)| p.word.buffer == buffer) {
                    let first = (self.table.len() / PATCH_WORDS) as u32;
                    let segment = open.get_or_insert(Segment {
                        before: i,
                        buffer,
                        first,
                        count: 0,
                    });
                    segment.count += 1;
                    push(&mut self.table, i * SLOT_BYTES / 4 + index, patch);
                }
                if launch.writes(buffer) {
                    self.segments.extend(open.take());
                }
            }
            self.segments.extend(open);
        }
        self.segments.sort_by_key(|s| s.before);
    }
}

fn push(table: &mut Vec<u32>, slot: usize, patch: Patch) {
    let how = match patch.value {
        Value::Length {
            from,
            limit,
            times,
            per,
        } => [LENGTH, from, limit, times, per],
        Value::Share { scale } => [SHARE, scale, 0, 0, 0],
    };
    table.extend([slot as u32, patch.word.offset]);
    table.extend(how);
}

/// The dispatch and its buffers.
pub(super) struct Resolver {
    pipeline: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
    /// A slot per segment.
    params: wgpu::Buffer,
    table: wgpu::Buffer,
    groups: HashMap<u32, wgpu::BindGroup>,
}

const SEGMENTS: usize = 64;

impl Resolver {
    pub fn new(device: &wgpu::Device) -> Resolver {
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some("resolve"),
            source: wgpu::ShaderSource::Wgsl(include_str!("../../../shaders/resolve.wgsl").into()),
        });
        let entry = |binding, ty, has_dynamic_offset| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty,
                has_dynamic_offset,
                min_binding_size: None,
            },
            count: None,
        };
        let storage = |read_only| wgpu::BufferBindingType::Storage { read_only };
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some("resolve"),
            entries: &[
                entry(0, wgpu::BufferBindingType::Uniform, true),
                entry(1, storage(true), false),
                entry(2, storage(true), false),
                entry(3, storage(false), false),
            ],
        });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some("resolve"),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some("resolve"),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: Default::default(),
            cache: None,
        });
        Resolver {
            pipeline,
            layout,
            params: super::uniform_buffer(device, SEGMENTS),
            table: table_buffer(device, 1024 * PATCH_WORDS),
            groups: HashMap::new(),
        }
    }

    /// Makes room for a stream's table, and the bind group of each of its segments unless it is cached; how many were made.
    /// Bind groups bind the table, the segments and the parameter `slots`: all are made anew where one of those moves.
    pub fn reserve(
        &mut self,
        device: &wgpu::Device,
        patches: &Patches,
        buffers: &[Option<wgpu::Buffer>],
        (slots, mut moved): (&wgpu::Buffer, bool),
    ) -> u64 {
        if (self.table.size() as usize) < 4 * patches.table.len() {
            self.table = table_buffer(device, patches.table.len().next_power_of_two());
            moved = true;
        }
        let segments = patches.segments.len();
        if (self.params.size() as usize) < segments * SLOT_BYTES {
            self.params = super::uniform_buffer(device, segments.next_power_of_two());
            moved = true;
        }
        let mut wanted: Vec<u32> = patches.segments.iter().map(|s| s.buffer).collect();
        if moved {
            wanted.extend(std::mem::take(&mut self.groups).into_keys());
        }
        let mut made = 0;
        for buffer in wanted {
            self.groups.entry(buffer).or_insert_with(|| {
                made += 1;
                let counts = buffers[buffer as usize].as_ref();
                let counts = counts.expect("buffer is alive");
                let params = wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: &self.params,
                    offset: 0,
                    size: wgpu::BufferSize::new(SLOT_BYTES as u64),
                });
                let entry = |binding, resource| wgpu::BindGroupEntry { binding, resource };
                device.create_bind_group(&wgpu::BindGroupDescriptor {
                    label: Some("resolve"),
                    layout: &self.layout,
                    entries: &[
                        entry(0, params),
                        entry(1, self.table.as_entire_binding()),
                        entry(2, counts.as_entire_binding()),
                        entry(3, slots.as_entire_binding()),
                    ],
                })
            });
        }
        made
    }

    /// Uploads a stream's table to the room it was given; the bytes uploaded.
    pub fn upload(&self, queue: &wgpu::Queue, patches: &Patches) -> usize {
        if patches.segments.is_empty() {
            return 0;
        }
        let bytes: &[u8] = bytemuck::cast_slice(&patches.table);
        let mut slots = vec![0u32; patches.segments.len() * SLOT_BYTES / 4];
        for (slot, segment) in slots
            .chunks_exact_mut(SLOT_BYTES / 4)
            .zip(&patches.segments)
        {
            slot[..2].copy_from_slice(&[segment.first, segment.count]);
        }
        queue.write_buffer(&self.table, 0, bytes);
        queue.write_buffer(&self.params, 0, bytemuck::cast_slice(&slots));
        bytes.len() + 4 * slots.len()
    }

    /// Forgets the bind group of a buffer that is gone.
    pub fn forget(&mut self, buffer: u32) {
        self.groups.remove(&buffer);
    }

    /// Records segment `number`.
    pub fn dispatch(&self, pass: &mut wgpu::ComputePass, number: usize, segment: &Segment) {
        pass.set_pipeline(&self.pipeline);
        let group = &self.groups[&segment.buffer];
        pass.set_bind_group(0, group, &[(number * SLOT_BYTES) as u32]);
        pass.dispatch_workgroups(segment.count.div_ceil(64), 1, 1);
    }
}

fn table_buffer(device: &wgpu::Device, words: usize) -> wgpu::Buffer {
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
    new_buffer(device, "parameter patches", 4 * words, usage)
}

#[cfg(test)]
mod tests {
    use crate::device::{Buffer, DeviceRef, Grid, Size, Stream, Word};
    use crate::kernels::harness::devices;
    use crate::kernels::{add, fill};

    /// Added to zero it stays as it is, which bits of a denormal number do not on every GPU.
    const ONE: u32 = 1.0f32.to_bits();

    /// Counts that a launch of the same stream writes bound the launches after it, on every device.
    #[test]
    fn launches_see_the_counts_written_before_them() {
        devices::each(|h| {
            let device: DeviceRef = h.device().clone();
            let buffer = |words| Buffer::new(&device, "test", words).unwrap();
            let (counts, y) = (buffer(64), [buffer(100), buffer(100), buffer(100)]);
            let word = Word::at(counts.all(), 5);
            let mut s = Stream::new();
            let fill = |s: &mut Stream, y: &Buffer, size: Size| {
                let params = fill::Params { n: 100, value: ONE };
                s.push(&fill::FILL, &params, &[y.all()], Grid::cover(100, 256))
                    .size("n", size);
            };
            fill::fill_u32(&mut s, counts.all(), 30);
            fill(&mut s, &y[0], Size::held(word, 100) * 2);
            fill(&mut s, &y[1], Size::held(word, 100).part(20, 50));
            fill::fill_u32(&mut s, counts.all(), 90);
            fill(&mut s, &y[2], Size::held(word, 80));
            // Sums of zeros leave the buffers as they are; the last launch has nothing to be filled in.
            let zeros = buffer(100);
            add::add(&mut s, zeros.all(), y[0].all(), 100);
            device.run(&s).unwrap();
            let filled = y.map(|y| y.read_u32().unwrap().iter().filter(|&&w| w == ONE).count());
            assert_eq!(filled, [60, 10, 80]);
        });
    }
}
