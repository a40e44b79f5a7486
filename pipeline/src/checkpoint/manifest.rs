//! The manifest of a checkpoint: what belongs to it. It is written last and never changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::folder::Folder;

/// Changes with the layout of manifests or files.
const FORMAT: u32 = 1;
const PREFIX: &str = "checkpoint-";
const SUFFIX: &str = ".json";
/// What a damaged manifest is called from then on.
const DAMAGED: &str = ".damaged";

/// A checkpoint: the state of all operators at a cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The layout of this file and of those that it names.
    pub format: u32,
    /// The epoch: everything of epochs before it is in the state, and nothing since.
    pub cut: u64,
    /// The checkpoint before.
    pub parent: Option<u64>,
    /// How many workers handed it in.
    pub workers: usize,
    /// How many virtual shards keys go to.
    pub shards: u16,
    /// By source and partition, behind the last message of epochs before the cut.
    pub positions: BTreeMap<String, BTreeMap<u64, u64>>,
    /// By name.
    pub operators: BTreeMap<String, OperatorState>,
}

/// The state of an operator, of all its instances.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorState {
    /// Of what it computes, in hexadecimal; state is used again only by an operator with the same.
    pub fingerprint: String,
    /// What is whole in each checkpoint, one part per worker.
    pub state: Blob,
    /// What is written as it changes, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tables: BTreeMap<String, TableState>,
}

/// Bytes, here or in a file of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blob {
    /// In base64: the parts, each with its length in eight bytes before it.
    Inline(String),
    /// A file that has the same.
    File(FileRef),
}

impl Default for Blob {
    fn default() -> Self {
        Self::Inline(String::new())
    }
}

/// A table: its newest rows are those that the later runs have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableState {
    /// How many columns, from the first, are a row's key; 0 if rows have none.
    pub keys: usize,
    /// The oldest first.
    pub runs: Vec<Run>,
}

/// What was written at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Unique in the folder.
    pub number: u64,
    /// Its rows; absent if it has none.
    pub file: Option<FileRef>,
    /// How many rows it has.
    pub rows: u64,
    /// How many keys it removes.
    pub removed: u64,
    /// How many rows there are of each partition, unless there are too many to say.
    pub partitions: Option<BTreeMap<i64, u64>>,
    /// Shards whose rows in older runs no longer count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cleared: Vec<Span>,
    /// Partitions whose rows in older runs no longer count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<Dropped>,
}

/// Shards from one to before another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Span(pub u16, pub u16);

impl Span {
    /// Whether it has this shard.
    #[must_use]
    pub fn contains(self, shard: u16) -> bool {
        (self.0..self.1).contains(&shard)
    }
}

/// A partition that is gone from some shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Dropped(pub i64, pub Span);

/// A file that is never changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRef {
    /// In the folder of the manifest.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// XXH3 of its content, in hexadecimal.
    pub xxh3: String,
}

impl FileRef {
    pub(super) fn new(name: &str, (bytes, hash): (u64, u64)) -> Self {
        Self { name: name.to_owned(), bytes, xxh3: hex(hash) }
    }
}

/// A number as manifests write it.
pub(super) fn hex(n: u64) -> String {
    format!("{n:016x}")
}

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Its name in the folder.
    pub file: String,
    /// What.
    pub what: String,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.file, self.what)
    }
}

impl Manifest {
    /// Of nothing.
    pub(super) fn empty(workers: usize) -> Self {
        Self {
            format: FORMAT,
            cut: 0,
            parent: None,
            workers,
            shards: logdrive_operators::flow::SHARDS,
            positions: BTreeMap::new(),
            operators: BTreeMap::new(),
        }
    }

    pub(super) fn name(cut: u64) -> String {
        format!("{PREFIX}{cut:020}{SUFFIX}")
    }

    /// The cuts whose manifests are among these files, ascending.
    pub(super) fn cuts(names: &[String]) -> Vec<u64> {
        let cut = |name: &String| name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse().ok();
        let mut cuts: Vec<u64> = names.iter().filter_map(cut).collect();
        cuts.sort_unstable();
        cuts
    }

    /// The cuts of manifests that were found to be damaged.
    pub(super) fn damaged_cuts(names: &[String]) -> impl Iterator<Item = u64> {
        names.iter().filter_map(|name| {
            name.strip_prefix(PREFIX)?.strip_suffix(DAMAGED)?.strip_suffix(SUFFIX)?.parse().ok()
        })
    }

    pub(super) fn damaged_name(cut: u64) -> String {
        Self::name(cut) + DAMAGED
    }

    /// The files that it needs, each once.
    pub fn files(&self) -> impl Iterator<Item = &FileRef> {
        let of_operators = self.operators.values().flat_map(|operator| {
            let blob = match &operator.state {
                Blob::File(file) => Some(file),
                Blob::Inline(_) => None,
            };
            let runs = operator.tables.values().flat_map(|table| &table.runs);
            blob.into_iter().chain(runs.filter_map(|run| run.file.as_ref()))
        });
        let mut seen = BTreeSet::new();
        of_operators.filter(move |file| seen.insert(&file.name))
    }

    /// Writes it. The files that it names are durable afterwards.
    pub(super) fn write(&self, folder: &Arc<Folder>) -> io::Result<()> {
        let mut text = serde_json::to_string(self).map_err(io::Error::other)?;
        let hash = xxh3_64(text.as_bytes());
        write!(text, "\nxxh3 {}\n", hex(hash)).expect("writing to a string cannot fail");
        folder.publish(&Self::name(self.cut), text.into_bytes())
    }

    /// Reads the manifest of a cut, but not the files that it names.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(folder: &Folder, cut: u64) -> Result<Self, Damage> {
        let name = Self::name(cut);
        let damage = |what: String| Damage { file: name.clone(), what };
        let bytes = folder.read(&name).map_err(|e| damage(e.to_string()))?;
        let text = String::from_utf8(bytes).map_err(|_| damage("not text".into()))?;
        let parts = text.strip_suffix('\n').and_then(|text| text.split_once("\nxxh3 "));
        let (json, hash) = parts.ok_or_else(|| damage("cut short".into()))?;
        if hash != hex(xxh3_64(json.as_bytes())) {
            return Err(damage("its checksum is another one".into()));
        }
        let manifest: Self = serde_json::from_str(json).map_err(|e| damage(e.to_string()))?;
        if manifest.format != FORMAT {
            let found = manifest.format;
            return Err(damage(format!("written in format {found}; this version reads format {FORMAT}")));
        }
        if manifest.cut != cut {
            return Err(damage(format!("it is of epoch {}", manifest.cut)));
        }
        Ok(manifest)
    }

    /// Compares the files that it names with their checksums.
    ///
    /// # Errors
    /// All that are not as they were written.
    pub(super) fn check(&self, folder: &Folder) -> Result<(), Vec<Damage>> {
        let wrong = |file: &FileRef| {
            let what = match folder.hash(file) {
                Ok((bytes, _)) if bytes != file.bytes => format!("{bytes} bytes instead of {}", file.bytes),
                Ok((_, hash)) if hex(hash) != file.xxh3 => "its checksum is another one".to_owned(),
                Ok(_) => return None,
                Err(error) => error.to_string(),
            };
            Some(Damage { file: file.name.clone(), what })
        };
        let damages: Vec<Damage> = self.files().filter_map(wrong).collect();
        if damages.is_empty() { Ok(()) } else { Err(damages) }
    }
}

/// The parts of a blob as one sequence of bytes.
pub(super) fn join(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut joined = Vec::new();
    for part in parts {
        joined.extend_from_slice(&(part.len() as u64).to_le_bytes());
        joined.extend_from_slice(part);
    }
    joined
}

impl Blob {
    pub(super) fn inline(joined: &[u8]) -> Self {
        Self::Inline(STANDARD.encode(joined))
    }

    /// Its parts, one per worker.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parts(&self, folder: &Folder) -> Result<Vec<Vec<u8>>, Damage> {
        let (joined, file) = match self {
            Self::Inline(text) => (STANDARD.decode(text).map_err(|e| e.to_string()), "the manifest"),
            Self::File(file) => (folder.read_copy(&file.name).map_err(|e| e.to_string()), file.name.as_str()),
        };
        let damage = |what: String| Damage { file: file.to_owned(), what };
        let joined = joined.map_err(damage)?;
        let (mut rest, mut parts) = (joined.as_slice(), Vec::new());
        while let Some((len, tail)) = rest.split_first_chunk::<8>() {
            let len = usize::try_from(u64::from_le_bytes(*len)).ok();
            let (part, tail) =
                len.and_then(|len| tail.split_at_checked(len)).ok_or_else(|| damage("cut short".into()))?;
            parts.push(part.to_vec());
            rest = tail;
        }
        if rest.is_empty() { Ok(parts) } else { Err(damage("cut short".into())) }
    }
}
