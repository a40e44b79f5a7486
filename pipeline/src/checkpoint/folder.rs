//! Where checkpoints lie: a local folder, or an object store with a folder of copies. Every operation on the files,
//! with counts of what was written.
//!
//! What is in an object store is read from the copies, which need not be there: what lacks is fetched at the start.

use std::fs::File;
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use logdrive_connectors::object_stores;
use prometheus::IntCounter;
use xxhash_rust::xxh3::Xxh3;

use super::Place;
use super::manifest::{FileRef, hex};
use super::remote::Remote;

/// A folder, and how many bytes were written to it.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// What the folder has copies of.
    remote: Option<Remote>,
    n_written: AtomicU64,
    #[cfg(test)]
    pub(super) faults: super::tests::faults::Faults,
}

impl Folder {
    pub(super) fn new(path: &Path) -> Arc<Self> {
        Self::with(path, None)
    }

    pub(super) fn open(place: &Place) -> io::Result<Arc<Self>> {
        match place {
            Place::Folder(path) => Ok(Self::new(path)),
            Place::Store { url, options, copies } => {
                let (store, prefix) = object_stores::open(url, options).map_err(io::Error::other)?;
                Ok(Self::with(copies, Some(Remote::new(store, prefix, url)?)))
            }
        }
    }

    pub(super) fn with(path: &Path, remote: Option<Remote>) -> Arc<Self> {
        Arc::new(Self {
            path: path.to_owned(),
            remote,
            n_written: AtomicU64::new(0),
            #[cfg(test)]
            faults: super::tests::faults::Faults::default(),
        })
    }

    /// Where the files, or copies of them, are.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What people call it.
    pub(super) fn place(&self) -> PathBuf {
        self.remote.as_ref().map_or_else(|| self.path.clone(), |remote| remote.url().into())
    }

    /// Bytes written since it was opened.
    pub(super) fn n_written(&self) -> u64 {
        self.n_written.load(Ordering::Relaxed)
    }

    /// Of an object store: no other process may write there from now on.
    pub(super) fn take_over(&self) -> io::Result<()> {
        self.remote.as_ref().map_or(Ok(()), Remote::take_over)
    }

    /// From now on a store that is down is waited for; `failures` counts the tries.
    pub(super) fn be_patient(&self, failures: Option<&IntCounter>) {
        if let Some(remote) = &self.remote {
            remote.be_patient(failures);
        }
    }

    /// Nobody waits any longer.
    pub(super) fn close(&self) {
        if let Some(remote) = &self.remote {
            remote.close();
        }
    }

    /// What names of new files have in them, so that no other process makes the same.
    pub(super) fn tag(&self) -> String {
        self.remote.as_ref().map_or_else(String::new, Remote::tag)
    }

    /// Names of all files; none if there is no folder.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        self.remote.as_ref().map_or_else(|| self.local_names(), Remote::names)
    }

    fn local_names(&self) -> io::Result<Vec<String>> {
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

    /// Makes a file that is there as a whole or not at all, after everything that was written before: temporary file,
    /// sync, rename, sync of the folder; an object is like that by itself.
    pub(super) fn publish(self: &Arc<Self>, name: &str, bytes: Vec<u8>) -> io::Result<()> {
        if let Some(remote) = &self.remote {
            self.n_written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            return remote.publish(name, bytes);
        }
        // The names of the files must not come to disk after this one.
        self.sync()?;
        let mut file = self.create(&format!("{name}.tmp"))?;
        file.write_all(&bytes)?;
        let temporary = file.name().to_owned();
        file.finish()?;
        self.rename(&temporary, name)?;
        self.sync()
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.step()?;
        match &self.remote {
            Some(remote) => remote.rename(from, to),
            None => std::fs::rename(self.path.join(from), self.path.join(to)),
        }
    }

    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        self.step()?;
        let Some(remote) = &self.remote else { return std::fs::remove_file(self.path.join(name)) };
        remote.remove(name)?;
        self.remove_copy(name)
    }

    /// Removes copies of what is not there any more.
    pub(super) fn remove_old_copies(&self) -> io::Result<()> {
        let Some(remote) = &self.remote else { return Ok(()) };
        let names = remote.names()?;
        let old = self.local_names()?.into_iter().filter(|name| names.binary_search(name).is_err());
        old.into_iter().try_for_each(|name| self.remove_copy(&name))
    }

    fn remove_copy(&self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.step()?;
        // The first checkpoint may be a manifest only.
        std::fs::create_dir_all(&self.path)?;
        File::open(&self.path)?.sync_all()
    }

    /// A file that was published.
    pub(super) fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        match &self.remote {
            Some(remote) => remote.read(name),
            None => self.read_copy(name),
        }
    }

    /// A file that was compared with its checksum, or written by this process.
    pub(super) fn read_copy(&self, name: &str) -> io::Result<Vec<u8>> {
        std::fs::read(self.path.join(name))
    }

    /// The size and the checksum of a file. If it is in an object store there is a copy afterwards, which is fetched
    /// unless there is one as `file` says.
    pub(super) fn hash(&self, file: &FileRef) -> io::Result<(u64, u64)> {
        let path = self.path.join(&file.name);
        let Some(remote) = &self.remote else { return hash(&path) };
        let size = remote.size(&file.name)?;
        match hash(&path) {
            Ok((bytes, of)) if bytes == size && hex(of) == file.xxh3 => Ok((bytes, of)),
            _ => {
                std::fs::create_dir_all(&self.path)?;
                remote.download(&file.name, &path)?;
                hash(&path)
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

    #[cfg(test)]
    pub(super) fn remote(&self) -> Option<&Remote> {
        self.remote.as_ref()
    }
}

fn hash(path: &Path) -> io::Result<(u64, u64)> {
    let mut file = File::open(path)?;
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

/// A file that is being written.
pub(super) struct NewFile {
    folder: Arc<Folder>,
    name: String,
    file: File,
    hash: Xxh3,
    n_bytes: u64,
}

impl NewFile {
    /// Syncs it, or copies it into the object store; its size and checksum.
    pub(super) fn finish(self) -> io::Result<(u64, u64)> {
        self.folder.step()?;
        match &self.folder.remote {
            Some(remote) => remote.upload(&self.name, &self.folder.path.join(&self.name))?,
            None => self.file.sync_data()?,
        }
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
