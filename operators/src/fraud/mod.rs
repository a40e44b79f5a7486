//! Fraud detectors, one file or folder each.

pub mod finding_rows;
pub mod velocity;

use crate::detector::DetectorEntry;

/// Every detector, in the order of the reference.
pub const DETECTORS: &[DetectorEntry] = &[DetectorEntry::of::<velocity::Velocity>()];
