//! Verifies a log from its files alone: every entry, the chain, the tree and the root.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::checkpoint::{self, Checkpoint};
use crate::entry::{self, EntryFault};
use crate::merkle::{CompactRange, Hash, leaf_hash};
use crate::segment;

/// A log that is as its checkpoint says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whose log it is.
    pub origin: String,
    /// How many entries it has.
    pub size: u64,
    /// The root of its tree, base64.
    pub root: String,
    /// How many times the clock was seen to go back.
    pub clock_steps: u64,
    /// Bytes behind the checkpoint, in the last segment: what a writer at work, or a crash, has not committed; not
    /// part of the log.
    pub uncommitted_bytes: u64,
    /// Files that do not belong there.
    pub strays: Vec<PathBuf>,
}

/// What is wrong, and with which entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
pub struct Fault {
    /// The first entry that is bad; the log's size if all entries are well but something else is not.
    pub index: u64,
    /// What.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "entry {}: {}", self.index, self.what)
    }
}

impl Fault {
    pub(crate) fn new(index: u64, what: impl Into<String>) -> Self {
        Self { index, what: what.into() }
    }
}

/// Recomputes everything. Takes time in proportion to the log and the memory of one segment; may run while the log is
/// written.
///
/// # Errors
/// The first fault.
pub fn verify(dir: &Path) -> Result<Report, Fault> {
    let checkpoint = load(dir)?;
    let mut range = CompactRange::default();
    let mut last = None;
    let mut clock_steps = 0;
    let uncommitted_bytes = walk(dir, &checkpoint, &mut |n, text, leaf| {
        match entry::check(text, &checkpoint.origin, n, last.as_ref()) {
            Ok(parsed) => clock_steps += u64::from(parsed.kind == "clock.step"),
            Err(EntryFault::Here(what)) => return Err(Fault::new(n, what)),
            Err(EntryFault::Chain) if n == 0 => return Err(Fault::new(0, "it names a predecessor")),
            Err(EntryFault::Chain) => {
                let what = format!("its hash is not the one that entry {n} names as its predecessor");
                return Err(Fault::new(n - 1, what));
            }
        }
        range.push(leaf);
        last = Some(leaf);
        Ok(())
    })?;
    let size = range.size();
    if last != checkpoint.last {
        return Err(Fault::new(size.saturating_sub(1), "its hash is not the last of the checkpoint"));
    }
    if range != checkpoint.range {
        return Err(Fault::new(size, "the root of all entries is not the root of the checkpoint"));
    }
    let strays = strays(dir).map_err(|e| Fault::new(size, format!("{}: {e}", dir.display())))?;
    let root = STANDARD.encode(range.root());
    Ok(Report { origin: checkpoint.origin, size, root, clock_steps, uncommitted_bytes, strays })
}

pub(crate) fn load(dir: &Path) -> Result<Checkpoint, Fault> {
    let text = fs::read_to_string(dir.join(checkpoint::NAME));
    let text = text.map_err(|e| Fault::new(0, format!("the checkpoint cannot be read: {e}")))?;
    Checkpoint::parse(&text).map_err(|what| Fault::new(0, format!("the checkpoint is damaged: {what}")))
}

/// What is done with each entry: its number, its text and its leaf hash.
pub(crate) type Visit<'a> = &'a mut dyn FnMut(u64, &[u8], Hash) -> Result<(), Fault>;

/// Shows the entries of the checkpoint, in order, and nothing behind it. Returns the bytes behind it.
pub(crate) fn walk(dir: &Path, checkpoint: &Checkpoint, visit: Visit<'_>) -> Result<u64, Fault> {
    let size = checkpoint.range.size();
    let segments = segment::list(dir).map_err(|e| Fault::new(0, format!("{}: {e}", dir.display())))?;
    let (mut next, mut uncommitted) = (0, 0);
    for (first, path) in &segments {
        if size <= next && 0 < size {
            // A writer at work may have begun a segment; what is in it is not committed.
            uncommitted += path.metadata().map_or(0, |m| m.len());
            continue;
        }
        if *first != next {
            return Err(Fault::new(next, format!("the entries before number {first} are missing")));
        }
        let bytes = fs::read(path).map_err(|e| Fault::new(next, format!("{}: {e}", path.display())))?;
        let mut at = 0;
        while at < bytes.len() && next < size {
            let (text, end) = segment::read_frame(&bytes, at).map_err(|what| Fault::new(next, what))?;
            visit(next, text, leaf_hash(text))?;
            (next, at) = (next + 1, end);
        }
        uncommitted += (bytes.len() - at) as u64;
    }
    if next < size {
        return Err(Fault::new(next, format!("the log ends here, its checkpoint has {size} entries")));
    }
    Ok(uncommitted)
}

fn strays(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let ours: Vec<PathBuf> = segment::list(dir)?.into_iter().map(|(_, path)| path).collect();
    let mut strays = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let known = ["checkpoint", "checkpoint.tmp", "lock"].iter().any(|name| path.ends_with(name));
        let cut = path.extension().is_some_and(|e| e == "cut");
        if !known && !cut && !ours.contains(&path) {
            strays.push(path);
        }
    }
    strays.sort();
    Ok(strays)
}
