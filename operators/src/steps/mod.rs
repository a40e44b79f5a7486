//! Every step, one file each.

pub mod geoip;
pub mod lookup;
pub mod table;
mod table_columns;
mod table_file;

use crate::step::StepEntry;

/// Every step, in the order of the reference.
pub const STEPS: &[StepEntry] = &[StepEntry::of::<geoip::Geoip>(), StepEntry::of::<lookup::Lookup>()];
