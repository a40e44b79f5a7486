//! Every source, one file or folder each.

use crate::source::SourceEntry;

/// Every source, in the order of the reference.
pub const SOURCES: &[SourceEntry] = &[];
