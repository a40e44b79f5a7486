//! Reads a file at an offset, compressed or not.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use super::Compression;
use super::registry::FileKey;

/// How much to decompress at once while looking for an offset.
const SKIP_BYTES: u64 = 256 << 10;

/// An open file. Offsets are those of the decompressed content.
pub(super) struct Reader {
    file: File,
    stream: Option<Stream>,
    compression: Compression,
}

/// A decompressor and what it made that may be asked for again: a line whose end was not there yet.
struct Stream {
    decoder: Box<dyn Read + Send>,
    window: Vec<u8>,
    /// The offset of the first byte of `window`.
    window_start: u64,
    end: End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    NotYet,
    /// The compressed data is whole.
    Whole,
    /// The file ends in the middle: it is still being written, or damaged.
    Torn,
}

impl Compression {
    /// How the file at `path` is compressed; never [`Self::Auto`].
    pub(super) fn of(self, path: &Path) -> Self {
        match (self, path.extension().and_then(|e| e.to_str())) {
            (Self::Auto, Some("gz")) => Self::Gzip,
            (Self::Auto, Some("zst")) => Self::Zstd,
            (Self::Auto, _) => Self::None,
            (other, _) => other,
        }
    }
}

/// Device and inode of a file.
pub(super) fn key_of(metadata: &Metadata) -> FileKey {
    FileKey { dev: metadata.dev(), ino: metadata.ino() }
}

impl Reader {
    /// Opens a regular file. Anything else (a named pipe would block) is refused.
    pub(super) fn open(path: &Path, compression: Compression) -> io::Result<(Self, Metadata)> {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok((Self { file, stream: None, compression: compression.of(path) }, metadata))
    }

    pub(super) fn is_compressed(&self) -> bool {
        self.compression != Compression::None
    }

    /// Whether the content can not grow any more: compressed data that is whole.
    pub(super) fn is_whole(&self) -> bool {
        self.stream.as_ref().is_some_and(|s| s.end == End::Whole)
    }

    /// Whether compressed data broke off.
    pub(super) fn is_torn(&self) -> bool {
        self.stream.as_ref().is_some_and(|s| s.end == End::Torn)
    }

    pub(super) fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }

    /// The file has changed: compressed data that broke off is worth another try.
    pub(super) fn changed(&mut self) {
        if self.stream.as_ref().is_some_and(|s| s.end != End::NotYet) {
            self.stream = None;
        }
    }

    /// Appends up to `len` bytes from `offset` to `out`; fewer only if there are no more now.
    pub(super) fn read_at(&mut self, offset: u64, len: usize, out: &mut Vec<u8>) -> io::Result<()> {
        if self.compression == Compression::None {
            self.file.seek(SeekFrom::Start(offset))?;
            (&self.file).take(len as u64).read_to_end(out)?;
            return Ok(());
        }
        if self.stream.as_ref().is_none_or(|s| offset < s.window_start) {
            self.stream = Some(self.start()?);
        }
        match &mut self.stream {
            Some(stream) => stream.read_at(offset, len, out),
            None => Ok(()),
        }
    }

    /// The first `len` bytes.
    pub(super) fn head(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut head = Vec::with_capacity(len);
        self.read_at(0, len, &mut head)?;
        Ok(head)
    }

    fn start(&self) -> io::Result<Stream> {
        let mut file = self.file.try_clone()?;
        file.seek(SeekFrom::Start(0))?;
        let file = BufReader::with_capacity(64 << 10, file);
        let decoder: Box<dyn Read + Send> = match self.compression {
            Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(file)?),
            _ => Box::new(MultiGzDecoder::new(file)),
        };
        Ok(Stream { decoder, window: Vec::new(), window_start: 0, end: End::NotYet })
    }
}

impl Stream {
    fn read_at(&mut self, offset: u64, len: usize, out: &mut Vec<u8>) -> io::Result<()> {
        while self.window_start + (self.window.len() as u64) < offset && self.end == End::NotYet {
            self.window_start += self.window.len() as u64;
            self.window.clear();
            self.fill((offset - self.window_start).min(SKIP_BYTES))?;
        }
        let skip = (offset - self.window_start).min(self.window.len() as u64);
        self.window.drain(..skip as usize);
        self.window_start += skip;
        if self.window_start < offset {
            return Ok(());
        }
        if self.window.len() < len && self.end == End::NotYet {
            self.fill((len - self.window.len()) as u64)?;
        }
        out.extend_from_slice(&self.window[..len.min(self.window.len())]);
        Ok(())
    }

    fn fill(&mut self, len: u64) -> io::Result<()> {
        match self.decoder.by_ref().take(len).read_to_end(&mut self.window) {
            Ok(n_read) if (n_read as u64) < len => self.end = End::Whole,
            Ok(_) => {}
            // What came before the break is good and stays in the window.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => self.end = End::Torn,
            Err(e) => return Err(e),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn check(suffix: &str, compress: impl Fn(&[u8]) -> Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(format!("x.{suffix}"));
        let content: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
        let compressed = compress(&content);
        std::fs::write(&path, &compressed).unwrap();
        let (mut reader, _) = Reader::open(&path, Compression::Auto).unwrap();
        for (offset, len) in [(0, 10), (5, 1000), (700_001, 50_000), (700_000, 10), (3, 3), (799_990, 100)] {
            let mut out = Vec::new();
            reader.read_at(offset, len, &mut out).unwrap();
            let end = content.len().min(offset as usize + len);
            assert_eq!(out, content[offset as usize..end], "{suffix} at {offset}");
        }
        // A file that breaks off gives what is there, and the rest once it is whole.
        let path = dir.path().join(format!("torn.{suffix}"));
        std::fs::write(&path, &compressed[..compressed.len() / 2]).unwrap();
        let (mut reader, _) = Reader::open(&path, Compression::Auto).unwrap();
        let mut out = Vec::new();
        reader.read_at(0, content.len(), &mut out).unwrap();
        assert!(out.len() < content.len() && content.starts_with(&out));
        if suffix != "txt" {
            assert!(reader.is_torn());
        }
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(&compressed[compressed.len() / 2..]).unwrap();
        reader.changed();
        let n_before = out.len() as u64;
        reader.read_at(n_before, content.len(), &mut out).unwrap();
        assert_eq!(out, content);
    }

    #[test]
    fn reads_at_any_offset_plain_and_compressed() {
        check("txt", <[u8]>::to_vec);
        check("gz", |content| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        });
        check("zst", |content| zstd::encode_all(content, 1).unwrap());
    }

    #[test]
    fn refuses_what_is_not_a_file() {
        assert!(Reader::open(Path::new("/dev/null"), Compression::Auto).is_err());
        assert!(Reader::open(Path::new("/tmp"), Compression::Auto).is_err());
    }
}
