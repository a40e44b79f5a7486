//! Every decoder, one file or folder each.

mod json;
mod text;
mod views;

use crate::decoder::DecoderEntry;

pub use json::Json;
pub use text::{CharsetErrors, Text};

/// Every decoder, in the order of the reference.
pub const DECODERS: &[DecoderEntry] = &[DecoderEntry::of::<Json>(), DecoderEntry::of::<Text>()];
