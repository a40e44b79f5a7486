//! Every source, one file or folder each.

use crate::source::SourceEntry;

pub mod file;
pub mod generate;

/// Every source, in the order of the reference.
pub const SOURCES: &[SourceEntry] =
    &[SourceEntry::of::<file::File>(), SourceEntry::of::<generate::Generate>()];
