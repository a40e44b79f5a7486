//! The pipeline: configuration, running dataflow, checkpoints, API and command line.
//!
//! **Architecture invariant:** `topology` is the only place where tokio and timely meet.

pub mod api;
pub mod checkpoint;
pub mod cli;
pub mod config;
mod explaining;
mod following;
pub mod postgres;
mod reading;
pub mod topology;
