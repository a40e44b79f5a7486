//! The folder of checkpoints: every operation on its files, with counts of what was written.

use std::fs::File;
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use xxhash_rust::xxh3::Xxh3;

/// A folder, and how many bytes were written to it.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    n_written: AtomicU64,
    #[cfg(test)]
    pub(super) faults: super::tests::faults::Faults,
}

impl Folder {
    pub(super) fn new(path: &Path) -> Arc<Self> {
        Arc::new(Self {
            path: path.to_owned(),
            n_written: AtomicU64::new(0),
            #[cfg(test)]
            faults: super::tests::faults::Faults::default(),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes written since it was opened.
    pub(super) fn n_written(&self) -> u64 {
        self.n_written.load(Ordering::Relaxed)
    }

    /// Names of all files; none if there is no folder.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let name = |entry: io::Result<std::fs::DirEntry>| Ok(entry?.file_name().into_string().ok());
        entries.filter_map(|entry| name(entry).transpose()).collect()
    }

    /// A new file. It is durable once it is finished and the folder is synced.
    pub(super) fn create(self: &Arc<Self>, name: &str) -> io::Result<NewFile> {
        self.step()?;
        std::fs::create_dir_all(&self.path)?;
        let file = File::create(self.path.join(name))?;
        #[cfg(test)]
        self.faults.begun(name);
        Ok(NewFile { folder: Arc::clone(self), name: name.to_owned(), file, hash: Xxh3::new(), n_bytes: 0 })
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.step()?;
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        self.step()?;
        std::fs::remove_file(self.path.join(name))
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.step()?;
        // The first checkpoint may be a manifest only.
        std::fs::create_dir_all(&self.path)?;
        File::open(&self.path)?.sync_all()
    }

    pub(super) fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        std::fs::read(self.path.join(name))
    }

    /// The size and the checksum of a file.
    pub(super) fn hash(&self, name: &str) -> io::Result<(u64, u64)> {
        let mut file = File::open(self.path.join(name))?;
        let (mut hash, mut n_bytes) = (Xxh3::new(), 0);
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok((n_bytes, hash.digest())),
                n => {
                    hash.update(&buffer[..n]);
                    n_bytes += n as u64;
                }
            }
        }
    }

    /// Tests let any operation fail.
    #[allow(clippy::unnecessary_wraps, reason = "tests let it fail")]
    fn step(&self) -> io::Result<()> {
        #[cfg(test)]
        self.faults.step(&self.path)?;
        Ok(())
    }
}

/// A file that is being written.
pub(super) struct NewFile {
    folder: Arc<Folder>,
    name: String,
    file: File,
    hash: Xxh3,
    n_bytes: u64,
}

impl NewFile {
    /// Syncs it; its size and checksum.
    pub(super) fn finish(self) -> io::Result<(u64, u64)> {
        self.folder.step()?;
        self.file.sync_data()?;
        #[cfg(test)]
        self.folder.faults.synced(&self.name);
        Ok((self.n_bytes, self.hash.digest()))
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.folder.step()?;
        let n = self.file.write(bytes)?;
        self.hash.update(&bytes[..n]);
        self.n_bytes += n as u64;
        self.folder.n_written.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
