//! Every decoder, one file or folder each.

mod access_log;
mod clock;
mod columns;
mod json;
mod scalars;
mod syslog;
mod text;
mod texts;
mod views;

use crate::decoder::DecoderEntry;

pub use access_log::AccessLog;
pub use json::Json;
pub use syslog::{Syslog, SyslogFormat};
pub use text::{CharsetErrors, Text};

/// Every decoder, in the order of the reference.
pub const DECODERS: &[DecoderEntry] = &[
    DecoderEntry::of::<Json>(),
    DecoderEntry::of::<Text>(),
    DecoderEntry::of::<AccessLog>(),
    DecoderEntry::of::<Syslog>(),
];
