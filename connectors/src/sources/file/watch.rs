//! Notices what happens to files: new ones, growth, truncation, renaming, deletion. By looking, at every poll.

use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::identity::siblings;
use super::reader::{Reader, key_of};
use super::tailer::{Stamp, Tailer};
use crate::error::ConnectorError;

/// Looking for new files may take this part of the time: one in twenty.
const DISCOVERY_SHARE: u32 = 20;
/// The coarsest clock of a file system.
const TICK: Duration = Duration::from_secs(1);

impl Tailer {
    /// Looks at all files, and from time to time for new ones.
    pub(super) fn poll(&mut self, now: Instant) -> Result<(), ConnectorError> {
        let mut changes = Vec::with_capacity(self.files.len());
        let mut lost_name = false;
        for (id, file) in &mut self.files {
            let by_path = if file.attached { fs::metadata(&file.path).ok() } else { None };
            let same = by_path.filter(|m| key_of(m) == file.key);
            if file.attached && same.is_none() {
                (file.attached, file.quiet_since) = (false, now);
                lost_name = true;
            }
            let metadata = same.or_else(|| file.reader.as_ref().and_then(|r| r.metadata().ok()));
            changes.push((*id, metadata));
        }
        if lost_name || self.next_discovery <= now {
            changes.extend(self.discover());
            let took = now.elapsed();
            self.next_discovery = now + self.config.poll_interval.max(took * DISCOVERY_SHARE);
        }
        for (id, metadata) in changes {
            self.update(id, metadata.as_ref(), now);
        }
        self.retire(now);
        self.registry.save()?;
        self.next_poll = now + self.config.poll_interval.max(Duration::from_millis(1));
        Ok(())
    }

    /// Finds files, oldest first: new ones, and new names of known ones.
    fn discover(&mut self) -> Vec<(u64, Option<Metadata>)> {
        let mut found: Vec<(PathBuf, Metadata)> = Vec::new();
        let mut seen = HashSet::new();
        for pattern in &self.config.paths {
            let Ok(paths) = glob::glob(pattern) else { continue };
            for path in paths.filter_map(Result::ok) {
                if self.exclude.iter().any(|pattern| pattern.matches_path(&path)) {
                    continue;
                }
                if let Ok(metadata) = fs::metadata(&path)
                    && metadata.is_file()
                    && seen.insert(key_of(&metadata))
                {
                    found.push((path, metadata));
                }
            }
        }
        found.sort_by_key(|(_, m)| (m.mtime(), m.mtime_nsec()));
        let mut new = Vec::new();
        for (path, metadata) in found {
            match self.by_key.get(&key_of(&metadata)).and_then(|id| self.files.get_mut(id)) {
                Some(file) if !file.attached => {
                    file.attached = true;
                    file.peer = path.display().to_string().into();
                    if let Some(partition) = file.partition {
                        self.registry.claim(partition, file.key, &path);
                    }
                    file.path = path;
                }
                Some(_) => {}
                None => new.push((self.insert(key_of(&metadata), path, true), Some(metadata))),
            }
        }
        new
    }

    /// Looks at one file after its state was asked for.
    fn update(&mut self, id: u64, metadata: Option<&Metadata>, now: Instant) {
        let Some(file) = self.files.get_mut(&id) else { return };
        let renamed = if metadata.is_none() && file.attached { fs::metadata(&file.path).ok() } else { None };
        let Some(metadata) = metadata.or(renamed.as_ref()) else {
            // No name, and no handle: it was renamed while it was closed.
            self.reattach(id);
            return;
        };
        let stamp = Stamp::of(metadata);
        let mut changed = stamp != file.stamp;
        if changed {
            (file.stamp, file.settled, file.quiet_since) = (stamp, false, now);
            if let Some(reader) = &mut file.reader {
                reader.changed();
            }
        } else if !file.settled && file.quiet_since + TICK <= now {
            // Content replaced by as much in the same tick left no trace.
            file.settled = true;
            changed = !self.is_compressed(id);
        }
        if let Err(error) = self.follow_up(id, changed) {
            self.fail(id, &error);
        }
    }

    fn follow_up(&mut self, id: u64, changed: bool) -> io::Result<()> {
        let Some(file) = self.files.get(&id) else { return Ok(()) };
        match file.partition {
            Some(_) if !self.is_compressed(id) && file.stamp.size < file.offset => self.truncated(id)?,
            Some(_) if changed => self.check_fingerprint(id)?,
            Some(_) => return Ok(()),
            None if changed => {
                self.identify(id)?;
                // It may have grown while nobody looked.
                self.check_fingerprint(id)?;
            }
            None => match file.copy_of {
                // What it is a copy of is gone: perhaps the copy goes on where that ended.
                Some(of) if !self.registry.get(of).is_some_and(|e| e.claimed) => self.identify(id)?,
                _ => return Ok(()),
            },
        }
        self.enqueue(id);
        Ok(())
    }

    /// Lets go of files without a name that have been quiet for long enough.
    fn retire(&mut self, now: Instant) {
        let quiet: Vec<u64> = self
            .files
            .iter()
            .filter(|(_, f)| !f.attached && !f.queued && f.quiet_since + self.config.rotate_wait <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in quiet {
            let Some(file) = self.files.get_mut(&id) else { continue };
            // Nobody will complete the last line any more.
            if !file.finalise && file.reader.is_some() {
                file.finalise = true;
                if file.partition.is_none()
                    && let Err(error) = self.identify(id)
                {
                    self.fail(id, &error);
                }
                self.enqueue(id);
                continue;
            }
            self.remove(id);
        }
    }

    fn remove(&mut self, id: u64) {
        let Some(file) = self.files.remove(&id) else { return };
        if self.by_key.get(&file.key) == Some(&id) {
            self.by_key.remove(&file.key);
        }
        if let Some(partition) = file.partition {
            self.registry.release(partition);
        }
        debug!(path = %file.path.display(), offset = file.offset, "File is no longer followed.");
    }

    /// Finds a file that was renamed while it was closed, or gives it up.
    fn reattach(&mut self, id: u64) {
        let Some(file) = self.files.get(&id) else { return };
        let key = file.key;
        let found = siblings(&file.path).into_iter().find(|(_, m)| key_of(m) == key);
        let Some((path, metadata)) = found else {
            if file.stamp.size != file.offset && file.copy_of.is_none() {
                warn!(path = %file.path.display(), read = file.offset, size = file.stamp.size,
                    "File is gone before it was read to its end.");
            }
            self.remove(id);
            return;
        };
        if let Ok((reader, opened)) = Reader::open(&path, self.config.compression)
            && key_of(&opened) == key
        {
            if let Some(file) = self.files.get_mut(&id) {
                file.path = path;
                file.reader = Some(reader);
                file.stamp = Stamp::of(&metadata);
            }
            self.enqueue(id);
        }
    }
}
