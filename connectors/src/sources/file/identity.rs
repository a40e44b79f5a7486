//! Which partition a file is: after a restart, a rotation, a truncation, a copy.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};

use logdrive_schemas::Partition;
use tracing::{info, warn};

use super::ReadFrom;
use super::read::TAIL_BYTES;
use super::reader::{Reader, key_of};
use super::registry::{Entry, FileKey, Fingerprint, is_rotated_name};
use super::tailer::{Tailed, Tailer};

/// Files of one folder that are looked at in search of a rotated one.
const SIBLINGS_MAX: usize = 1000;
/// How much of a copy's end is compared with its original.
const COMPARE_BYTES: u64 = 4096;
/// How far back `read_from: end` looks for the beginning of the last line.
const LAST_LINE_BYTES: u64 = 1 << 20;

/// What the registry says about a file's first bytes.
enum Match {
    /// The file goes on with this partition.
    Continue(Partition),
    /// The file repeats what a live file has: this partition.
    Copy(Partition),
    /// None of those known.
    New,
}

/// Files beside `path` whose names begin with its name, such as `app.log.1`.
pub(super) fn siblings(path: &Path) -> Vec<(PathBuf, Metadata)> {
    siblings_among(&folder_of(path), path)
}

/// Everything in the folder of `path`.
fn folder_of(path: &Path) -> Vec<PathBuf> {
    let Some(folder) = path.parent() else { return Vec::new() };
    let is_here = folder.as_os_str().is_empty();
    let Ok(entries) = fs::read_dir(if is_here { Path::new(".") } else { folder }) else { return Vec::new() };
    entries.filter_map(Result::ok).map(|e| folder.join(e.file_name())).collect()
}

fn siblings_among(folder: &[PathBuf], path: &Path) -> Vec<(PathBuf, Metadata)> {
    folder
        .iter()
        .filter(|sibling| is_rotated_name(path, sibling))
        .take(SIBLINGS_MAX)
        .filter_map(|sibling| Some((sibling.clone(), fs::symlink_metadata(sibling).ok()?)))
        .filter(|(_, metadata)| metadata.is_file())
        .collect()
}

impl Tailer {
    /// Finds out which partition a file is, if enough of it is there to tell.
    pub(super) fn identify(&mut self, id: u64) -> io::Result<()> {
        let len = self.config.fingerprint_bytes as usize;
        let is_compressed = self.is_compressed(id);
        let file = self.ensure_open(id)?;
        let Some(reader) = &mut file.reader else { return Ok(()) };
        let head = reader.head(len)?;
        let is_whole = file.finalise || reader.is_whole();
        file.stamp.size = reader.metadata()?.len();
        file.copy_of = None;
        if head.is_empty() {
            return Ok(());
        }
        match self.match_entry(id, &head, is_compressed)? {
            Match::Continue(partition) => self.resume(id, partition),
            Match::Copy(partition) => {
                if let Some(file) = self.files.get_mut(&id) {
                    file.copy_of = Some(partition);
                    info!(path = %file.path.display(), "File is a copy of one that is followed; it is not read.");
                }
            }
            Match::New if head.len() == len || is_whole || head.contains(&b'\n') => {
                self.add(id, &head)?;
            }
            Match::New => {}
        }
        Ok(())
    }

    /// The file goes on with a partition that is known.
    fn resume(&mut self, id: u64, partition: Partition) {
        let Some(next) = self.registry.get(partition).map(|entry| entry.next) else { return };
        let Some(file) = self.files.get_mut(&id) else { return };
        (file.partition, file.copy_of, file.offset, file.scanned) = (Some(partition), None, next, 0);
        file.tail.clear();
        self.registry.claim(partition, file.key, &file.path);
        let tail_len = next.min(TAIL_BYTES as u64);
        if !self.is_compressed(id)
            && let Ok(tail) = self.bytes_at(id, next - tail_len, tail_len)
            && let Some(file) = self.files.get_mut(&id)
        {
            file.tail = tail;
        }
    }

    fn add(&mut self, id: u64, head: &[u8]) -> io::Result<()> {
        let from_end = self.at_first_start && self.config.read_from == ReadFrom::End;
        let Some(file) = self.files.get_mut(&id) else { return Ok(()) };
        let start = if from_end { last_line_start(file)? } else { 0 };
        (file.offset, file.scanned, file.not) = (start, 0, None);
        file.tail.clear();
        file.partition = Some(self.registry.add(file.key, &file.path, head, start));
        Ok(())
    }

    fn match_entry(&mut self, id: u64, head: &[u8], is_compressed: bool) -> io::Result<Match> {
        let Some(file) = self.files.get(&id) else { return Ok(Match::New) };
        let (key, path, size, not) = (file.key, file.path.clone(), file.stamp.size, file.not);
        let fits = |e: &Entry| is_compressed || e.next <= size;
        // The same file as before.
        let same: Vec<(Partition, bool)> = self
            .registry
            .entries()
            .filter(|e| !e.claimed && e.key == key && Some(e.partition) != not)
            .map(|e| (e.partition, e.begins(head) && fits(e)))
            .collect();
        for (partition, matches) in same {
            if matches {
                return Ok(Match::Continue(partition));
            }
            self.registry.orphan(partition);
        }
        // The same content elsewhere.
        let full = Fingerprint::of(head);
        let is_full = head.len() as u64 == self.config.fingerprint_bytes;
        let mut alike: Vec<(bool, Partition)> = self
            .registry
            .entries()
            .filter(|e| e.key != key && Some(e.partition) != not)
            .filter(|e| {
                (is_full && e.fingerprint == full)
                    || (is_rotated_name(Path::new(&e.path), &path)
                        && (e.begins(head) || full.len < e.fingerprint.len))
            })
            .map(|e| (!e.claimed, e.partition))
            .collect();
        // Live originals first: one that turns out to be truncated sets its partition free.
        alike.sort_unstable();
        for (_, partition) in alike {
            if self.registry.get(partition).is_some_and(|e| e.claimed) {
                if !self.config.follow {
                    continue;
                }
                if self.is_copy(id, partition, head)? {
                    return Ok(Match::Copy(partition));
                }
                // If the original was found truncated, this file may have been given its partition.
                if self.files.get(&id).is_some_and(|f| f.partition.is_some()) {
                    return Ok(Match::Continue(partition));
                }
            }
            if self.registry.get(partition).is_some_and(|e| !e.claimed && e.begins(head) && fits(e)) {
                return Ok(Match::Continue(partition));
            }
        }
        Ok(Match::New)
    }

    /// Whether a file repeats, as far as it goes, the live file of a partition.
    fn is_copy(&mut self, id: u64, partition: Partition, head: &[u8]) -> io::Result<bool> {
        let Some(owner) = self.files.iter().find(|(_, f)| f.partition == Some(partition)).map(|(id, _)| *id)
        else {
            return Ok(false);
        };
        let original = self.head(owner)?;
        if !self.registry.get(partition).is_some_and(|e| e.begins(&original)) {
            self.truncated(owner)?;
            self.enqueue(owner);
            return Ok(false);
        }
        if !original.starts_with(head) {
            return Ok(false);
        }
        if self.is_compressed(id) || self.is_compressed(owner) {
            return Ok(true);
        }
        let size = self.files.get(&id).map_or(0, |f| f.stamp.size);
        let len = size.min(COMPARE_BYTES);
        Ok(self.bytes_at(id, size - len, len)? == self.bytes_at(owner, size - len, len)?)
    }

    fn head(&mut self, id: u64) -> io::Result<Vec<u8>> {
        let len = self.config.fingerprint_bytes;
        self.bytes_at(id, 0, len)
    }

    fn bytes_at(&mut self, id: u64, offset: u64, len: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        if let Some(reader) = &mut self.ensure_open(id)?.reader {
            reader.read_at(offset, len as usize, &mut bytes)?;
        }
        Ok(bytes)
    }

    /// A file grew: a short fingerprint becomes a longer one, unless its first bytes changed. Those of one that is
    /// long enough are looked at when it is read.
    pub(super) fn check_fingerprint(&mut self, id: u64) -> io::Result<()> {
        let Some(file) = self.files.get(&id) else { return Ok(()) };
        let Some(partition) = file.partition else { return Ok(()) };
        let len = self.config.fingerprint_bytes;
        if self.registry.get(partition).is_none_or(|e| len <= e.fingerprint.len) {
            return Ok(());
        }
        let head = self.head(id)?;
        let Some(entry) = self.registry.get(partition) else { return Ok(()) };
        if !entry.begins(&head) {
            return self.truncated(id);
        }
        if entry.fingerprint.len < head.len() as u64 {
            self.registry.extend_fingerprint(partition, Fingerprint::of(&head));
        }
        Ok(())
    }

    /// A file was cut and perhaps written anew: its partition goes on in the copy that was made of it, if there is
    /// one, and what the file has now is a new partition.
    pub(super) fn truncated(&mut self, id: u64) -> io::Result<()> {
        let Some(file) = self.files.get_mut(&id) else { return Ok(()) };
        let Some(partition) = file.partition.take() else { return Ok(()) };
        let (offset, tail, path) = (file.offset, std::mem::take(&mut file.tail), file.path.clone());
        (file.offset, file.scanned, file.not) = (0, 0, Some(partition));
        self.registry.advance(partition, offset);
        self.registry.orphan(partition);
        match self.find_copy(partition, &path, offset, &tail)? {
            Some(copy) => {
                self.resume(copy, partition);
                if let Some(file) = self.files.get_mut(&copy) {
                    file.tail = tail;
                    info!(path = %path.display(), copy = %file.path.display(), offset,
                        "File was truncated; its copy is read to the end.");
                }
                self.enqueue(copy);
            }
            None => warn!(path = %path.display(), offset,
                "File was truncated and no copy of it found; lines not read until then are lost."),
        }
        self.identify(id)
    }

    /// The file that has what a truncated one had, up to `offset` at least.
    fn find_copy(
        &mut self,
        partition: Partition,
        path: &Path,
        offset: u64,
        tail: &[u8],
    ) -> io::Result<Option<u64>> {
        let mut candidates: Vec<u64> =
            self.files.iter().filter(|(_, f)| f.copy_of == Some(partition)).map(|(id, _)| *id).collect();
        // Known files without a partition may be copies that were too short to tell.
        candidates.extend(
            self.files
                .iter()
                .filter(|(_, f)| {
                    f.partition.is_none() && f.copy_of.is_none() && is_rotated_name(path, &f.path)
                })
                .map(|(id, _)| *id),
        );
        let named: Vec<u64> = candidates.clone();
        for (sibling, metadata) in siblings(path) {
            if !self.is_known(&metadata) {
                candidates.push(self.insert(key_of(&metadata), sibling, false));
            }
        }
        let mut found = None;
        for id in candidates {
            let holds = found.is_none() && self.holds(id, partition, offset, tail).unwrap_or(false);
            if holds {
                found = Some(id);
            } else if !named.contains(&id) {
                self.drop_candidate(id);
            }
        }
        Ok(found)
    }

    fn drop_candidate(&mut self, id: u64) {
        if let Some(file) = self.files.remove(&id) {
            self.by_key.remove(&file.key);
        }
    }

    fn holds(&mut self, id: u64, partition: Partition, offset: u64, tail: &[u8]) -> io::Result<bool> {
        let head = self.head(id)?;
        let Some(key) = self.files.get(&id).map(|f| f.key) else { return Ok(false) };
        if !self.registry.get(partition).is_some_and(|e| e.begins(&head))
            || self.is_other(partition, key, &head)
        {
            return Ok(false);
        }
        let before = offset - tail.len() as u64;
        Ok(self.bytes_at(id, before, tail.len() as u64)? == tail)
    }

    /// Whether a file is known to be another partition: an older generation that begins alike.
    fn is_other(&self, partition: Partition, key: FileKey, head: &[u8]) -> bool {
        self.registry.entries().any(|e| e.key == key && e.partition != partition && e.begins(head))
    }

    /// After a restart: files that were rotated out of `paths` in the meantime are read to their end.
    pub(super) fn recover_rotated(&mut self) {
        let missing: Vec<(Partition, FileKey, PathBuf)> = self
            .registry
            .entries()
            .filter(|e| !e.claimed)
            .map(|e| (e.partition, e.key, PathBuf::from(&e.path)))
            .collect();
        let mut folders: HashMap<PathBuf, Vec<PathBuf>> = HashMap::new();
        let mut known: HashMap<PathBuf, Vec<(PathBuf, Metadata, Vec<u8>)>> = HashMap::new();
        for (partition, key, path) in missing {
            let folder = path.parent().unwrap_or(Path::new("")).to_owned();
            let folder = folders.entry(folder).or_insert_with(|| folder_of(&path));
            let candidates =
                known.entry(path.clone()).or_insert_with(|| heads(siblings_among(folder, &path), self));
            let found = candidates.iter().find(|(_, metadata, head)| {
                let is_free = !self.is_known(metadata) && !self.is_other(partition, key_of(metadata), head);
                self.registry.get(partition).filter(|_| is_free).is_some_and(|e| {
                    // A short fingerprint tells only if it covers all that was read.
                    let is_enough =
                        e.fingerprint.len == self.config.fingerprint_bytes || e.next <= e.fingerprint.len;
                    e.begins(head) && e.next < metadata.len() && (key_of(metadata) == key || is_enough)
                })
            });
            if let Some((path, metadata, _)) = found {
                let (key, path) = (key_of(metadata), path.clone());
                let id = self.insert(key, path, false);
                // Opened while it has this name: without name and handle it would be given up.
                if self.ensure_open(id).is_ok() {
                    self.resume(id, partition);
                    self.enqueue(id);
                } else {
                    self.drop_candidate(id);
                }
            }
        }
    }
}

/// The first bytes of files that are neither followed nor compressed.
fn heads(files: Vec<(PathBuf, Metadata)>, tailer: &Tailer) -> Vec<(PathBuf, Metadata, Vec<u8>)> {
    files
        .into_iter()
        .filter(|(_, metadata)| !tailer.is_known(metadata))
        .filter_map(|(path, metadata)| {
            let (mut reader, _) = Reader::open(&path, tailer.config.compression).ok()?;
            let head = reader.head(tailer.config.fingerprint_bytes as usize).ok()?;
            (!reader.is_compressed()).then_some((path, metadata, head))
        })
        .collect()
}

/// Where the last line begins that is complete or begun.
fn last_line_start(file: &mut Tailed) -> io::Result<u64> {
    let Some(reader) = &mut file.reader else { return Ok(0) };
    let mut block = Vec::new();
    if reader.is_compressed() {
        let mut end = 0;
        loop {
            block.clear();
            reader.read_at(end, LAST_LINE_BYTES as usize, &mut block)?;
            if block.is_empty() {
                return Ok(end);
            }
            end += block.len() as u64;
        }
    }
    let size = reader.metadata()?.len();
    let from = size.saturating_sub(LAST_LINE_BYTES);
    reader.read_at(from, (size - from) as usize, &mut block)?;
    Ok(match memchr::memrchr(b'\n', &block) {
        Some(idx) => from + idx as u64 + 1,
        None if from == 0 => 0,
        None => size,
    })
}
