//! What must be remembered over restarts: which file each partition is.
//!
//! One JSON file, replaced atomically and synced before a partition's first chunk is handed out. Positions are not in
//! it: the runtime keeps those.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use logdrive_schemas::Partition;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::error::ConnectorError;
use crate::storage;

/// Device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct FileKey {
    pub(super) dev: u64,
    pub(super) ino: u64,
}

impl FileKey {
    /// The key of a file that is nowhere any more.
    pub(super) const NONE: Self = Self { dev: 0, ino: 0 };
}

/// What a file's content begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fingerprint {
    /// Of the first `len` bytes (decompressed).
    #[serde(rename = "fingerprint")]
    hash: u64,
    #[serde(rename = "fingerprint_len")]
    pub(super) len: u64,
}

impl Fingerprint {
    pub(super) fn of(head: &[u8]) -> Self {
        Self { hash: xxh3_64(head), len: head.len() as u64 }
    }

    /// Whether content that begins with `head` can be that which has this fingerprint.
    pub(super) fn begins(&self, head: &[u8]) -> bool {
        let len = usize::try_from(self.len).unwrap_or(usize::MAX);
        head.get(..len).is_some_and(|head| xxh3_64(head) == self.hash)
    }
}

/// One partition, and the file it was last found in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) partition: Partition,
    pub(super) key: FileKey,
    /// For finding what became of the file, lossy where it is not UTF-8.
    pub(super) path: String,
    #[serde(flatten)]
    pub(super) fingerprint: Fingerprint,
    /// Where reading began: 0, or the end at the time with `read_from: end`.
    pub(super) start: u64,
    /// When the file was last there, seconds since the Unix epoch.
    pub(super) seen: u64,
    /// Where reading goes on.
    #[serde(skip)]
    pub(super) next: u64,
    /// Whether an open file is this partition.
    #[serde(skip)]
    pub(super) claimed: bool,
}

impl Entry {
    /// Whether content that begins with `head` can be this partition's.
    pub(super) fn begins(&self, head: &[u8]) -> bool {
        self.fingerprint.begins(head)
    }
}

#[derive(Serialize, Deserialize)]
struct Saved {
    version: u32,
    next_generation: u64,
    files: Vec<Entry>,
}

/// The partitions known, and their numbering.
#[derive(Debug)]
pub(super) struct Registry {
    path: PathBuf,
    next_generation: u64,
    entries: HashMap<Partition, Entry>,
    /// Whether this is the very first start.
    pub(super) first_start: bool,
    dirty: bool,
}

const VERSION: u32 = 1;
/// Files not seen for so long are forgotten.
const FORGET_AFTER_SECS: u64 = 30 * 24 * 3600;
/// Of files that are gone, the latest so many are remembered.
const GONE_MAX: usize = 10_000;

/// Whether `name` is what a rotation may make of the name `of`: the same in the same folder, with something behind.
pub(super) fn is_rotated_name(of: &Path, name: &Path) -> bool {
    let (of, name) = (of.as_os_str().as_encoded_bytes(), name.as_os_str().as_encoded_bytes());
    name.strip_prefix(of).is_some_and(|rest| !rest.is_empty() && !rest.contains(&b'/')) && !of.ends_with(b"/")
}

fn now_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

impl Registry {
    /// Reads the registry; an absent one is empty. `delivered` says where each partition goes on.
    pub(super) fn open(
        state_dir: &Path,
        delivered: &HashMap<Partition, u64>,
    ) -> Result<Self, ConnectorError> {
        let path = state_dir.join("files.json");
        let (saved, first_start) = match fs::read(&path) {
            Ok(json) => (
                serde_json::from_slice::<Saved>(&json)
                    .map_err(|e| ConnectorError::storage(&path, e.into()))?,
                false,
            ),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                (Saved { version: VERSION, next_generation: 0, files: Vec::new() }, true)
            }
            Err(e) => return Err(ConnectorError::storage(&path, e)),
        };
        if saved.version != VERSION {
            let error = io::Error::new(io::ErrorKind::InvalidData, format!("version {}", saved.version));
            return Err(ConnectorError::storage(&path, error));
        }
        let entries = saved
            .files
            .into_iter()
            .map(|mut e| {
                e.next = delivered.get(&e.partition).copied().unwrap_or(e.start);
                (e.partition, e)
            })
            .collect();
        Ok(Self { path, next_generation: saved.next_generation, entries, first_start, dirty: first_start })
    }

    /// A partition for new content. Its number mixes what the content starts with, where it lies, and a counter that
    /// never goes back, so that no number comes twice even if a header, an inode or the whole registry does.
    pub(super) fn add(&mut self, key: FileKey, path: &Path, head: &[u8], start: u64) -> Partition {
        let seed =
            xxh3_64_with_seed(&[key.dev.to_le_bytes(), key.ino.to_le_bytes()].concat(), self.next_generation);
        self.next_generation += 1;
        let partition = Partition(xxh3_64_with_seed(head, seed));
        let entry = Entry {
            partition,
            key,
            path: path.display().to_string(),
            fingerprint: Fingerprint::of(head),
            start,
            seen: now_secs(),
            next: start,
            claimed: true,
        };
        self.entries.insert(partition, entry);
        self.dirty = true;
        partition
    }

    pub(super) fn get(&self, partition: Partition) -> Option<&Entry> {
        self.entries.get(&partition)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// Notes where reading goes on; kept by the runtime, not here.
    pub(super) fn advance(&mut self, partition: Partition, next: u64) {
        if let Some(entry) = self.entries.get_mut(&partition) {
            entry.next = next;
        }
    }

    /// The partition continues in this file. A rotated name does not replace the name it comes from: that is where
    /// to look after the next rotation.
    pub(super) fn claim(&mut self, partition: Partition, key: FileKey, path: &Path) {
        if let Some(entry) = self.entries.get_mut(&partition) {
            if !is_rotated_name(Path::new(&entry.path), path) && Path::new(&entry.path) != path {
                entry.path = path.display().to_string();
                self.dirty = true;
            }
            self.dirty |= entry.key != key;
            (entry.key, entry.claimed) = (key, true);
        }
    }

    /// The partition's file is no longer open.
    pub(super) fn release(&mut self, partition: Partition) {
        if let Some(entry) = self.entries.get_mut(&partition) {
            (entry.claimed, entry.seen) = (false, now_secs());
        }
    }

    /// The partition's content is no longer in the file that had it.
    pub(super) fn orphan(&mut self, partition: Partition) {
        self.release(partition);
        if let Some(entry) = self.entries.get_mut(&partition) {
            entry.key = FileKey::NONE;
            self.dirty = true;
        }
    }

    /// The file has grown: more of it tells it apart.
    pub(super) fn extend_fingerprint(&mut self, partition: Partition, fingerprint: Fingerprint) {
        if let Some(entry) = self.entries.get_mut(&partition) {
            entry.fingerprint = fingerprint;
            self.dirty = true;
        }
    }

    /// Makes changes durable, if there are any.
    pub(super) fn save(&mut self) -> Result<(), ConnectorError> {
        if !self.dirty {
            return Ok(());
        }
        self.forget();
        let mut files: Vec<Entry> = self.entries.values().cloned().collect();
        files.sort_by_key(|e| e.partition);
        let saved = Saved { version: VERSION, next_generation: self.next_generation, files };
        self.write(&saved).map_err(|e| ConnectorError::storage(&self.path, e))?;
        self.dirty = false;
        Ok(())
    }

    fn forget(&mut self) {
        let now = now_secs();
        for entry in self.entries.values_mut().filter(|e| e.claimed) {
            entry.seen = now;
        }
        self.entries.retain(|_, e| e.claimed || now < e.seen.saturating_add(FORGET_AFTER_SECS));
        let mut gone: Vec<(u64, Partition)> =
            self.entries.values().filter(|e| !e.claimed).map(|e| (e.seen, e.partition)).collect();
        if gone.len() > GONE_MAX {
            gone.sort_unstable();
            for (_, partition) in &gone[..gone.len() - GONE_MAX] {
                self.entries.remove(partition);
            }
        }
    }

    fn write(&self, saved: &Saved) -> io::Result<()> {
        storage::replace(&self.path, &serde_json::to_vec(saved)?)
    }
}
