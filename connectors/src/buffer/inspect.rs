//! `logdrive buffer check` and `repair`: looks at the folder of a buffer or a disk queue that no process has open.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::cursor::{self, Identity};
use super::frame;
use super::store::{self, Scan, lock};
use crate::error::ConnectorError;

/// What a folder holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The segment files, oldest first.
    pub segments: Vec<SegmentReport>,
    /// The number of the first message that is not delivered; `None` if the cursor is lost or damaged.
    pub delivered: Option<u64>,
    /// The whole messages that are not delivered.
    pub undelivered_messages: u64,
    /// Where the first damage is. A torn tail, as a crash leaves it, is none.
    pub damage: Option<Damage>,
    /// Files that a repair wrote.
    pub damaged_files: Vec<PathBuf>,
}

/// What one segment file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SegmentReport {
    /// The file.
    pub path: PathBuf,
    /// The number of its first message.
    pub first: u64,
    /// How many whole messages it holds, up to the first bad byte.
    pub messages: u64,
    /// Its bytes.
    pub bytes: u64,
    /// The first byte that is not whole, and why.
    pub bad: Option<(u64, String)>,
    /// Whether that is a torn tail, which opening cuts by itself.
    pub torn: bool,
}

/// What keeps a folder from being opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// In which file.
    pub path: PathBuf,
    /// At which byte.
    pub offset: u64,
    /// What.
    pub what: String,
}

/// Looks at the folder without changing it.
///
/// # Errors
/// `Refused` if a process uses it or there is none; `Storage` if it cannot be read.
pub fn check(dir: &Path) -> Result<Report, ConnectorError> {
    let _lock = take(dir)?;
    look(dir).map_err(|e| ConnectorError::storage(dir, e))
}

/// Makes the folder one that can be opened: cuts each damaged segment at its first bad record, keeping what is cut in
/// `<segment>.damaged`. Nothing is deleted, no number is used again. Returns what the folder holds afterwards.
///
/// # Errors
/// `Refused` if a process uses it or there is none; `Storage` if it cannot be read or written.
pub fn repair(dir: &Path) -> Result<Report, ConnectorError> {
    let _lock = take(dir)?;
    let repaired = repair_locked(dir).and_then(|()| look(dir));
    repaired.map_err(|e| ConnectorError::storage(dir, e))
}

fn take(dir: &Path) -> Result<File, ConnectorError> {
    if !dir.is_dir() {
        return Err(ConnectorError::refused(dir.display().to_string(), "there is no such folder"));
    }
    lock(dir)
}

/// A folder as it lies there.
struct Folder {
    identity: Option<Identity>,
    /// What the cursor says, unless it is lost or damaged.
    delivered: Option<u64>,
    cursor_bad: bool,
    segments: Vec<Segment>,
}

struct Segment {
    first: u64,
    path: PathBuf,
    scan: Scan,
    messages: u64,
}

fn scan_all(dir: &Path) -> io::Result<Folder> {
    let (cursor, cursor_bad) = match cursor::read(dir) {
        Ok(cursor) => (cursor, false),
        Err(e) if e.kind() == io::ErrorKind::InvalidData => (None, true),
        Err(e) => return Err(e),
    };
    let mut identity = cursor.map(|(identity, _)| identity);
    let mut segments = Vec::new();
    for (first, path) in store::list(dir)? {
        let mut messages = 0;
        let scan = store::scan(&path, first, identity, &mut |frame, _| {
            messages += u64::from(frame.count);
            true
        })?;
        identity = identity.or(scan.identity);
        segments.push(Segment { first, path, scan, messages });
    }
    Ok(Folder { identity, delivered: cursor.map(|(_, delivered)| delivered), cursor_bad, segments })
}

fn look(dir: &Path) -> io::Result<Report> {
    let folder = scan_all(dir)?;
    let mut report = Report {
        segments: Vec::new(),
        delivered: folder.delivered,
        undelivered_messages: 0,
        damage: None,
        damaged_files: Vec::new(),
    };
    let mut damage = |path: &Path, offset: usize, what: &str| {
        let found = Damage { path: path.to_owned(), offset: offset as u64, what: what.to_owned() };
        report.damage.get_or_insert(found);
    };
    if folder.cursor_bad {
        damage(&dir.join(cursor::NAME), 0, "the checksum does not match");
    }
    let n_segments = folder.segments.len();
    let mut next = None;
    for (idx, Segment { first, path, scan, messages }) in folder.segments.into_iter().enumerate() {
        // The first segment may begin with messages that are delivered; the others follow on each other.
        let expected =
            next.unwrap_or_else(|| folder.delivered.map_or(first, |delivered| delivered.min(first)));
        if expected != first {
            damage(&path, 0, &format!("messages {expected} to {first} are missing before it"));
        }
        if let Some(what) = scan.bad
            && (idx + 1 < n_segments || !scan.torn)
        {
            damage(&path, scan.good, what);
        }
        next = Some(scan.next);
        let undelivered = scan.next.saturating_sub(folder.delivered.unwrap_or(0).max(first));
        report.undelivered_messages += undelivered.min(messages);
        report.segments.push(SegmentReport {
            path,
            first,
            messages,
            bytes: scan.len as u64,
            bad: scan.bad.map(|what| (scan.good as u64, what.to_owned())),
            torn: scan.torn,
        });
    }
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "damaged") {
            report.damaged_files.push(path);
        }
    }
    report.damaged_files.sort();
    Ok(report)
}

fn repair_locked(dir: &Path) -> io::Result<()> {
    let folder = scan_all(dir)?;
    if folder.cursor_bad {
        keep_aside(&dir.join(cursor::NAME), 0)?;
        fs::remove_file(dir.join(cursor::NAME))?;
    }
    let Some(identity) = folder.identity else {
        // No segment has a header that can be read: all of them are put aside.
        for segment in &folder.segments {
            keep_aside(&segment.path, 0)?;
            fs::remove_file(&segment.path)?;
        }
        return cursor::sync_dir(dir);
    };
    for (idx, Segment { first, path, scan, .. }) in folder.segments.iter().enumerate() {
        let following = folder.segments.get(idx + 1).map(|next| next.first);
        if scan.bad.is_none() && following.is_none_or(|following| following == scan.next) {
            continue;
        }
        let mut file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut good = scan.good as u64;
        if scan.bad.is_some() {
            keep_aside(path, good)?;
        }
        if good < store::SEGMENT_HEADER as u64 {
            file.set_len(0)?;
            file.write_all(&store::header(identity, *first))?;
            good = store::SEGMENT_HEADER as u64;
        }
        file.set_len(good)?;
        file.seek(SeekFrom::Start(good))?;
        // The numbers that are lost are left out, also those that only a damaged record may have had.
        let skipped = scan.next_anywhere.saturating_add(store::NUMBERS_SKIPPED);
        let resume = following.unwrap_or(skipped).max(scan.next);
        let mut skip = Vec::new();
        frame::write(&mut skip, identity.key, (resume, scan.next, 0), |_| ());
        file.write_all(&skip)?;
        file.sync_all()?;
    }
    let first = folder.segments.first().map_or(0, |segment| segment.first);
    cursor::write(dir, identity, folder.delivered.map_or(first, |delivered| delivered.max(first)))
}

/// Copies the end of a file, from byte `from`, to `<file>.damaged` (with a number, should there be one).
fn keep_aside(path: &Path, from: u64) -> io::Result<()> {
    let mut source = File::open(path)?;
    source.seek(SeekFrom::Start(from))?;
    for n in 0_u32.. {
        let mut name = path.as_os_str().to_owned();
        name.push(if n == 0 { ".damaged".to_owned() } else { format!(".{n}.damaged") });
        match OpenOptions::new().write(true).create_new(true).open(PathBuf::from(name)) {
            Ok(mut aside) => {
                io::copy(&mut source, &mut aside)?;
                aside.sync_all()?;
                return path.parent().map_or(Ok(()), cursor::sync_dir);
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
