//! A folder of segment files: what the write-ahead buffer and a sink's disk queue have in common.
//!
//! ```text
//! lock              held while a process uses the folder
//! cursor            how far is delivered (see `cursor.rs`)
//! <first>.seg       header, then frames; named by the number of its first item, 20 digits
//! ```
//!
//! Only the last segment may end badly, as a crash leaves it; anything else is damage, and the folder is not opened.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::blocks::{Frames, open_direct};
use super::cursor::{self, Identity};
use super::frame::{self, Frame, array};
use crate::error::ConnectorError;

const MAGIC: &[u8; 8] = b"LogdrSg1";

/// The length of a segment's header, in bytes.
pub(super) const SEGMENT_HEADER: usize = 40;

/// How many numbers are left out when a tail was cut: should the tail have been read before it was damaged, then
/// nothing that comes later may bear its numbers, or a sink would take it for a duplicate.
pub(super) const NUMBERS_SKIPPED: u64 = 1 << 20;

/// What the store asks of a disk; tests put faults in between.
pub(super) trait Disk: Send {
    /// Appends all of `bytes`.
    fn write(&mut self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    /// Makes what was written survive a power loss.
    fn sync(&mut self, file: &File) -> io::Result<()> {
        file.sync_data()
    }
}

/// The real one.
pub(super) struct RealDisk;

impl Disk for RealDisk {}

/// Looks at each whole frame while a segment is scanned; false if its body makes no sense.
pub(super) type Visit<'a> = &'a mut dyn FnMut(&Frame, &Bytes) -> bool;

/// The open folder, at its end.
pub(super) struct Store {
    dir: PathBuf,
    identity: Identity,
    path: PathBuf,
    file: File,
    /// The same file without the page cache; `None` if not wanted or not to be had.
    direct: Option<File>,
    bytes: u64,
    /// The number of the segment's first item.
    first: u64,
    next: u64,
    segment_bytes_max: u64,
    disk: Box<dyn Disk>,
    trimmer: Arc<Trimmer>,
}

/// Deletes what is delivered, beside the writer. The folder is free again when store and trimmer are dropped.
pub(super) struct Trimmer {
    dir: PathBuf,
    identity: Identity,
    /// What the cursor file says.
    delivered: Mutex<u64>,
    _lock: File,
}

/// What opening found.
pub(super) struct Opened {
    /// The first number that is not delivered.
    pub(super) delivered: u64,
    /// How many bytes of a torn tail were cut off.
    pub(super) truncated: u64,
}

impl Store {
    /// Opens or creates the folder, cuts a torn tail and shows every whole frame to `visit`.
    ///
    /// # Errors
    /// `Refused` if another process uses it; `Storage` if it is damaged or the disk fails.
    pub(super) fn open(
        dir: &Path,
        segment_bytes_max: u64,
        mut disk: Box<dyn Disk>,
        visit: Visit<'_>,
    ) -> Result<(Self, Opened), ConnectorError> {
        let lock = lock(dir)?;
        let storage = |e| ConnectorError::storage(dir, e);
        let found = look(dir, visit)?;
        let identity = found.identity.unwrap_or_else(Identity::random);
        let truncated = found.torn.as_ref().map_or(0, |torn| torn.len - torn.good);
        // Messages were delivered that are not here, or no longer: others may have been here and seen, too.
        let lost = found.delivered.is_some_and(|delivered| found.next.is_none_or(|next| next < delivered));
        let mut delivered = found.delivered.or(found.first).unwrap_or(0);
        if lost {
            delivered = delivered.saturating_add(NUMBERS_SKIPPED);
        }
        cursor::write(dir, identity, delivered).map_err(storage)?;
        let (first, path, file) = match found.last.filter(|_| !lost) {
            Some((first, path)) => {
                let file = OpenOptions::new().append(true).open(&path);
                (first, path.clone(), file.map_err(|e| ConnectorError::storage(path, e))?)
            }
            None => {
                for (_, path) in list(dir).map_err(storage)? {
                    fs::remove_file(path).map_err(storage)?;
                }
                let (path, file) = create(dir, identity, delivered, &mut *disk).map_err(storage)?;
                (delivered, path, file)
            }
        };
        let bytes = file.metadata().map_err(storage)?.len();
        let trimmer =
            Trimmer { dir: dir.to_owned(), identity, delivered: Mutex::new(delivered), _lock: lock };
        let mut store = Self {
            dir: dir.to_owned(),
            identity,
            path,
            file,
            direct: None,
            bytes,
            first,
            next: found.next.unwrap_or(delivered).max(delivered),
            segment_bytes_max,
            disk,
            trimmer: Arc::new(trimmer),
        };
        if let Some(torn) = found.torn.filter(|_| !lost) {
            store.cut(torn.first, torn.good)?;
        }
        // What a crash left unsynced is about to be read: its numbers must not be given away again.
        store.sync()?;
        Ok((store, Opened { delivered, truncated }))
    }

    /// Cuts the last segment, leaving out the numbers that the lost part may have had.
    fn cut(&mut self, first: u64, good: u64) -> Result<(), ConnectorError> {
        let storage = |e| ConnectorError::storage(&self.path, e);
        self.file.set_len(good).map_err(storage)?;
        if good < SEGMENT_HEADER as u64 {
            self.file.set_len(0).map_err(storage)?;
            self.disk.write(&mut self.file, &header(self.identity, first)).map_err(storage)?;
        }
        self.bytes = good.max(SEGMENT_HEADER as u64);
        let next = self.next.saturating_add(NUMBERS_SKIPPED);
        let mut frame = Vec::new();
        frame::write(&mut frame, self.identity.key, (next, self.next, 0), |_| ());
        self.append(&frame, next)
    }

    /// The number of the next item.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Who the folder is.
    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    /// Where it is.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What deletes delivered segments.
    pub(super) fn trimmer(&self) -> &Arc<Trimmer> {
        &self.trimmer
    }

    /// From now on groups are written past the page cache, where the file system can do that.
    pub(super) fn write_directly(&mut self) {
        self.direct = open_direct(&self.path);
    }

    /// Appends whole frames, after which `next` is the next number; in a new segment if this one is full.
    ///
    /// # Errors
    /// `Storage`; the store must not be used any more.
    pub(super) fn append(&mut self, frames: &[u8], next: u64) -> Result<(), ConnectorError> {
        self.make_room(frames.len())?;
        let written = self.disk.write(&mut self.file, frames);
        written.map_err(|e| ConnectorError::storage(&self.path, e))?;
        self.bytes += frames.len() as u64;
        self.next = next;
        Ok(())
    }

    /// As [`Self::append`], for all frames of a group commit; past the page cache if that was asked for.
    ///
    /// # Errors
    /// `Storage`; the store must not be used any more.
    pub(super) fn append_group(&mut self, frames: &mut Frames, next: u64) -> Result<(), ConnectorError> {
        if self.direct.is_none() {
            return self.append(frames.as_slice(), next);
        }
        self.make_room(frames.as_slice().len())?;
        frames.pad(self.identity.key, (next, self.next), self.bytes);
        if let Some(file) = self.direct.as_mut().filter(|_| frames.fit_directly(self.bytes)) {
            match self.disk.write(file, frames.as_slice()) {
                Ok(()) => {
                    self.bytes += frames.as_slice().len() as u64;
                    self.next = next;
                    return Ok(());
                }
                // The file system opens files so, but does not write them; nothing was written.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.direct = None,
                Err(error) => return Err(ConnectorError::storage(&self.path, error)),
            }
        }
        self.append(frames.as_slice(), next)
    }

    /// Begins a new segment if `n_bytes` do not fit into this one, unless it is empty.
    fn make_room(&mut self, n_bytes: usize) -> Result<(), ConnectorError> {
        if self.bytes + n_bytes as u64 <= self.segment_bytes_max || self.next == self.first {
            return Ok(());
        }
        self.sync()?;
        let (path, file) = create(&self.dir, self.identity, self.next, &mut *self.disk)
            .map_err(|e| ConnectorError::storage(&self.dir, e))?;
        (self.path, self.file, self.bytes) = (path, file, SEGMENT_HEADER as u64);
        self.first = self.next;
        self.direct = self.direct.take().and_then(|_| open_direct(&self.path));
        Ok(())
    }

    /// Makes everything appended survive a power loss.
    ///
    /// # Errors
    /// `Storage`; the store must not be used any more, for the kernel may have dropped what it could not write.
    pub(super) fn sync(&mut self) -> Result<(), ConnectorError> {
        self.disk.sync(&self.file).map_err(|e| ConnectorError::storage(&self.path, e))
    }
}

/// What lies in a folder that may be opened.
struct Found {
    identity: Option<Identity>,
    /// What the cursor says.
    delivered: Option<u64>,
    /// The number of the first item.
    first: Option<u64>,
    /// The number after the last whole item.
    next: Option<u64>,
    /// The last segment, with the number of its first item.
    last: Option<(u64, PathBuf)>,
    torn: Option<Torn>,
}

/// The last segment, if it ends badly.
struct Torn {
    first: u64,
    good: u64,
    len: u64,
}

/// Reads the whole folder; any damage but a torn tail is an error.
fn look(dir: &Path, visit: Visit<'_>) -> Result<Found, ConnectorError> {
    let segments = list(dir).map_err(|e| ConnectorError::storage(dir, e))?;
    let cursor = cursor::read(dir).map_err(|e| damaged_cursor(dir, e))?;
    let first = segments.first().map(|(first, _)| *first);
    let mut found = Found {
        identity: cursor.map(|(identity, _)| identity),
        delivered: cursor.map(|(_, delivered)| delivered),
        first,
        next: first,
        last: segments.last().cloned(),
        torn: None,
    };
    for (idx, (first, path)) in segments.iter().enumerate() {
        // The first may begin with what is delivered; the others follow on each other.
        let next = found.next.filter(|_| 0 < idx).or(found.delivered.map(|d| d.min(*first)));
        if let Some(next) = next.filter(|next| next != first) {
            return Err(damage(path, 0, &format!("messages {next} to {first} are missing before it")));
        }
        let scan = scan(path, *first, found.identity, visit).map_err(|e| ConnectorError::storage(path, e))?;
        if let Some(what) = scan.bad {
            if idx + 1 < segments.len() || !scan.torn {
                return Err(damage(path, scan.good, what));
            }
            found.torn = Some(Torn { first: *first, good: scan.good as u64, len: scan.len as u64 });
        }
        found.identity = found.identity.or(scan.identity);
        found.next = Some(scan.next);
    }
    Ok(found)
}

impl Trimmer {
    /// Remembers that everything before `delivered` is, and deletes the segments that hold nothing else. Durable on
    /// return; one call at a time.
    pub(super) fn trim(&self, delivered: u64) -> io::Result<()> {
        let mut current = self.delivered.lock().unwrap_or_else(PoisonError::into_inner);
        if delivered <= *current {
            return Ok(());
        }
        cursor::write(&self.dir, self.identity, delivered)?;
        *current = delivered;
        for pair in list(&self.dir)?.windows(2) {
            if pair[1].0 <= delivered {
                fs::remove_file(&pair[0].1)?;
            }
        }
        Ok(())
    }
}

/// The segments of a folder with the number of their first item, ascending.
pub(super) fn list(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".seg"));
        if let Some(first) = name.filter(|n| n.len() == 20).and_then(|n| n.parse().ok()) {
            segments.push((first, path));
        }
    }
    segments.sort_unstable();
    Ok(segments)
}

/// The segment that begins with `first`.
pub(super) fn segment_path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}.seg"))
}

/// What one segment holds.
pub(super) struct Scan {
    /// Which folder it belongs to, if its header is whole.
    pub(super) identity: Option<Identity>,
    /// How many bytes it has.
    pub(super) len: usize,
    /// How many of them are whole.
    pub(super) good: usize,
    /// What is wrong behind them.
    pub(super) bad: Option<&'static str>,
    /// Whether a crash can have left it so.
    pub(super) torn: bool,
    /// The number after the last whole item.
    pub(super) next: u64,
    /// The number after the last whole item anywhere, also behind the damage.
    pub(super) next_anywhere: u64,
}

/// Reads a whole segment and shows its frames to `visit`.
pub(super) fn scan(
    path: &Path,
    first: u64,
    identity: Option<Identity>,
    visit: Visit<'_>,
) -> io::Result<Scan> {
    let bytes = Bytes::from(fs::read(path)?);
    let mut scan = Scan {
        identity: None,
        len: bytes.len(),
        good: 0,
        bad: None,
        torn: false,
        next: first,
        next_anywhere: first,
    };
    match read_header(&bytes) {
        Some((found, number)) if identity.is_none_or(|i| i == found) && number == first => {
            scan.identity = Some(found);
            scan.good = SEGMENT_HEADER;
        }
        Some(_) => scan.bad = Some("the header belongs to another segment"),
        None => scan.bad = Some("the header is damaged"),
    }
    let key = identity.or(scan.identity).map(|i| i.key);
    while let (Some(key), None) = (key, scan.bad)
        && scan.good < bytes.len()
    {
        match frame::read(&bytes, scan.good, Some(key)) {
            Ok(frame) => {
                let skip = frame.count == 0;
                let follows = if skip { scan.next <= frame.first } else { scan.next == frame.first };
                if !follows || frame.first < frame.group && !skip {
                    scan.bad = Some("the numbers do not follow");
                } else if !skip && !visit(&frame, &bytes) {
                    scan.bad = Some("the record makes no sense");
                } else {
                    scan.next = frame.end();
                    scan.good = frame.body.end;
                }
            }
            Err(error) => scan.bad = Some(error.what()),
        }
    }
    scan.next_anywhere = scan.next;
    if scan.bad.is_some() {
        // The header is synced before the first frame is written: a crash can only cut it short.
        scan.torn = scan.good != 0 || bytes.len() < SEGMENT_HEADER;
        for frame in key.into_iter().flat_map(|key| frame::resync(&bytes, scan.good, key)) {
            scan.torn &= frame.group <= scan.next;
            scan.next_anywhere = scan.next_anywhere.max(frame.end());
        }
    }
    Ok(scan)
}

/// The header of a segment.
pub(super) fn header(identity: Identity, first: u64) -> [u8; SEGMENT_HEADER] {
    let mut out = [0; SEGMENT_HEADER];
    out[..8].copy_from_slice(MAGIC);
    out[8..16].copy_from_slice(&identity.partition.to_le_bytes());
    out[16..24].copy_from_slice(&identity.key.to_le_bytes());
    out[24..32].copy_from_slice(&first.to_le_bytes());
    let crc = crc32fast::hash(&out[..36]);
    out[36..].copy_from_slice(&crc.to_le_bytes());
    out
}

fn read_header(bytes: &[u8]) -> Option<(Identity, u64)> {
    let header: &[u8; SEGMENT_HEADER] = bytes.first_chunk()?;
    let number = |at: usize| u64::from_le_bytes(array(&header[at..]));
    let valid =
        &header[..8] == MAGIC && crc32fast::hash(&header[..36]) == u32::from_le_bytes(array(&header[36..]));
    valid.then(|| (Identity { partition: number(8), key: number(16) }, number(24)))
}

fn create(dir: &Path, identity: Identity, first: u64, disk: &mut dyn Disk) -> io::Result<(PathBuf, File)> {
    let path = segment_path(dir, first);
    let mut file = OpenOptions::new().append(true).create_new(true).open(&path)?;
    disk.write(&mut file, &header(identity, first))?;
    disk.sync(&file)?;
    cursor::sync_dir(dir)?;
    Ok((path, file))
}

/// Takes the folder for this process, creating it.
pub(super) fn lock(dir: &Path) -> Result<File, ConnectorError> {
    fs::create_dir_all(dir).map_err(|e| ConnectorError::storage(dir, e))?;
    let path = dir.join("lock");
    let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let lock = lock.map_err(|e| ConnectorError::storage(&path, e))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => {
            Err(ConnectorError::refused(dir.display().to_string(), "another process uses this folder"))
        }
        Err(fs::TryLockError::Error(e)) => Err(ConnectorError::storage(&path, e)),
    }
}

fn damage(path: &Path, offset: usize, what: &str) -> ConnectorError {
    let dir = path.parent().unwrap_or(path).display();
    let text = format!(
        "damaged at byte {offset}: {what}; `logdrive buffer repair {dir}` cuts it there and keeps the rest aside"
    );
    ConnectorError::storage(path, io::Error::new(io::ErrorKind::InvalidData, text))
}

/// A damaged record met while reading.
pub(super) fn damaged_while_reading(path: &Path, offset: u64, what: &str) -> ConnectorError {
    damage(path, usize::try_from(offset).unwrap_or(usize::MAX), what)
}

fn damaged_cursor(dir: &Path, error: io::Error) -> ConnectorError {
    let path = dir.join(cursor::NAME);
    if error.kind() == io::ErrorKind::InvalidData {
        return damage(&path, 0, "the checksum does not match");
    }
    ConnectorError::storage(path, error)
}
