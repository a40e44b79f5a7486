//! Every source, one file or folder each.

pub mod http;
pub mod net;
pub mod stdin;
pub mod tcp;
pub mod udp;
pub mod unix;

use crate::source::SourceEntry;

pub mod file;

/// Every source, in the order of the reference.
pub const SOURCES: &[SourceEntry] = &[
    SourceEntry::of::<http::Http>(),
    SourceEntry::of::<stdin::Stdin>(),
    SourceEntry::of::<tcp::Tcp>(),
    SourceEntry::of::<udp::Udp>(),
    SourceEntry::of::<unix::Unix>(),
];
pub const SOURCES: &[SourceEntry] = &[SourceEntry::of::<file::File>()];
