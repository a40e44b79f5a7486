//! Every step, one file each.

pub mod add;
pub mod cast;
pub mod edit;
pub mod geoip;
pub mod keep;
pub mod lookup;
pub mod regex;
pub mod remove;
pub mod rename;
pub mod set;
pub mod table;
mod table_columns;
mod table_file;
#[cfg(test)]
mod testing;
pub mod r#where;

use crate::step::StepEntry;

/// Every step, in the order of the reference.
pub const STEPS: &[StepEntry] = &[
    StepEntry::of::<r#where::Where>(),
    StepEntry::of::<set::Set>(),
    StepEntry::of::<add::Add>(),
    StepEntry::of::<rename::Rename>(),
    StepEntry::of::<remove::Remove>(),
    StepEntry::of::<keep::Keep>(),
    StepEntry::of::<cast::Cast>(),
    StepEntry::of::<regex::Regex>(),
    StepEntry::of::<geoip::Geoip>(),
    StepEntry::of::<lookup::Lookup>(),
];
