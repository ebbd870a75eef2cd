//! The transformer (spec 2): pre-norm decoder with rotary grouped-query attention over forests, SwiGLU, a value head;
//! Hugging Face's tensor names and `config.json`. Forward and backward passes are recorded as streams of launches;
//! backward passes are written by hand, layer by layer, with no tape.

pub mod activations;
pub mod architecture;
pub mod backbone;
pub mod checkpoint;
pub mod layer;
pub mod layout;
pub mod optimiser;
pub mod value_head;

pub use activations::Activations;
pub use architecture::{Architecture, Family};
pub use backbone::{Asked, Model};
pub use layout::{Layout, Weights};
