//! Every step, one file each.

use crate::step::StepEntry;

/// Every step, in the order of the reference.
pub const STEPS: &[StepEntry] = &[];
