//! What steps read from files that may be replaced while they are in use.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use crate::step::Reloadable;

/// Reads a table from its file; the second argument is the table that it would replace.
type Load<T> = dyn Fn(&Path, Option<&T>) -> Result<T, String> + Send + Sync;

/// Something read from a file. Readers never wait: a new version is read beside the old one and then takes its place.
pub struct Table<T> {
    name: String,
    path: PathBuf,
    load: Box<Load<T>>,
    current: ArcSwap<T>,
    /// The file that was tried last, whether it could be used or not.
    tried: Mutex<Option<Stamp>>,
}

/// What tells one version of a file from the next, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    n_bytes: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            n_bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

impl<T> Table<T> {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// If it cannot be opened or used.
    pub fn open(
        path: PathBuf,
        load: impl Fn(&Path, Option<&T>) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Arc<Self>, String> {
        let name = path.display().to_string();
        let stamp = Stamp::of(&path).map_err(|error| error.to_string())?;
        let current = ArcSwap::from_pointee(load(&path, None)?);
        Ok(Arc::new(Self { name, path, load: Box::new(load), current, tried: Mutex::new(Some(stamp)) }))
    }

    /// The version in use now.
    #[must_use]
    pub fn current(&self) -> Arc<T> {
        self.current.load_full()
    }
}

impl<T: Send + Sync> Reloadable for Table<T> {
    fn name(&self) -> &str {
        &self.name
    }

    fn reload_if_changed(&self) -> Result<bool, String> {
        let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match Stamp::of(&self.path) {
            Ok(stamp) if *tried == Some(stamp) => return Ok(false),
            Ok(stamp) => stamp,
            Err(error) => {
                // Said once: a file that stays away is no news.
                return if tried.take().is_some() { Err(error.to_string()) } else { Ok(false) };
            }
        };
        let loaded = (self.load)(&self.path, Some(&self.current()));
        // Whoever writes the file in place has not finished: the next call looks again.
        if Stamp::of(&self.path).ok() != Some(before) {
            return Ok(false);
        }
        *tried = Some(before);
        self.current.store(Arc::new(loaded?));
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_is_read_and_a_broken_one_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table");
        let replace = |text: &str| {
            fs::write(folder.path().join("new"), text).unwrap();
            fs::rename(folder.path().join("new"), &path).unwrap();
        };
        replace("1");
        let table = Table::<u32>::open(path.clone(), |path, _| {
            fs::read_to_string(path).unwrap().parse().map_err(|_| "no number".into())
        })
        .unwrap();
        assert_eq!((table.reload_if_changed(), *table.current()), (Ok(false), 1));
        replace("22");
        assert_eq!((table.reload_if_changed(), *table.current()), (Ok(true), 22));
        replace("broken");
        assert_eq!((table.reload_if_changed(), *table.current()), (Err("no number".into()), 22));
        assert_eq!(table.reload_if_changed(), Ok(false), "the same broken file is not tried again");
        fs::remove_file(&path).unwrap();
        assert!(table.reload_if_changed().is_err());
        assert_eq!((table.reload_if_changed(), *table.current()), (Ok(false), 22));
        replace("333");
        assert_eq!((table.reload_if_changed(), *table.current()), (Ok(true), 333));
    }
}
