//! The file that says how far a folder is delivered, and who the folder is. Replaced atomically.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use super::frame::array;

/// The file's name.
pub(super) const NAME: &str = "cursor";

const MAGIC: &[u8; 8] = b"LogdrCu1";
const LEN: usize = 36;

/// What a folder keeps for life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// The partition of its messages, random: a new folder never continues another's numbers.
    pub(super) partition: u64,
    /// Goes into every checksum and never leaves the folder.
    pub(super) key: u64,
}

impl Identity {
    /// A new one.
    pub(super) fn random() -> Self {
        Self { partition: rand::random(), key: rand::random() }
    }
}

/// Reads it; `None` if there is none.
///
/// # Errors
/// `InvalidData` if it is damaged.
pub(super) fn read(dir: &Path) -> io::Result<Option<(Identity, u64)>> {
    let bytes = match fs::read(dir.join(NAME)) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let number = |at: usize| u64::from_le_bytes(array(&bytes[at..]));
    let valid = bytes.len() == LEN
        && &bytes[..8] == MAGIC
        && crc32fast::hash(&bytes[..32]) == u32::from_le_bytes(array(&bytes[32..]));
    if !valid {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Some((Identity { partition: number(8), key: number(16) }, number(24))))
}

/// Replaces it; durable on return.
pub(super) fn write(dir: &Path, identity: Identity, delivered: u64) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(LEN);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&identity.partition.to_le_bytes());
    bytes.extend_from_slice(&identity.key.to_le_bytes());
    bytes.extend_from_slice(&delivered.to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
    let path = dir.join("cursor.tmp");
    let mut file = File::create(&path)?;
    file.write_all(&bytes)?;
    file.sync_data()?;
    fs::rename(&path, dir.join(NAME))?;
    sync_dir(dir)
}

/// Makes created, renamed and deleted names survive a power loss.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
