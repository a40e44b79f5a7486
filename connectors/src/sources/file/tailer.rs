//! The files that are followed, read in turn. Blocking, without tokio.

use std::collections::{HashMap, VecDeque};
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use logdrive_schemas::{Chunk, Partition};
use tracing::warn;

use super::File;
use super::read::{Found, Limits, Lines};
use super::reader::{Reader, key_of};
use super::registry::{FileKey, Fingerprint, Registry};
use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::source::Budget;

/// Files held open at once, apart from those that have lost their name: far below the usual limit of 1024.
const OPEN_MAX: usize = 256;
/// What an advance came to.
#[allow(clippy::large_enum_variant, reason = "chunks are few and large, and nearly all that is returned")]
pub(super) enum Progress {
    /// Lines.
    Chunk(Chunk),
    /// Nothing to do before this moment.
    Wait(Instant),
    /// All files were read to their end, and they are not followed.
    End,
}

/// Size and time of change: if both stay, nothing was written, except in the same tick of the file system's clock.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) size: u64,
    mtime: (i64, i64),
}

impl Stamp {
    /// Unlike that of any file.
    pub(super) const NONE: Self = Self { size: 0, mtime: (i64::MIN, -1) };

    pub(super) fn of(metadata: &Metadata) -> Self {
        Self { size: metadata.len(), mtime: (metadata.mtime(), metadata.mtime_nsec()) }
    }
}

/// One file that is followed.
pub(super) struct Tailed {
    pub(super) key: FileKey,
    pub(super) path: PathBuf,
    pub(super) peer: Arc<str>,
    /// Open while there is use for it and room.
    pub(super) reader: Option<Reader>,
    /// Set once the first line is complete.
    pub(super) partition: Option<Partition>,
    /// The live partition of which this file is a copy so far: not read.
    pub(super) copy_of: Option<Partition>,
    /// The partition that this file held until it was truncated.
    pub(super) not: Option<Partition>,
    /// Where the next read begins.
    pub(super) offset: u64,
    /// The bytes before `offset`.
    pub(super) tail: Vec<u8>,
    /// The longer fingerprint that the last read came to.
    pub(super) grown: Option<Fingerprint>,
    /// Up to where a line that is too long was searched for its end.
    pub(super) scanned: u64,
    pub(super) stamp: Stamp,
    /// Whether it was looked at when `stamp` could no longer hide a change.
    pub(super) settled: bool,
    /// Whether `path` still leads to it.
    pub(super) attached: bool,
    /// When it last changed, or lost its name.
    pub(super) quiet_since: Instant,
    /// Whether the bytes behind the last newline are a message too.
    pub(super) finalise: bool,
    pub(super) queued: bool,
    last_used: u64,
    /// Whether its trouble was logged already.
    failed: bool,
}

/// All files of one source.
pub(super) struct Tailer {
    pub(super) config: File,
    cx: ConnectorContext,
    pub(super) exclude: Vec<glob::Pattern>,
    pub(super) registry: Registry,
    pub(super) files: HashMap<u64, Tailed>,
    pub(super) by_key: HashMap<FileKey, u64>,
    next_id: u64,
    ready: VecDeque<u64>,
    pub(super) next_poll: Instant,
    pub(super) next_discovery: Instant,
    n_uses: u64,
    /// Whether files found now were there at the very first start.
    pub(super) at_first_start: bool,
}

impl Tailer {
    /// Finds the files and where to go on in each.
    pub(super) fn open(
        config: File,
        cx: ConnectorContext,
        delivered: &HashMap<Partition, u64>,
    ) -> Result<Self, ConnectorError> {
        let registry = Registry::open(&cx.state_dir, delivered)?;
        let now = Instant::now();
        let mut tailer = Self {
            // Checked when it was built.
            exclude: config.exclude.iter().filter_map(|p| glob::Pattern::new(p).ok()).collect(),
            at_first_start: registry.first_start,
            registry,
            files: HashMap::new(),
            by_key: HashMap::new(),
            next_id: 0,
            ready: VecDeque::new(),
            next_poll: now,
            next_discovery: now,
            n_uses: 0,
            config,
            cx,
        };
        tailer.poll(now)?;
        tailer.recover_rotated();
        tailer.registry.save()?;
        tailer.at_first_start = false;
        if tailer.files.is_empty() {
            warn!(paths = ?tailer.config.paths, "No file matches yet.");
        }
        Ok(tailer)
    }

    /// Reads one chunk, or says when to come again.
    pub(super) fn advance(&mut self, budget: Budget) -> Result<Progress, ConnectorError> {
        loop {
            if self.config.follow && self.next_poll <= Instant::now() {
                self.poll(Instant::now())?;
            }
            let Some(id) = self.ready.pop_front() else { break };
            if let Some(chunk) = self.read(id, budget)? {
                return Ok(Progress::Chunk(chunk));
            }
        }
        Ok(if self.config.follow { Progress::Wait(self.next_poll) } else { Progress::End })
    }

    pub(super) fn insert(&mut self, key: FileKey, path: PathBuf, attached: bool) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let file = Tailed {
            key,
            peer: path.display().to_string().into(),
            path,
            reader: None,
            partition: None,
            copy_of: None,
            not: None,
            offset: 0,
            tail: Vec::new(),
            grown: None,
            scanned: 0,
            stamp: Stamp::NONE,
            settled: false,
            attached,
            quiet_since: Instant::now(),
            finalise: !self.config.follow,
            queued: false,
            last_used: 0,
            failed: false,
        };
        self.files.insert(id, file);
        self.by_key.insert(key, id);
        id
    }

    pub(super) fn is_compressed(&self, id: u64) -> bool {
        self.files.get(&id).is_some_and(|f| self.config.compression.of(&f.path) != super::Compression::None)
    }

    /// Puts a file in line for reading.
    pub(super) fn enqueue(&mut self, id: u64) {
        if let Some(file) = self.files.get_mut(&id)
            && file.partition.is_some()
            && !file.queued
        {
            file.queued = true;
            self.ready.push_back(id);
        }
    }

    /// Opens a file if it is not open, closing another if too many are.
    pub(super) fn ensure_open(&mut self, id: u64) -> io::Result<&mut Tailed> {
        let not_found = || io::Error::from(io::ErrorKind::NotFound);
        self.n_uses += 1;
        let n_uses = self.n_uses;
        if self.files.get(&id).is_some_and(|f| f.reader.is_none()) {
            self.make_room();
        }
        let file = self.files.get_mut(&id).ok_or_else(not_found)?;
        file.last_used = n_uses;
        if file.reader.is_none() {
            let (reader, metadata) = Reader::open(&file.path, self.config.compression)?;
            if key_of(&metadata) != file.key {
                return Err(not_found());
            }
            file.reader = Some(reader);
        }
        Ok(file)
    }

    fn make_room(&mut self) {
        if self.files.values().filter(|f| f.reader.is_some()).count() < OPEN_MAX {
            return;
        }
        // A file without a name could not be opened again.
        let oldest = self
            .files
            .values_mut()
            .filter(|f| f.reader.is_some() && f.attached)
            .min_by_key(|f| (f.queued, f.last_used));
        if let Some(file) = oldest {
            file.reader = None;
        }
    }

    fn read(&mut self, id: u64, budget: Budget) -> Result<Option<Chunk>, ConnectorError> {
        let Some(file) = self.files.get_mut(&id) else { return Ok(None) };
        file.queued = false;
        let Some(entry) = file.partition.and_then(|p| self.registry.get(p)) else { return Ok(None) };
        let limits = Limits {
            budget,
            max_line: self.config.max_line_bytes as usize,
            fingerprint: entry.fingerprint,
            fingerprint_max: self.config.fingerprint_bytes,
        };
        match self.ensure_open(id).and_then(|file| file.read_lines(limits)) {
            Ok(Found::Lines(lines)) => {
                if lines.more {
                    self.enqueue(id);
                }
                let chunk = self.chunk(id, lines);
                self.extend_fingerprint(id)?;
                Ok(chunk)
            }
            Ok(Found::Nothing { more }) => {
                if more {
                    self.enqueue(id);
                }
                self.note_progress(id);
                self.extend_fingerprint(id)?;
                Ok(None)
            }
            Ok(Found::Truncated) => {
                if let Err(error) = self.truncated(id) {
                    self.fail(id, &error);
                }
                self.enqueue(id);
                self.registry.save()?;
                Ok(None)
            }
            Err(error) => {
                self.fail(id, &error);
                Ok(None)
            }
        }
    }

    /// Nothing is handed out that the fingerprint does not reach, as far as it may reach.
    fn extend_fingerprint(&mut self, id: u64) -> Result<(), ConnectorError> {
        let Some(file) = self.files.get_mut(&id) else { return Ok(()) };
        let Some(partition) = file.partition else { return Ok(()) };
        if let Some(fingerprint) = file.grown.take() {
            self.registry.extend_fingerprint(partition, fingerprint);
        }
        let known = self.registry.get(partition).map_or(u64::MAX, |e| e.fingerprint.len);
        // Only of compressed data: it is not read from its beginning every time.
        if known < file.offset.min(self.config.fingerprint_bytes)
            && !file.finalise
            && let Err(error) = self.check_fingerprint(id)
        {
            self.fail(id, &error);
        }
        self.registry.save()
    }

    fn note_progress(&mut self, id: u64) {
        let Some(file) = self.files.get_mut(&id) else { return };
        file.failed = false;
        if let Some(partition) = file.partition {
            self.registry.advance(partition, file.offset);
        }
        if file.finalise && file.reader.as_ref().is_some_and(Reader::is_torn) {
            warn!(path = %file.path.display(), "Compressed file breaks off; what came before was read.");
        }
    }

    fn chunk(&mut self, id: u64, lines: Lines) -> Option<Chunk> {
        self.note_progress(id);
        let file = self.files.get_mut(&id)?;
        file.quiet_since = Instant::now();
        let labels = [&*self.cx.name];
        let n_bytes: u64 = lines.messages.iter().map(|m| u64::from(m.len)).sum();
        self.cx.metrics.source_messages.with_label_values(&labels).inc_by(lines.messages.len() as u64);
        self.cx.metrics.source_bytes.with_label_values(&labels).inc_by(n_bytes);
        if 0 < lines.n_too_long {
            let labels = [&*self.cx.name, "line_too_long"];
            self.cx.metrics.source_rejects.with_label_values(&labels).inc_by(lines.n_too_long);
        }
        Some(Chunk {
            source: Arc::clone(&self.cx.name),
            partition: file.partition?,
            data: lines.data,
            messages: lines.messages,
            offsets: lines.offsets,
            received_at: now_micros(),
            peer: Some(Arc::clone(&file.peer)),
            attributes: None,
            next_offset: file.offset,
        })
    }

    /// Trouble with one file: said once, tried again at every poll.
    pub(super) fn fail(&mut self, id: u64, error: &io::Error) {
        let Some(file) = self.files.get_mut(&id) else { return };
        (file.reader, file.stamp) = (None, Stamp::NONE);
        if !std::mem::replace(&mut file.failed, true) {
            warn!(path = %file.path.display(), %error, "File cannot be read; trying again.");
        }
    }

    /// Whether a name leads to a file that is followed already.
    pub(super) fn is_known(&self, metadata: &Metadata) -> bool {
        self.by_key.contains_key(&key_of(metadata))
    }
}

fn now_micros() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX))
}
