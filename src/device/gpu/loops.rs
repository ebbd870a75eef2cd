//! How long a loop of a shader may be. Lavapipe of Mesa 22 ends the loops of an invocation after 65,535 iterations in all,
//! whatever their conditions say, and says nothing: sums come out short. So a software adapter is asked at first.

use super::{new_buffer, one_line};
use crate::device::tuning::bits;
use crate::device::{Home, Launch};
use anyhow::{Result, anyhow};
use std::sync::mpsc::channel;
use wgpu::util::{BufferInitDescriptor, DeviceExt};

/// More than any sum here has terms; one million rounds take a millisecond where they are made.
const ASKED: u32 = 1 << 20;

/// Iterations that a loop is given, at most; [`u32::MAX`] if it gets all it asks for.
pub(super) fn longest(device: &wgpu::Device, queue: &wgpu::Queue) -> Result<u32> {
    use wgpu::BufferUsages as Use;
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: Some("loops"),
        source: wgpu::ShaderSource::Wgsl(include_str!("../../../shaders/loops.wgsl").into()),
    });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some("loops"),
        layout: None,
        module: &module,
        entry_point: Some("main"),
        compilation_options: Default::default(),
        cache: None,
    });
    let counts = device.create_buffer_init(&BufferInitDescriptor {
        label: Some("loop counts"),
        contents: bytemuck::cast_slice(&[ASKED, 0]),
        usage: Use::STORAGE | Use::COPY_SRC,
    });
    let landing = new_buffer(device, "loop counts", 8, Use::MAP_READ | Use::COPY_DST);
    let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some("loops"),
        layout: &pipeline.get_bind_group_layout(0),
        entries: &[wgpu::BindGroupEntry {
            binding: 0,
            resource: counts.as_entire_binding(),
        }],
    });
    let mut encoder = device.create_command_encoder(&Default::default());
    {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups(1, 1, 1);
    }
    encoder.copy_buffer_to_buffer(&counts, 0, &landing, 0, 8);
    queue.submit([encoder.finish()]);
    let (sender, mapped) = channel();
    landing.map_async(wgpu::MapMode::Read, .., move |result| {
        let _ = sender.send(result);
    });
    let failed = |e: &dyn std::fmt::Display| anyhow!("a first shader failed: {}", one_line(e));
    device
        .poll(wgpu::PollType::wait_indefinitely())
        .map_err(|e| failed(&e))?;
    match mapped.try_recv() {
        Ok(Ok(())) => (),
        Ok(Err(e)) => return Err(failed(&e)),
        Err(e) => return Err(failed(&e)),
    }
    let view = landing.get_mapped_range(..).map_err(|e| failed(&e))?;
    let made = bytemuck::cast_slice::<u8, u32>(&view)[1];
    Ok(if made < ASKED { made } else { u32::MAX })
}

/// Iterations for each of the `k` terms of a product's sums in forms for hardware, whose tiles nest loops.
const NESTED: u64 = 4;

/// Those of the forms `offered` for a launch whose loops all end by themselves.
pub(super) fn ending(launch: &Launch, offered: u32, longest: u32) -> u32 {
    let kernel = launch.kernel;
    let terms = kernel.params.iter().position(|param| param.name == "k");
    let terms = terms.map_or(0, |at| launch.params()[at]);
    if NESTED * terms as u64 <= longest as u64 {
        return offered;
    }
    let nests = |&form: &usize| form > 0 && kernel.forms[form - 1].home == Home::Hardware;
    bits(offered)
        .filter(nests)
        .fold(offered, |left, form| left & !(1 << form))
}

#[cfg(test)]
mod tests {
    use crate::device::{Buffer, Stream, admit_loop};
    use crate::kernels::form_names;
    use crate::kernels::harness::devices::{bare_gpu, unchecked_gpu};
    use crate::kernels::matmul::{Dims, Form, ITERATIONS, matmul};

    /// A sum of `k` ones in every form of the product.
    fn sums(k: usize) -> Vec<f32> {
        let sum = |form: &'static str| {
            let gpu = unchecked_gpu();
            let dims = Dims { m: 8, n: 32, k };
            let ones = |words| Buffer::with_f32(&gpu, "ones", &vec![1.0; words]).unwrap();
            let (a, b) = (ones(8 * k), ones(32 * k));
            let c = Buffer::new(&gpu, "c", 8 * 32).unwrap();
            gpu.insist(Some(form));
            let mut s = Stream::new();
            matmul(&mut s, Form::NN, a.all(), b.all(), c.all(), dims, false);
            gpu.run(&s).unwrap();
            c.read_f32().unwrap()
        };
        form_names().into_iter().flat_map(sum).collect()
    }

    /// What is admitted comes out whole, in every form; and where there is a limit, what is far beyond it does not.
    #[test]
    fn sums_that_are_admitted_are_whole() {
        let gpu = bare_gpu();
        let most = match gpu.longest_loop() {
            u32::MAX => 200_000,
            most => most as u64 / ITERATIONS,
        };
        admit_loop(&gpu, ITERATIONS * most, "this").unwrap();
        assert!(sums(most as usize).iter().all(|&sum| sum == most as f32));
        if gpu.longest_loop() < u32::MAX {
            let longer = gpu.longest_loop() as u64 + 100;
            let error = admit_loop(&gpu, longer, "this").unwrap_err().to_string();
            assert!(
                error.contains(&format!("this may take {longer}")),
                "{error}"
            );
            assert!(sums(longer as usize).iter().any(|&sum| sum < longer as f32));
        }
    }
}
