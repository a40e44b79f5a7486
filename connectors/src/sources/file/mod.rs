//! The `file` source: follows log files as they grow, are rotated, truncated, renamed, deleted.
//!
//! A file's content is a log of its own: the offset of a message is the byte offset of its line's start. What a
//! *partition* is, and how a file is found again, is the hard part:
//!
//! - A file is known by device and inode while it lives, so two paths to one file (links) are one file, and a renamed
//!   file is read on to its end through the handle that is held.
//! - A partition is one *generation* of a file's content. It gets its number once its first line is complete, and the
//!   number is never used again. The registry in the state folder remembers for each partition the device, the inode
//!   and the *fingerprint*: the hash of the first `fingerprint_bytes` bytes, or of as many as there were, extended as
//!   the file grows. It is on disk before the partition's first chunk is handed out.
//! - After a restart a file continues a partition if device, inode and fingerprint match; or if only a full-length
//!   fingerprint matches (a rotated file that was copied, compressed or restored). All else is a new partition.
//! - Truncation in place (`copytruncate`) ends a partition: the file is shorter than what was read, or its first bytes
//!   or the last ones that were read are no longer there. Both are compared on every read, since either may be the
//!   same in the next content. The copy that was made of the old content continues the partition, whether `paths`
//!   names it or not, so what was copied but not yet read is not lost. What is written between copy and truncation is
//!   lost by the rotation itself, as with every reader.
//!
//! All file access happens on a blocking thread, in `tailer::Tailer`, which knows nothing of tokio.

mod identity;
mod read;
mod reader;
mod registry;
mod tailer;
mod watch;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use logdrive_schemas::component::{Component, ConfigError, Span, bytes, duration};
use logdrive_schemas::{Chunk, Partition, Position};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::task::JoinHandle;

use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::source::{Budget, Source, SourceConfig, SourceKind};
use tailer::{Progress, Tailer};

/// Reads lines of files, and follows the files as they grow and are rotated.
///
/// Rotation by rename, by copy and truncate, and by deletion are all followed. A line without its newline is not yet a
/// message. Files that appear later are read from their beginning. Compressed files are read once, whole.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Which files: paths with `*`, `?`, `[a-z]` and `**`.
    pub(super) paths: Vec<String>,
    /// Which of them not, in the same notation.
    #[serde(default)]
    pub(super) exclude: Vec<String>,
    /// Where to begin in files that are there when the source starts for the very first time: `beginning` or `end`.
    #[serde(default)]
    pub(super) read_from: ReadFrom,
    /// The longest line. Of a longer one the beginning is kept, as a reject.
    #[serde(default = "max_line_bytes", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub(super) max_line_bytes: u64,
    /// How many bytes at a file's beginning tell it from others. Raise it if files start with a long common header.
    #[serde(default = "fingerprint_bytes", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub(super) fingerprint_bytes: u64,
    /// How often to look for new lines and new files.
    #[serde(default = "poll_interval", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub(super) poll_interval: Duration,
    /// How long a file that was renamed or deleted is still followed after its last growth.
    #[serde(default = "rotate_wait", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub(super) rotate_wait: Duration,
    /// Whether to wait for more at the end. If not, the source ends when all files were read to their end.
    #[serde(default = "follow")]
    pub(super) follow: bool,
    /// How files are compressed; `auto` goes by the name: `.gz`, `.zst`.
    #[serde(default)]
    pub(super) compression: Compression,
}

/// Where to begin in files that are there at the very first start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReadFrom {
    /// With what they contain.
    #[default]
    Beginning,
    /// With what is appended from now on.
    End,
}

/// How files are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// By name: `.gz` is gzip, `.zst` is zstd, all else is not compressed.
    #[default]
    Auto,
    /// All are gzip.
    Gzip,
    /// None is.
    None,
    /// All are zstd.
    Zstd,
}

fn max_line_bytes() -> u64 {
    1 << 20
}

fn fingerprint_bytes() -> u64 {
    1024
}

fn poll_interval() -> Duration {
    Duration::from_millis(250)
}

fn rotate_wait() -> Duration {
    Duration::from_secs(30)
}

fn follow() -> bool {
    true
}

impl Component for File {
    const NAME: &'static str = "file";
    const EXAMPLE: &'static str = "type: file\npaths: [/var/log/shop/*.log]\nexclude: ['*.tmp']\n";
}

impl SourceConfig for File {
    fn build(self, cx: &ConnectorContext) -> Result<SourceKind, ConfigError> {
        let invalid = |message: String| ConfigError::new("config::invalid_value", Span::default(), message);
        if self.paths.is_empty() {
            return Err(invalid("`paths` of `file` is empty".into()));
        }
        for pattern in self.paths.iter().chain(&self.exclude) {
            glob::Pattern::new(pattern)
                .map_err(|e| invalid(format!("`{pattern}` is no valid pattern: {}", e.msg)))?;
        }
        // A line, twice over while it is searched for its end, must fit a chunk (`u32` ranges).
        if !(1..=256 << 20).contains(&self.max_line_bytes) {
            return Err(invalid("`max_line_bytes` must be between 1 and 256 MiB".into()));
        }
        if !(16..=1 << 20).contains(&self.fingerprint_bytes) {
            return Err(invalid("`fingerprint_bytes` must be between 16 and 1 MiB".into()));
        }
        Ok(SourceKind::Log(Box::new(FileSource { config: self, cx: cx.clone(), work: Work::Closed })))
    }
}

/// Follows files. The tailer lives here between calls, or with the blocking task that is at work.
struct FileSource {
    config: File,
    cx: ConnectorContext,
    work: Work,
}

enum Work {
    /// Not connected, or failed.
    Closed,
    /// Nothing to do before this moment.
    Idle(Box<Tailer>, Instant),
    /// A blocking task has the tailer. Kept over a dropped `recv`, so that the chunk it reads is not lost.
    Busy(JoinHandle<(Box<Tailer>, Result<Progress, ConnectorError>)>),
}

#[async_trait]
impl Source for FileSource {
    async fn connect(&mut self, delivered: &[Position]) -> Result<(), ConnectorError> {
        self.work = Work::Closed;
        let delivered: HashMap<Partition, u64> = delivered.iter().map(|p| (p.partition, p.offset)).collect();
        let (config, cx) = (self.config.clone(), self.cx.clone());
        let tailer = tokio::task::spawn_blocking(move || Tailer::open(config, cx, &delivered))
            .await
            .map_err(|e| ConnectorError::disconnected("files", e))??;
        self.work = Work::Idle(Box::new(tailer), Instant::now());
        Ok(())
    }

    async fn recv(&mut self, budget: Budget) -> Result<Chunk, ConnectorError> {
        loop {
            match &mut self.work {
                Work::Closed => return Err(ConnectorError::disconnected("files", "not connected")),
                Work::Idle(_, until) => tokio::time::sleep_until((*until).into()).await,
                Work::Busy(task) => {
                    let done = task.await;
                    self.work = Work::Closed;
                    let (tailer, progress) = done.map_err(|e| ConnectorError::disconnected("files", e))?;
                    match progress? {
                        Progress::Chunk(chunk) => {
                            self.work = Work::Idle(tailer, Instant::now());
                            return Ok(chunk);
                        }
                        Progress::Wait(until) => self.work = Work::Idle(tailer, until),
                        Progress::End => return Err(ConnectorError::End),
                    }
                    continue;
                }
            }
            self.work = match std::mem::replace(&mut self.work, Work::Closed) {
                Work::Idle(mut tailer, _) => Work::Busy(tokio::task::spawn_blocking(move || {
                    let progress = tailer.advance(budget);
                    (tailer, progress)
                })),
                other => other,
            };
        }
    }

    async fn commit(&mut self, _: Position) -> Result<(), ConnectorError> {
        // The runtime keeps positions, and a file needs no telling what may be forgotten.
        Ok(())
    }
}
