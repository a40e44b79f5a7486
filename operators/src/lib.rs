//! What happens to rows: stateless steps, detectors, and the timely glue that they and views need.
//!
//! **Architecture invariant:** no tokio, no sockets, no clock, no random numbers. Time comes from rows and epochs.

pub mod detector;
pub mod expression;
pub mod flow;
pub mod fraud;
pub mod rows;
pub mod step;
pub mod steps;
#[cfg(test)]
mod stub;
pub mod view;

pub use detector::{
    Checkpoint, Detector, DetectorConfig, DetectorContext, DetectorCounters, DetectorEntry, Lifecycle,
    WorkerContext,
};
pub use expression::{CompileError, Compiler, Expression, ExpressionError};
pub use flow::{BatchStream, Batches};
pub use fraud::DETECTORS;
pub use step::{Emit, Reloadable, Stage, Step, StepConfig, StepContext, StepEntry, StepPlan};
pub use steps::STEPS;
pub use view::{Beginning, Snapshots, View, ViewInput, ViewOutcome, ViewOutput, ViewRows};
