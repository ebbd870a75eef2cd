//! `vstar`: trains a generative recommender with V-STAR (value-guided tree decoding + Sibling-GRPO,
//! arXiv 2602.10699) on any GPU through wgpu, or on the CPU.
//!
//! Arrows point one way: `cli -> bench -> learn, eval -> decode -> model -> kernels -> device`, and
//! `cli -> sid -> kernels`, `cli -> export -> kernels`, `sid -> embed -> data`; `calendar`, `catalog`, `data`, `forest`, `config`, `fingerprint`, `floats`,
//! `plot` and `rng` are leaves. See `docs/architecture.md`.

// A launch names every slice and size of its kernel, and a struct for each would only repeat the shader's bindings.
#![allow(clippy::too_many_arguments)]

pub mod bench;
pub mod calendar;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod data;
pub mod decode;
pub mod device;
pub mod embed;
pub mod eval;
pub mod export;
pub mod fingerprint;
pub mod floats;
pub mod forest;
pub mod kernels;
pub mod learn;
pub mod model;
pub mod plot;
pub mod rng;
pub mod run;
pub mod sid;
