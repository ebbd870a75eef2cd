//! Where a number that is not finite comes from: launches run one by one, and what they read and wrote is looked through.

use super::lockstep::Elements;
use super::{Access, DeviceRef, Launch, Slice, Stream};
use anyhow::Result;
use half::f16;
use std::collections::HashSet;
use std::fmt::{self, Display, Formatter};

/// The first value that is not finite.
#[derive(Clone, Debug, PartialEq)]
pub struct NotFinite {
    /// The launch that read it where nothing before had written it, or else wrote it, and the number of launches.
    pub launch: usize,
    pub launches: usize,
    pub kernel: &'static str,
    pub binding: &'static str,
    pub written: bool,
    pub slice: Slice,
    /// Its place in the slice.
    pub element: usize,
    pub value: f32,
}

impl Display for NotFinite {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        let did = if self.written { "wrote" } else { "read" };
        write!(
            f,
            "launch {} of {}, kernel {}, {did} {} in `{}`, element {}",
            self.launch + 1,
            self.launches,
            self.kernel,
            self.value,
            self.binding,
            self.element
        )
    }
}

/// Runs the launches of `stream` as long as `go_on` says so, and looks for the first value that is not finite. None if there
/// is none. What launches leave as it was in their outputs, of earlier steps, does not count.
pub fn first_not_finite(
    device: &DeviceRef,
    stream: &Stream,
    go_on: impl Fn(&Launch) -> bool,
) -> Result<Option<NotFinite>> {
    let count = stream.launches.iter().take_while(|l| go_on(l)).count();
    let launches = &stream.launches[..count];
    let written: HashSet<u32> = launches
        .iter()
        .flat_map(|launch| outputs(launch).map(|(_, slice)| slice.buffer))
        .collect();
    let mut read: HashSet<Slice> = HashSet::new();
    for (number, launch) in launches.iter().enumerate() {
        let look = |index: usize, written: bool| -> Result<Option<NotFinite>> {
            let (binding, slice) = (&launch.kernel.bindings[index], launch.slices()[index]);
            let words = device.read(&[slice])?.remove(0);
            let first = first(&Elements::of(binding.ty, slice), &words);
            Ok(first.map(|(element, value)| NotFinite {
                launch: number,
                launches: stream.launches.len(),
                kernel: launch.kernel.name,
                binding: binding.name,
                written,
                slice,
                element,
                value,
            }))
        };
        for (index, &slice) in launch.slices().iter().enumerate() {
            if !written.contains(&slice.buffer)
                && read.insert(slice)
                && let Some(found) = look(index, false)?
            {
                return Ok(Some(found));
            }
        }
        for (index, slice) in outputs(launch) {
            let elements = Elements::of(launch.kernel.bindings[index].ty, slice);
            let mut words = device.read(&[slice])?.remove(0);
            if first(&elements, &words).is_some() {
                clear(&elements, &mut words);
                device.write(slice, &words)?;
            }
        }
        device.run(&Stream {
            launches: vec![*launch],
            ..Stream::default()
        })?;
        for (index, _) in outputs(launch) {
            if let Some(found) = look(index, true)? {
                return Ok(Some(found));
            }
        }
    }
    Ok(None)
}

/// The number of each binding that a launch writes to, and what is bound there.
fn outputs(launch: &Launch) -> impl Iterator<Item = (usize, Slice)> + '_ {
    let slices = launch.slices().iter().enumerate();
    let written = |i: usize| launch.kernel.bindings[i].access == Access::Out;
    slices
        .filter(move |(i, _)| written(*i))
        .map(|(i, &slice)| (i, slice))
}

fn first(elements: &Elements, words: &[u32]) -> Option<(usize, f32)> {
    if let Elements::Integers = elements {
        return None;
    }
    let floats = elements.floats(words);
    let at = floats.iter().position(|x| !x.is_finite())?;
    Some((at, floats[at]))
}

/// Puts zeros where nothing finite is.
fn clear(elements: &Elements, words: &mut [u32]) {
    match elements {
        Elements::Integers => {}
        Elements::Floats => {
            let wrong = words
                .iter_mut()
                .filter(|w| !f32::from_bits(**w).is_finite());
            wrong.for_each(|word| *word = 0);
        }
        Elements::Halves => {
            let halves: &mut [u16] = bytemuck::cast_slice_mut(words);
            let wrong = halves
                .iter_mut()
                .filter(|h| !f16::from_bits(**h).is_finite());
            wrong.for_each(|half| *half = 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Buffer;
    use crate::kernels::harness::devices;
    use crate::kernels::{add, copy, fill};

    /// y = 1, z = y, z += x: with a number of `x`, or what was in z before, replaced.
    #[test]
    fn the_first_launch_and_its_binding_are_named() {
        devices::each(|h| {
            let device: DeviceRef = h.device().clone();
            let [x, y, z] = [100; 3].map(|n| Buffer::new(&device, "test", n).unwrap());
            let mut s = Stream::new();
            fill::fill_f32(&mut s, y.first(50), 1.0);
            copy::copy(&mut s, y.all(), z.all(), 50);
            add::add(&mut s, x.all(), z.all(), 100);
            let find = |values: [f32; 2], go_on: usize| {
                let mut words = vec![0.0f32; 100];
                words[7] = values[0];
                x.write_f32(&words).unwrap();
                words[7] = 0.0;
                words[80] = values[1];
                z.write_f32(&words).unwrap();
                let goes_on = |launch: &Launch| {
                    let stop = s.launches.get(go_on);
                    stop.is_none_or(|stop| stop.kernel.name != launch.kernel.name)
                };
                let found = first_not_finite(&device, &s, goes_on).unwrap();
                found.map(|found| found.to_string())
            };
            assert_eq!(find([1.0, 2.0], 3), None);
            // Left by an earlier step: nobody's fault, and cleared.
            assert_eq!(find([1.0, f32::NAN], 3), None);
            let name = add::ADD.bindings[0].name;
            assert_eq!(
                find([f32::INFINITY, 0.0], 3).unwrap(),
                format!("launch 3 of 3, kernel add, read inf in `{name}`, element 7")
            );
            assert_eq!(find([f32::INFINITY, 0.0], 2), None);
            // Too large a sum.
            x.write_f32(&[f32::MAX; 100]).unwrap();
            let mut s = Stream::new();
            fill::fill_f32(&mut s, z.all(), f32::MAX);
            add::add(&mut s, x.all(), z.all(), 100);
            let found = first_not_finite(&device, &s, |_| true).unwrap().unwrap();
            assert!(found.written && found.launch == 1 && found.value == f32::INFINITY);
        });
    }
}
