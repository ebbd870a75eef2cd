//! Evaluation (spec 7): pure functions from ranked lists to figures with intervals. No model, no device.
//!
//! ```text
//! Evaluator::add(ranked list, target, worth)   one test user at a time
//!     .finish()  -> Evaluation { per_user, exposure }
//! Report::new(protocol, &evaluation, &bootstrap)   every figure, as JSON
//! table(&[Row])                                    systems side by side
//! compare(&bootstrap, &a, &b, |p| p.ranking(..))   paired difference of two systems
//! ```

pub mod baseline;
pub mod bootstrap;
pub mod metrics;
pub mod per_user;
pub mod report;
mod seeds;
pub mod system;
mod user_file;

pub use baseline::popularity_ranking;
pub use bootstrap::{Bootstrap, Difference, Figure, Statistic};
pub use metrics::{Distance, Embeddings, Evaluation, Evaluator, INVALID, SidInfo};
pub use per_user::{Bucket, Credit, Gain, PerUser};
pub use report::{Report, Row, compare, table};
