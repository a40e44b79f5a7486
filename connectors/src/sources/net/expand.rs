//! Decompression that cannot be turned against us: one layer, a bounded window, a bounded ratio.

use flate2::{Decompress, FlushDecompress, Status};
use schemars::JsonSchema;
use serde::Deserialize;
use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

/// How a stream of bytes is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// By its first bytes: gzip, zstd, or else none.
    Auto,
    /// A sequence of gzip members.
    Gzip,
    /// Not at all.
    #[default]
    None,
    /// A sequence of zstd frames with windows of up to 8 MiB.
    Zstd,
}

/// zstd frames that need a larger window (8 MiB) are refused.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// Output per byte of input.
const RATIO_MAX: u64 = 100;
/// The ratio is not looked at before this much output: small and very repetitive input is harmless.
const RATIO_FREE: u64 = 16 << 20;
/// What a gzip decoder occupies.
const INFLATE_BYTES: usize = 64 << 10;

const GZIP_MAGIC: &[u8] = &[0x1F, 0x8B];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xB5, 0x2F, 0xFD];

/// Why a compressed stream is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExpandError {
    /// It expands more than a hundredfold.
    Bomb,
    /// It is not what it says it is, or asks for too large a window.
    Corrupt,
    /// It ends in the middle.
    Truncated,
}

impl ExpandError {
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Bomb => "expansion",
            Self::Corrupt => "corrupt_compression",
            Self::Truncated => "truncated_compression",
        }
    }
}

enum Codec {
    Gzip(Decompress),
    Zlib(Decompress),
    Zstd(DCtx<'static>),
}

/// What one step did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Step {
    pub(crate) consumed: usize,
    pub(crate) produced: usize,
}

/// One layer of decompression.
pub(crate) struct Expander {
    codec: Codec,
    /// Between two members or frames, where a stream may end.
    at_boundary: bool,
    n_in: u64,
    n_out: u64,
}

impl Expander {
    /// A sequence of gzip members.
    pub(crate) fn gzip() -> Self {
        Self::of(Codec::Gzip(Decompress::new_gzip(15)))
    }

    /// One zlib stream: the `deflate` of HTTP.
    pub(crate) fn zlib() -> Self {
        Self::of(Codec::Zlib(Decompress::new(true)))
    }

    /// A sequence of zstd frames.
    pub(crate) fn zstd() -> Self {
        let mut context = DCtx::create();
        context
            .set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX))
            .expect("a fresh context takes a window in zstd's range");
        Self::of(Codec::Zstd(context))
    }

    fn of(codec: Codec) -> Self {
        Self { codec, at_boundary: true, n_in: 0, n_out: 0 }
    }

    /// What the decoder itself occupies, in bytes.
    pub(crate) fn memory(&self) -> usize {
        match &self.codec {
            Codec::Gzip(_) | Codec::Zlib(_) => INFLATE_BYTES,
            Codec::Zstd(context) => context.sizeof(),
        }
    }

    /// Expands some of `input` into `out`. To be called again until all input is consumed and `out` is not filled.
    pub(crate) fn step(&mut self, input: &[u8], out: &mut [u8]) -> Result<Step, ExpandError> {
        if input.is_empty() && self.at_boundary {
            return Ok(Step::default());
        }
        let step = match &mut self.codec {
            Codec::Gzip(inflate) => {
                if self.at_boundary && self.n_in > 0 {
                    *inflate = Decompress::new_gzip(15);
                }
                let (step, ended) = inflate_some(inflate, input, out)?;
                self.at_boundary = ended;
                step
            }
            Codec::Zlib(_) if self.at_boundary && self.n_in > 0 => return Err(ExpandError::Corrupt),
            Codec::Zlib(inflate) => {
                let (step, ended) = inflate_some(inflate, input, out)?;
                self.at_boundary = ended;
                step
            }
            Codec::Zstd(context) => {
                let mut from = InBuffer::around(input);
                let mut to = OutBuffer::around(out);
                let hint = context.decompress_stream(&mut to, &mut from).map_err(|_| ExpandError::Corrupt)?;
                let step = Step { consumed: from.pos(), produced: to.pos() };
                self.at_boundary = hint == 0;
                step
            }
        };
        // Never seen, but a decoder that stands still must not be asked for ever.
        if !input.is_empty() && !out.is_empty() && step.consumed == 0 && step.produced == 0 {
            return Err(ExpandError::Corrupt);
        }
        self.n_in += step.consumed as u64;
        self.n_out += step.produced as u64;
        if self.n_out > RATIO_FREE && self.n_out / RATIO_MAX > self.n_in {
            return Err(ExpandError::Bomb);
        }
        Ok(step)
    }

    /// To be called when the input has ended and everything was expanded.
    pub(crate) fn finish(&self) -> Result<(), ExpandError> {
        if self.at_boundary { Ok(()) } else { Err(ExpandError::Truncated) }
    }
}

fn inflate_some(inflate: &mut Decompress, input: &[u8], out: &mut [u8]) -> Result<(Step, bool), ExpandError> {
    let (n_in, n_out) = (inflate.total_in(), inflate.total_out());
    let status = inflate.decompress(input, out, FlushDecompress::None).map_err(|_| ExpandError::Corrupt)?;
    let consumed = (inflate.total_in() - n_in) as usize;
    let produced = (inflate.total_out() - n_out) as usize;
    Ok((Step { consumed, produced }, status == Status::StreamEnd))
}

/// What a stream that begins with `start` is compressed with; `None` as long as that is open.
pub(crate) fn sniff(start: &[u8]) -> Option<Compression> {
    let could_become = |magic: &[u8]| start.len() < magic.len() && magic.starts_with(start);
    if start.starts_with(GZIP_MAGIC) {
        Some(Compression::Gzip)
    } else if start.starts_with(ZSTD_MAGIC) {
        Some(Compression::Zstd)
    } else if could_become(GZIP_MAGIC) || could_become(ZSTD_MAGIC) {
        None
    } else {
        Some(Compression::None)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    /// Expands in pieces of the given sizes.
    fn expand(
        mut expander: Expander,
        input: &[u8],
        n_in: usize,
        n_out: usize,
    ) -> Result<Vec<u8>, ExpandError> {
        let mut all = Vec::new();
        let mut out = vec![0; n_out];
        for mut piece in input.chunks(n_in) {
            loop {
                let step = expander.step(piece, &mut out)?;
                piece = &piece[step.consumed..];
                all.extend_from_slice(&out[..step.produced]);
                if piece.is_empty() && step.produced < n_out {
                    break;
                }
            }
        }
        expander.finish().map(|()| all)
    }

    #[test]
    fn expands_members_and_frames_in_any_pieces() {
        let text: Vec<u8> = (0..5000u32).flat_map(|i| format!("line {i}\n").into_bytes()).collect();
        let twice = [&text[..], &text[..]].concat();
        let members = [gzip(&text), gzip(&text)].concat();
        let frame = zstd::bulk::compress(&text, 3).unwrap();
        let frames = [&frame[..], &frame[..]].concat();
        for (n_in, n_out) in [(1, 7), (13, 1), (100_000, 100_000), (4096, 4096)] {
            assert_eq!(expand(Expander::gzip(), &members, n_in, n_out).as_ref(), Ok(&twice));
            assert_eq!(expand(Expander::zstd(), &frames, n_in, n_out).as_ref(), Ok(&twice));
        }
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        zlib.write_all(&text).unwrap();
        assert_eq!(expand(Expander::zlib(), &zlib.finish().unwrap(), 10, 100).as_ref(), Ok(&text));
    }

    #[test]
    fn a_bomb_a_lie_and_a_stump_are_errors() {
        let bomb = gzip(&vec![b'a'; 64 << 20]);
        assert_eq!(expand(Expander::gzip(), &bomb, 4096, 65_536), Err(ExpandError::Bomb));
        let bomb = zstd::bulk::compress(&vec![b'a'; 64 << 20], 3).unwrap();
        assert_eq!(expand(Expander::zstd(), &bomb, 4096, 65_536), Err(ExpandError::Bomb));
        assert_eq!(expand(Expander::gzip(), b"no gzip at all", 100, 100), Err(ExpandError::Corrupt));
        assert_eq!(expand(Expander::zstd(), b"no zstd at all", 100, 100), Err(ExpandError::Corrupt));
        let whole = gzip(b"some text");
        assert_eq!(
            expand(Expander::gzip(), &whole[..whole.len() - 1], 100, 100),
            Err(ExpandError::Truncated)
        );
        let garbage_behind = [&whole[..], b"garbage"].concat();
        assert_eq!(expand(Expander::gzip(), &garbage_behind, 100, 100), Err(ExpandError::Corrupt));
    }

    #[test]
    fn a_window_over_the_limit_is_refused_before_memory_is_taken() {
        // Magic number, descriptor without content size, window byte 0xF8: 2 TiB.
        let frame = [0x28, 0xB5, 0x2F, 0xFD, 0x00, 0xF8, 0x01, 0x00, 0x00];
        let mut expander = Expander::zstd();
        assert_eq!(expander.step(&frame, &mut [0; 100]).err(), Some(ExpandError::Corrupt));
        assert!(expander.memory() < 1 << 20);
    }

    #[test]
    fn sniffing_waits_for_as_many_bytes_as_it_needs() {
        assert_eq!(sniff(b""), None);
        assert_eq!(sniff(b"\x1F"), None);
        assert_eq!(sniff(b"\x1F\x8B"), Some(Compression::Gzip));
        assert_eq!(sniff(b"("), None);
        assert_eq!(sniff(b"(\xB5\x2F\xFD"), Some(Compression::Zstd));
        assert_eq!(sniff(b"(a"), Some(Compression::None));
        assert_eq!(sniff(b"{"), Some(Compression::None));
    }
}
