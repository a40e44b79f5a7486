//! The records of the commit log.

use logdrive_schemas::{Epoch, Partition};
use serde::{Deserialize, Serialize};

use super::dedupe::{Pending, Seen};

/// Every so many commits a record holds all marks and identities, not only those that changed.
pub(super) const SNAPSHOT_COMMITS: u64 = 64;
/// The files of so many commits are listed together, so that readers need not open every record. A multiple of
/// [`SNAPSHOT_COMMITS`].
pub(super) const BLOCK_COMMITS: u64 = 256;

/// A message, or how far a partition has been written: source, partition, offset.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Identity(pub(super) String, pub(super) Partition, pub(super) u64);

/// One file of the lake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommittedFile {
    /// Its place below the lake's folder or prefix; as [`super::committed_files`] returns it, the path to open.
    pub path: String,
    /// The number of rows.
    pub rows: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// The earliest event time (arrival, for rows without one), in microseconds since the Unix epoch.
    pub min_time: i64,
    /// The latest event time.
    pub max_time: i64,
    /// The columns that name its folder, and their values as text; `None` for null or empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub partition: Vec<(String, Option<String>)>,
}

/// One commit: these files are in the lake, and the lake holds every row up to these marks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    /// The version of this format.
    pub(super) version: u32,
    pub(super) commit: u64,
    /// The last epoch that is covered.
    pub(super) epoch: Epoch,
    pub(super) files: Vec<CommittedFile>,
    /// Per partition with ordered offsets the highest one written: those that changed, or all in a snapshot.
    pub(super) marks: Vec<Identity>,
    /// Messages without ordered offsets: those of this commit, or all remembered ones in a snapshot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) ids: Vec<Identity>,
}

impl Record {
    pub(super) const VERSION: u32 = 1;

    pub(super) fn new(
        commit: u64,
        epoch: Epoch,
        files: Vec<CommittedFile>,
        pending: &Pending,
        seen: &Seen,
    ) -> Self {
        let (marks, ids) = if commit.is_multiple_of(SNAPSHOT_COMMITS) {
            let mut all = seen.clone();
            all.add(commit, &pending.marks(), &pending.ids);
            all.snapshot()
        } else {
            (pending.marks(), pending.ids.clone())
        };
        Self { version: Self::VERSION, commit, epoch, files, marks, ids }
    }

    /// A record without files, which keeps an earlier writer from using its number.
    pub(super) fn fence(commit: u64, seen: &Seen) -> Self {
        Self::new(commit, Epoch::default(), Vec::new(), &Pending::default(), seen)
    }
}

/// The name of a data file before its commit: no reader takes it for one of the lake.
pub(super) fn tmp_name(path: &str) -> String {
    format!("{}.tmp", path.rsplit('/').next().unwrap_or_default())
}

/// The files of [`BLOCK_COMMITS`] commits.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Block {
    pub(super) files: Vec<CommittedFile>,
}
