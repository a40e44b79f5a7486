//! SQL: expressions for steps and detectors, the function library, views over streams, and queries over the Parquet
//! lake.
//!
//! **Architecture invariant:** nothing outside this crate knows DataFusion. Operators see compiled SQL as
//! [`Expression`](logdrive_operators::Expression), the pipeline sees answers as Arrow batches.

pub mod compiler;
pub mod functions;
pub mod lake;
pub mod output;
pub mod postgres;
mod session;
pub mod views;

pub use compiler::SqlCompiler;
pub use functions::{FUNCTIONS, Function, Functions};
pub use lake::{Answer, Options, Rows, Shape, SqlError, query, shape, stream};
pub use output::{to_csv, to_json, to_table};
