//! The files that entries lie in.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Length and checksum before each entry, in bytes.
pub(crate) const HEADER: usize = 8;

/// Appends an entry as a frame.
pub(crate) fn write_frame(entry: &[u8], out: &mut Vec<u8>) {
    let len = u32::try_from(entry.len()).expect("the log limits entries");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&checksum(len, entry).to_le_bytes());
    out.extend_from_slice(entry);
}

/// The entry at `at` and the place behind it, or why there is none.
pub(crate) fn read_frame(bytes: &[u8], at: usize) -> Result<(&[u8], usize), &'static str> {
    let rest = bytes.get(at..).unwrap_or_default();
    let (Some(len), Some(crc)) = (rest.first_chunk::<4>(), rest.get(4..).and_then(|r| r.first_chunk::<4>()))
    else {
        return Err("the entry is cut off");
    };
    let len = u32::from_le_bytes(*len);
    let Some(entry) = rest.get(HEADER..).and_then(|r| r.get(..len as usize)) else {
        return Err("the entry is cut off");
    };
    if checksum(len, entry) != u32::from_le_bytes(*crc) {
        return Err("the checksum does not match");
    }
    Ok((entry, at + HEADER + entry.len()))
}

fn checksum(len: u32, entry: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&len.to_le_bytes());
    hasher.update(entry);
    hasher.finalize()
}

/// The segments of a log with the number of their first entry, ascending.
pub(crate) fn list(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".log"));
        if let Some(first) = name.filter(|n| n.len() == 20).and_then(|n| n.parse().ok()) {
            segments.push((first, path));
        }
    }
    segments.sort_unstable();
    Ok(segments)
}

/// The file that begins with entry `first`.
pub(crate) fn path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}.log"))
}

/// Makes created, renamed and deleted names survive a power loss.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
