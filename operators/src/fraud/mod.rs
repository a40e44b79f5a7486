//! Fraud detectors, one file each.

use crate::detector::DetectorEntry;

/// Every detector, in the order of the reference.
pub const DETECTORS: &[DetectorEntry] = &[];
