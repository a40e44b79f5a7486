//! Writes the log.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::canonical::{CanonicalError, canonicalise};
use crate::checkpoint::{self, Checkpoint};
use crate::entry::{self, Entry, EntryFault};
use crate::merkle::leaf_hash;
use crate::segment;

/// A segment of at least this many bytes is followed by a new one.
const SEGMENT_BYTES: u64 = 64 << 20;

/// Entries are handed to the operating system in runs of about this many bytes.
const WRITE_BYTES: usize = 1 << 20;

/// The largest entry, in bytes.
const ENTRY_BYTES_MAX: usize = 64 << 20;

/// How far the clock may go back, in microseconds, before the log says so.
const CLOCK_TOLERANCE: i64 = 1_000_000;

/// Why the log was not opened, or not continued.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// The body of an entry has no canonical form; the log is as it was.
    #[error("the body is not canonical JSON")]
    Body(#[from] CanonicalError),
    /// The log is not as its checkpoint says. It is not continued: see what happened to it first.
    #[error("{path}: {what}; the log was changed or lost data, `logdrive audit verify` says more")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The entry is larger than 64 MiB; the log is as it was.
    #[error("an entry of {0} bytes is too large")]
    Large(usize),
    /// Another process writes this log.
    #[error("{0}: another process writes this log")]
    Locked(PathBuf),
    /// The origin is empty, has a line break, or is another than the log's.
    #[error("origin `{found}`: {what}")]
    Origin {
        /// What was asked for.
        found: String,
        /// Why not.
        what: String,
    },
    /// The disk failed. The log must be opened anew: what was not committed is lost.
    #[error("{path}: storage failed")]
    Storage {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// An entry that is in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecentEntry {
    /// Its type.
    pub kind: String,
    /// Its identity.
    pub id: String,
}

/// A log that is open for writing. Only [`Self::commit`] makes entries, and marks, part of it: a log that is opened
/// again is exactly as its last commit left it.
pub struct Log {
    dir: PathBuf,
    committed: Checkpoint,
    current: Checkpoint,
    path: PathBuf,
    file: File,
    bytes: u64,
    pending: Vec<u8>,
    failed: bool,
    cut_bytes: u64,
    clock: fn() -> i64,
    segment_bytes: u64,
    /// Held until the log is dropped.
    _lock: File,
}

impl Log {
    /// Opens or creates the log in `dir`. What a crash left behind the checkpoint is cut off (and kept beside, in
    /// `*.cut`, until the next time).
    ///
    /// # Errors
    /// If the log is shorter than its checkpoint or its end differs, if it has another origin, if another process
    /// writes it, or if the disk fails.
    pub fn open(dir: &Path, origin: &str) -> Result<Self, AuditError> {
        if origin.is_empty() || origin.contains(char::is_control) {
            let what = "it is empty or has control characters".to_owned();
            return Err(AuditError::Origin { found: origin.to_owned(), what });
        }
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| AuditError::Storage { path, source }
        };
        fs::create_dir_all(dir).map_err(at(dir))?;
        let lock = take_lock(dir)?;
        let checkpoint = load_or_create(dir, origin)?;
        let size = checkpoint.range.size();
        let mut segments = segment::list(dir).map_err(at(dir))?;
        let mut cut_bytes = 0;
        while let Some((_, path)) = segments.pop_if(|(first, _)| size <= *first && (0 < size || 0 < *first)) {
            cut_bytes += keep_aside(&path, 0).map_err(at(&path))?;
            fs::remove_file(&path).map_err(at(&path))?;
        }
        let (path, good) = match segments.last() {
            Some((first, path)) => (path.clone(), end_of(path, *first, &checkpoint)?),
            None if size == 0 => (segment::path(dir, 0), 0),
            None => return Err(damaged(dir, format!("all of its {size} entries are missing"))),
        };
        if 0 < size && segments[0].0 != 0 {
            return Err(damaged(dir, format!("the entries before number {} are missing", segments[0].0)));
        }
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(at(&path))?;
        let len = file.metadata().map_err(at(&path))?.len();
        if good < len {
            cut_bytes += keep_aside(&path, good).map_err(at(&path))?;
            file.set_len(good).map_err(at(&path))?;
        }
        file.sync_all().and_then(|()| segment::sync_dir(dir)).map_err(at(&path))?;
        Ok(Self {
            dir: dir.to_owned(),
            committed: checkpoint.clone(),
            current: checkpoint,
            path,
            file,
            bytes: good,
            pending: Vec::new(),
            failed: false,
            cut_bytes,
            clock: now_micros,
            segment_bytes: SEGMENT_BYTES,
            _lock: lock,
        })
    }

    /// Adds an entry and returns its number; part of the log after the next [`Self::commit`].
    ///
    /// # Errors
    /// `Body` or `Large`, with the log as it was; `Storage`, after which every call fails.
    pub fn append(&mut self, kind: &str, id: &str, body: &[u8]) -> Result<u64, AuditError> {
        let body = checked(kind, id, body)?;
        let now = (self.clock)();
        let back = self.current.time.saturating_sub(now);
        if CLOCK_TOLERANCE < back && 0 < self.current.range.size() {
            self.add("clock.step", "", &format!("{{\"back_us\":{back}}}"), now)?;
        }
        self.add(kind, id, &body, now)
    }

    /// Whether an entry could be added, which depends on nothing but itself.
    ///
    /// # Errors
    /// `Body` or `Large`, as [`Self::append`] has them.
    pub fn check(kind: &str, id: &str, body: &[u8]) -> Result<(), AuditError> {
        checked(kind, id, body).map(drop)
    }

    fn add(&mut self, kind: &str, id: &str, body: &str, time: i64) -> Result<u64, AuditError> {
        if self.failed {
            let source = io::Error::other("it failed before");
            return Err(AuditError::Storage { path: self.path.clone(), source });
        }
        let n = self.current.range.size();
        if self.segment_bytes <= self.bytes + self.pending.len() as u64 {
            self.guarded(|log| log.rotate(n))?;
        }
        let prev = self.current.last.as_ref();
        let entry = Entry { log: &self.current.origin, n, time, prev, kind, id, body }.write();
        segment::write_frame(entry.as_bytes(), &mut self.pending);
        let leaf = leaf_hash(entry.as_bytes());
        self.current.range.push(leaf);
        self.current.last = Some(leaf);
        self.current.time = time;
        if WRITE_BYTES <= self.pending.len() {
            self.guarded(Self::write_pending)?;
        }
        Ok(n)
    }

    /// Remembers a number under a name, atomically with the entries of the next [`Self::commit`].
    pub fn set_mark(&mut self, name: &str, value: u64) {
        match self.current.marks.get_mut(name) {
            Some(mark) => *mark = value,
            None => {
                self.current.marks.insert(name.to_owned(), value);
            }
        }
    }

    /// The marks, as last set.
    #[must_use]
    pub fn marks(&self) -> &BTreeMap<String, u64> {
        &self.current.marks
    }

    /// Makes every entry and mark survive a crash.
    ///
    /// # Errors
    /// `Storage`, after which every call fails: the log must be opened anew.
    pub fn commit(&mut self) -> Result<(), AuditError> {
        if self.current == self.committed && !self.failed {
            return Ok(());
        }
        self.guarded(|log| {
            log.write_pending()?;
            log.file.sync_data()?;
            log.current.store(&log.dir)
        })?;
        self.committed = self.current.clone();
        Ok(())
    }

    /// How many entries it has, with those that are not committed.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.current.range.size()
    }

    /// How many bytes opening cut off.
    #[must_use]
    pub fn cut_bytes(&self) -> u64 {
        self.cut_bytes
    }

    /// The last `n` committed entries, or a few more; the oldest first.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn recent(&self, n: u64) -> Result<Vec<RecentEntry>, AuditError> {
        let size = self.committed.range.size();
        let from = size.saturating_sub(n);
        let at = |path: &Path, source| AuditError::Storage { path: path.to_owned(), source };
        let segments = segment::list(&self.dir).map_err(|e| at(&self.dir, e))?;
        let start = segments.partition_point(|(first, _)| *first <= from).saturating_sub(1);
        let mut recent = Vec::new();
        for (first, path) in &segments[start..] {
            let bytes = fs::read(path).map_err(|e| at(path, e))?;
            let (mut number, mut position) = (*first, 0);
            while number < size && position < bytes.len() {
                let frame = segment::read_frame(&bytes, position);
                let (text, next) = frame.map_err(|what| damaged(path, format!("entry {number}: {what}")))?;
                if from <= number {
                    let parsed = entry::identity(text);
                    let parsed = parsed.ok_or_else(|| damaged(path, format!("entry {number} is none")))?;
                    recent.push(RecentEntry { kind: parsed.kind, id: parsed.id });
                }
                (number, position) = (number + 1, next);
            }
        }
        Ok(recent)
    }

    /// After a failure nothing is known about the file: the log stops.
    fn guarded(&mut self, run: impl FnOnce(&mut Self) -> io::Result<()>) -> Result<(), AuditError> {
        let result = if self.failed { Err(io::Error::other("it failed before")) } else { run(self) };
        result.map_err(|source| {
            self.failed = true;
            AuditError::Storage { path: self.path.clone(), source }
        })
    }

    fn write_pending(&mut self) -> io::Result<()> {
        self.file.write_all(&self.pending)?;
        self.bytes += self.pending.len() as u64;
        self.pending.clear();
        self.pending.shrink_to(2 * WRITE_BYTES);
        Ok(())
    }

    fn rotate(&mut self, first: u64) -> io::Result<()> {
        self.write_pending()?;
        self.file.sync_data()?;
        let path = segment::path(&self.dir, first);
        self.file = OpenOptions::new().create_new(true).append(true).open(&path)?;
        (self.path, self.bytes) = (path, 0);
        segment::sync_dir(&self.dir)
    }

    /// Smaller segments and another clock, for tests.
    #[cfg(test)]
    pub(crate) fn with(mut self, segment_bytes: u64, clock: Option<fn() -> i64>) -> Self {
        self.segment_bytes = segment_bytes;
        self.clock = clock.unwrap_or(self.clock);
        self
    }
}

fn load_or_create(dir: &Path, origin: &str) -> Result<Checkpoint, AuditError> {
    let path = dir.join(checkpoint::NAME);
    match fs::read_to_string(&path) {
        Ok(text) => {
            let checkpoint = Checkpoint::parse(&text).map_err(|what| damaged(&path, what.to_owned()))?;
            if checkpoint.origin != origin {
                let what = format!("the log in {} is `{}`", dir.display(), checkpoint.origin);
                return Err(AuditError::Origin { found: origin.to_owned(), what });
            }
            Ok(checkpoint)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let segments = segment::list(dir);
            if !segments.map_err(|source| AuditError::Storage { path: dir.to_owned(), source })?.is_empty() {
                return Err(damaged(&path, "it is missing, and there are entries".to_owned()));
            }
            let checkpoint = Checkpoint {
                origin: origin.to_owned(),
                range: Default::default(),
                last: None,
                time: 0,
                marks: BTreeMap::new(),
            };
            checkpoint.store(dir).map_err(|source| AuditError::Storage { path, source })?;
            Ok(checkpoint)
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(damaged(&path, "it is not UTF-8".to_owned()))
        }
        Err(source) => Err(AuditError::Storage { path, source }),
    }
}

/// Where the last entry of the checkpoint ends in its segment, which begins with entry `first`.
fn end_of(path: &Path, first: u64, checkpoint: &Checkpoint) -> Result<u64, AuditError> {
    let bytes = fs::read(path).map_err(|source| AuditError::Storage { path: path.to_owned(), source })?;
    let size = checkpoint.range.size();
    let (mut at, mut prev) = (0, None);
    for n in first..size {
        let (text, next) = segment::read_frame(&bytes, at)
            .map_err(|what| damaged(path, format!("entry {n} of {size}: {what}")))?;
        // The predecessor of the segment's first entry is in the segment before; `verify` looks at it.
        if prev.is_some() || n == 0 {
            match entry::check(text, &checkpoint.origin, n, prev.as_ref()) {
                Ok(_) => {}
                Err(EntryFault::Here(what)) => return Err(damaged(path, format!("entry {n}: {what}"))),
                Err(EntryFault::Chain) => {
                    return Err(damaged(path, format!("entry {n} does not follow on the one before")));
                }
            }
        }
        (at, prev) = (next, Some(leaf_hash(text)));
    }
    if first < size && prev != checkpoint.last {
        return Err(damaged(path, format!("entry {} is another than the checkpoint's", size - 1)));
    }
    Ok(at as u64)
}

fn damaged(path: &Path, what: String) -> AuditError {
    AuditError::Damaged { path: path.to_owned(), what }
}

/// Copies what is behind `from` to `<file>.cut`.
fn keep_aside(path: &Path, from: u64) -> io::Result<u64> {
    let bytes = fs::read(path)?;
    let cut = &bytes[usize::try_from(from).unwrap_or(usize::MAX).min(bytes.len())..];
    if !cut.is_empty() {
        let mut name = path.as_os_str().to_owned();
        name.push(".cut");
        fs::write(PathBuf::from(name), cut)?;
    }
    Ok(cut.len() as u64)
}

fn take_lock(dir: &Path) -> Result<File, AuditError> {
    let path = dir.join("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|source| AuditError::Storage { path: path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(AuditError::Locked(dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(AuditError::Storage { path, source }),
    }
}

fn now_micros() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX)
}

/// The body as it is stored, if it can be.
fn checked(kind: &str, id: &str, body: &[u8]) -> Result<String, AuditError> {
    let body = canonicalise(body)?;
    if ENTRY_BYTES_MAX < body.len() + id.len() + kind.len() {
        return Err(AuditError::Large(body.len()));
    }
    Ok(body)
}
