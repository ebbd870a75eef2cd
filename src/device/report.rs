//! What `vstar doctor` tells of the adapters and of the host.

use super::gpu::describe;
use serde::Serialize;
use std::collections::BTreeMap;

/// The features that make or would make a difference here. None is required.
const FEATURES: [(&str, wgpu::Features); 6] = [
    ("SHADER_F16", wgpu::Features::SHADER_F16),
    ("SUBGROUP", wgpu::Features::SUBGROUP),
    ("TIMESTAMP_QUERY", wgpu::Features::TIMESTAMP_QUERY),
    ("IMMEDIATES", wgpu::Features::IMMEDIATES),
    ("PIPELINE_CACHE", wgpu::Features::PIPELINE_CACHE),
    (
        "EXPERIMENTAL_COOPERATIVE_MATRIX",
        wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX,
    ),
];

/// One adapter, before it is opened.
#[derive(Clone, Debug, Serialize)]
pub struct AdapterReport {
    /// What `--device` may be given; wgpu's order.
    pub index: usize,
    pub name: String,
    /// `discrete GPU`, `integrated GPU`, `virtual GPU`, `software` or `other`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub backend: String,
    /// Name and version.
    pub driver: String,
    /// PCI numbers, with Vulkan's extensions of them.
    pub vendor_id: u32,
    pub device_id: u32,
    pub subgroup_size_min: u32,
    pub subgroup_size_max: u32,
    pub limits: Limits,
    /// Name to whether the adapter has it.
    pub features: BTreeMap<&'static str, bool>,
    /// Products that cooperative matrices offer, as `16x16x16 f16 to f32`: rows, columns, terms, operands, sums.
    pub cooperative: Vec<String>,
}

/// The limits that kernels and buffers run into. Sizes are in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct Limits {
    pub storage_buffers_per_stage: u32,
    pub storage_binding_size: u64,
    pub buffer_size: u64,
    pub workgroup_memory: u32,
    pub invocations_per_workgroup: u32,
    pub workgroups_per_dimension: u32,
}

impl AdapterReport {
    pub fn new(index: usize, adapter: &wgpu::Adapter) -> Self {
        let info = describe(adapter);
        let about = adapter.get_info();
        let limits = adapter.limits();
        let features = adapter.features();
        AdapterReport {
            index,
            name: info.name,
            kind: match about.device_type {
                wgpu::DeviceType::DiscreteGpu => "discrete GPU",
                wgpu::DeviceType::IntegratedGpu => "integrated GPU",
                wgpu::DeviceType::VirtualGpu => "virtual GPU",
                wgpu::DeviceType::Cpu => "software",
                wgpu::DeviceType::Other => "other",
            },
            backend: info.backend,
            driver: info.driver,
            vendor_id: about.vendor,
            device_id: about.device,
            subgroup_size_min: about.subgroup_min_size,
            subgroup_size_max: about.subgroup_max_size,
            limits: Limits {
                storage_buffers_per_stage: limits.max_storage_buffers_per_shader_stage,
                storage_binding_size: limits.max_storage_buffer_binding_size,
                buffer_size: limits.max_buffer_size,
                workgroup_memory: limits.max_compute_workgroup_storage_size,
                invocations_per_workgroup: limits.max_compute_invocations_per_workgroup,
                workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
            },
            features: FEATURES
                .into_iter()
                .map(|(name, feature)| (name, features.contains(feature)))
                .collect(),
            cooperative: adapter
                .cooperative_matrix_properties()
                .iter()
                .map(|p| {
                    let [from, to] =
                        [p.ab_type, p.cr_type].map(|t| format!("{t:?}").to_lowercase());
                    format!("{}x{}x{} {from} to {to}", p.m_size, p.n_size, p.k_size)
                })
                .collect(),
        }
    }

    /// The names of the features that the adapter has, or has not.
    fn features(&self, present: bool) -> String {
        let names: Vec<_> = self
            .features
            .iter()
            .filter(|(_, has)| **has == present)
            .map(|(name, _)| *name)
            .collect();
        if names.is_empty() {
            "none".into()
        } else {
            names.join(" ")
        }
    }
}

impl std::fmt::Display for AdapterReport {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let limits = &self.limits;
        writeln!(f, "  {:<3} {}", self.index, self.name)?;
        writeln!(f, "      type       {}, {}", self.kind, self.backend)?;
        writeln!(f, "      driver     {}", self.driver)?;
        writeln!(
            f,
            "      ids        vendor {:#06x}, device {:#06x}",
            self.vendor_id, self.device_id
        )?;
        writeln!(
            f,
            "      subgroups  {} to {}",
            self.subgroup_size_min, self.subgroup_size_max
        )?;
        writeln!(
            f,
            "      buffers    {}, bindings {}, {} a stage",
            Bytes(limits.buffer_size),
            Bytes(limits.storage_binding_size),
            limits.storage_buffers_per_stage
        )?;
        writeln!(
            f,
            "      workgroups {} invocations, {}, {} per dimension",
            limits.invocations_per_workgroup,
            Bytes(limits.workgroup_memory.into()),
            limits.workgroups_per_dimension
        )?;
        if !self.cooperative.is_empty() {
            writeln!(f, "      matrices   {}", self.cooperative.join(", "))?;
        }
        writeln!(f, "      features   {}", self.features(true))?;
        write!(f, "      missing    {}", self.features(false))
    }
}

/// The machine the program runs on.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    pub os: &'static str,
    pub architecture: &'static str,
    /// Threads the CPU device uses.
    pub threads: usize,
    /// Bytes; unknown where there is no `/proc/meminfo`.
    pub memory: Option<u64>,
    /// Bytes that could be had without swapping.
    pub memory_available: Option<u64>,
}

impl Host {
    pub fn new() -> Self {
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Host {
            os: std::env::consts::OS,
            architecture: std::env::consts::ARCH,
            threads: rayon::current_num_threads(),
            memory: field(&meminfo, "MemTotal"),
            memory_available: field(&meminfo, "MemAvailable"),
        }
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(
            f,
            "{} {}, {} threads",
            self.os, self.architecture, self.threads
        )?;
        match (self.memory, self.memory_available) {
            (Some(all), Some(free)) => {
                write!(f, ", {} of {} memory available", Bytes(free), Bytes(all))
            }
            _ => Ok(()),
        }
    }
}

/// A field of `/proc/meminfo` in bytes.
fn field(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// A size in the largest binary unit that leaves at least 1.
pub struct Bytes(pub u64);

impl std::fmt::Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let unit = (self.0.max(1).ilog2() as usize / 10).min(UNITS.len() - 1);
        let size = self.0 as f64 / (1u64 << (10 * unit)) as f64;
        let digits = (size.fract() >= 0.05 && size < 100.0) as usize;
        write!(f, "{size:.digits$} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (32 * 1024, "32 KiB"),
            (128 << 20, "128 MiB"),
            (3 << 29, "1.5 GiB"),
            ((2 << 30) - 4, "2.0 GiB"),
            (u64::MAX, "16777216 TiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }

    #[test]
    fn memory_is_read_where_it_is_told() {
        let meminfo = "MemTotal:        2048 kB\nMemFree: 7 kB\nMemAvailable:  1024 kB\n";
        assert_eq!(field(meminfo, "MemTotal"), Some(2048 * 1024));
        assert_eq!(field(meminfo, "MemAvailable"), Some(1024 * 1024));
        assert_eq!(field("", "MemTotal"), None);
        assert_eq!(field("MemTotal: much kB", "MemTotal"), None);
    }
}
