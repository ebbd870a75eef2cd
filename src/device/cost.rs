//! What launches cannot do without: arithmetic, and memory traffic if every operand is moved once.

use super::Stream;
use std::collections::BTreeMap;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul};

/// The floor of a launch, or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Arithmetic: a fused multiply-add counts two; an exponential, a root, a division or a comparison one.
    pub operations: u64,
    /// Every operand read or written once.
    pub bytes: u64,
}

impl Add for Cost {
    type Output = Cost;

    fn add(self, other: Cost) -> Cost {
        Cost {
            operations: self.operations + other.operations,
            bytes: self.bytes + other.bytes,
        }
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Cost) {
        *self = *self + other;
    }
}

impl Mul<u64> for Cost {
    type Output = Cost;

    fn mul(self, times: u64) -> Cost {
        Cost {
            operations: self.operations * times,
            bytes: self.bytes * times,
        }
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Cost>>(costs: I) -> Cost {
        costs.fold(Cost::default(), Add::add)
    }
}

/// The launches of one kernel in a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelCost {
    pub launches: u64,
    pub cost: Cost,
}

impl Stream {
    /// The floor of the stream, by kernel.
    pub fn cost(&self) -> BTreeMap<&'static str, KernelCost> {
        let mut kernels: BTreeMap<_, KernelCost> = BTreeMap::new();
        for launch in &self.launches {
            let of = kernels.entry(launch.kernel.name).or_default();
            of.launches += 1;
            of.cost += launch.cost();
        }
        kernels
    }
}
