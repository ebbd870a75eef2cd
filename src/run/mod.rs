//! What a run leaves on disk and shows on the terminal: the run folder, its metrics and
//! checkpoints, and progress.
//!
//! Nothing is ever half-written: files and checkpoint folders appear whole under their names
//! ([`atomic_write`], [`Checkpoints::save`]), and `metrics.jsonl` is cut back to the checkpoint that
//! a run resumes from ([`Metrics::resume`]).

mod checkpoint;
mod curves;
mod disk;
mod folder;
mod interrupt;
mod metrics;
mod progress;
mod state;

pub use checkpoint::Checkpoints;
pub use disk::{atomic_write, ensure_free, write_folder};
pub use folder::{Located, RunFolder, locate_model};
pub use interrupt::{Interrupt, Interrupted};
pub use metrics::{Entry, Metrics};
pub use progress::Progress;
pub use state::{Stage, State};
