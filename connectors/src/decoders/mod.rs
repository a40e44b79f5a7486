//! Every decoder, one file or folder each.

use crate::decoder::DecoderEntry;

/// Every decoder, in the order of the reference.
pub const DECODERS: &[DecoderEntry] = &[];
