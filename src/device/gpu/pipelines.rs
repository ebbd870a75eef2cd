//! Pipelines, made once per form of a kernel, and bind groups, made once per (kernel, buffers).

use super::{Gpu, SLOT_BYTES, State, one_line};
use crate::device::shader;
use crate::device::stream::{Launch, MAX_BINDINGS};
use crate::device::{Access, Kernel, Slice};
use anyhow::{Context, Result, bail};
use std::collections::hash_map::Entry;

/// A kernel and the buffers of a launch of it; unused places repeat the first.
pub(super) type BindGroupKey = (&'static str, [Slice; MAX_BINDINGS]);

pub(super) fn bind_group_key(launch: &Launch) -> BindGroupKey {
    (launch.kernel.name, launch.slices)
}

/// A kernel, the number of a form of it, and which bindings hold f16.
pub(super) type PipelineKey = (&'static str, usize, u32);

/// What all forms of a kernel share.
pub(super) struct Layout {
    kernel: &'static Kernel,
    group: wgpu::BindGroupLayout,
    pipeline: wgpu::PipelineLayout,
}

/// Binding 0: one slot of a uniform buffer.
pub(super) fn uniform_entry() -> wgpu::BindGroupLayoutEntry {
    wgpu::BindGroupLayoutEntry {
        binding: 0,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Uniform,
            has_dynamic_offset: true,
            min_binding_size: None,
        },
        count: None,
    }
}

impl Gpu {
    /// Makes the pipeline of a form unless it is cached.
    pub(super) fn pipeline(
        &self,
        state: &mut State,
        kernel: &'static Kernel,
        (form, halves): (usize, u32),
    ) -> Result<()> {
        if state.pipelines.contains_key(&(kernel.name, form, halves)) {
            return Ok(());
        }
        let (source, entry, constants) = kernel.text(form);
        let source = shader::text(source, kernel.bindings, halves)
            .with_context(|| format!("kernel {}", kernel.name))?;
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(kernel.name),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        };
        let module = if self.options.checked {
            self.device.create_shader_module(descriptor)
        } else {
            // SAFETY: the shaders are this crate's own, and every access is guarded by the launch parameters. The kernel
            // tests run the same text unchecked, with bindings that reach past each slice (`exposed`) into sentinels: a
            // write that a guard misses is found there.
            unsafe {
                let checks = wgpu::ShaderRuntimeChecks::unchecked();
                self.device.create_shader_module_trusted(descriptor, checks)
            }
        };
        let layout = match state.layouts.entry(kernel.name) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(free) => free.insert(self.layout(kernel, &state.firsts.layout)),
        };
        let pipeline = self
            .device
            .create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(kernel.name),
                layout: Some(&layout.pipeline),
                module: &module,
                entry_point: Some(entry),
                compilation_options: wgpu::PipelineCompilationOptions {
                    constants,
                    zero_initialize_workgroup_memory: false,
                },
                cache: None,
            });
        if let Some(error) = pollster::block_on(scope.pop()) {
            bail!(
                "kernel {} ({}) does not compile on {}: {}",
                kernel.name,
                kernel.form_name(form),
                self.info.name,
                one_line(&error)
            );
        }
        state.counters.pipelines_created += 1;
        let key = (kernel.name, form, halves);
        state.pipelines.insert(key, pipeline);
        Ok(())
    }

    fn layout(&self, kernel: &'static Kernel, firsts: &wgpu::BindGroupLayout) -> Layout {
        let mut entries = vec![uniform_entry()];
        for (i, binding) in kernel.bindings.iter().enumerate() {
            entries.push(wgpu::BindGroupLayoutEntry {
                binding: 1 + i as u32,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage {
                        read_only: binding.access == Access::In,
                    },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            });
        }
        let group = self
            .device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some(kernel.name),
                entries: &entries,
            });
        let pipeline = self
            .device
            .create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(kernel.name),
                bind_group_layouts: &[Some(&group), Some(firsts)],
                immediate_size: 0,
            });
        Layout {
            kernel,
            group,
            pipeline,
        }
    }

    /// Makes a bind group of a kernel whose layout is made, unless it is cached.
    pub(super) fn bind(&self, state: &mut State, key: BindGroupKey) {
        if state.bind_groups.contains_key(&key) {
            return;
        }
        let (name, slices) = key;
        let kernel = state.layouts[name].kernel;
        let buffers = slices[..kernel.bindings.len()].iter().map(|slice| {
            let buffer = state.buffers[slice.buffer as usize].as_ref();
            (buffer.expect("buffer is alive"), *slice)
        });
        let group = self.bind_group(state, kernel, buffers);
        state.counters.bind_groups_created += 1;
        state.bind_groups.insert(key, group);
    }

    /// Binds the parameter slots and these parts of buffers to a kernel whose layout is made.
    pub(super) fn bind_group<'a>(
        &self,
        state: &State,
        kernel: &Kernel,
        buffers: impl Iterator<Item = (&'a wgpu::Buffer, Slice)>,
    ) -> wgpu::BindGroup {
        let mut entries = vec![wgpu::BindGroupEntry {
            binding: 0,
            resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: &state.uniforms,
                offset: 0,
                size: wgpu::BufferSize::new(SLOT_BYTES as u64),
            }),
        }];
        for (i, (buffer, slice)) in buffers.enumerate() {
            let slice = slice.words();
            let size = match self.options.exposed {
                true => None,
                false => wgpu::BufferSize::new(4 * slice.len as u64),
            };
            entries.push(wgpu::BindGroupEntry {
                binding: 1 + i as u32,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer,
                    offset: 4 * slice.offset as u64,
                    size,
                }),
            });
        }
        self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(kernel.name),
            layout: &state.layouts[kernel.name].group,
            entries: &entries,
        })
    }
}
