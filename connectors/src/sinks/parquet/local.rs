//! A lake in a local folder.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::commit::{Record, tmp_name};
use super::storage::{BLOCKS, LOG, TMP, number_of};
use crate::error::ConnectorError;

/// A lake in a local folder, locked while this lives.
pub(super) struct Local {
    root: Arc<PathBuf>,
    /// Also held by whatever still runs on another thread, so that a new writer waits for it.
    _lock: Arc<File>,
}

impl Local {
    /// Creates the folders and takes the lock.
    pub(super) async fn open(root: PathBuf, spool: PathBuf) -> Result<Self, ConnectorError> {
        let lock_path = root.join(LOG).join("lock");
        let root = Arc::new(root);
        let lock = {
            let root = Arc::clone(&root);
            blocking(Arc::clone(&root), move || {
                fs::create_dir_all(root.join(BLOCKS))?;
                fs::create_dir_all(&spool)?;
                sync_folder(&root.join(LOG))?;
                sync_folder(&root)?;
                lock(&lock_path)
            })
            .await?
        };
        Ok(Self { root, _lock: Arc::new(lock) })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, ConnectorError> {
        let (root, lock) = (Arc::clone(&self.root), Arc::clone(&self._lock));
        blocking(Arc::clone(&self.root), move || {
            let done = work(&root);
            drop(lock);
            done
        })
        .await
    }

    pub(super) async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, ConnectorError> {
        let key = key.to_owned();
        self.run(move |root| read(&root.join(key))).await
    }

    /// Writes a file of the log: whole and durable, or not at all.
    pub(super) async fn put(&self, key: &str, bytes: Vec<u8>) -> Result<(), ConnectorError> {
        let key = key.to_owned();
        self.run(move |root| {
            let (path, tmp) = (root.join(&key), root.join(format!("{key}.tmp")));
            let mut file = File::create(&tmp)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&tmp, &path)?;
            sync_folder(path.parent().unwrap_or(root))
        })
        .await
    }

    pub(super) async fn n_blocks(&self) -> Result<u64, ConnectorError> {
        self.run(count_blocks).await
    }

    /// The files are synced as they are closed; their folder is not.
    pub(super) async fn prepare(&self) -> Result<(), ConnectorError> {
        self.run(|root| sync_folder(&root.join(TMP))).await
    }

    /// Gives the files of a commit their names, as far as they have not got them. Durable before the next commit,
    /// because only the last one is ever finished by a restart.
    pub(super) async fn reveal(&self, record: &Record) -> Result<(), ConnectorError> {
        let paths: Vec<String> = record.files.iter().map(|file| file.path.clone()).collect();
        self.run(move |root| {
            let mut folders = BTreeSet::new();
            for path in &paths {
                let (name, tmp) = (root.join(path), tmp_path(root, path));
                let folder = name.parent().unwrap_or(root);
                fs::create_dir_all(folder)?;
                match fs::rename(&tmp, &name) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    renamed => renamed?,
                }
                folders.extend(folder.ancestors().take_while(|f| f.starts_with(root)).map(Path::to_owned));
            }
            // Children before parents does not matter: all are synced before the next commit.
            folders.iter().try_for_each(|folder| sync_folder(folder))
        })
        .await
    }

    /// Deletes data files that no commit names.
    pub(super) async fn clean(&self) -> Result<(), ConnectorError> {
        self.run(|root| remove_files(&root.join(TMP))).await
    }
}

/// Runs `work` where it may block.
pub(super) async fn blocking<T: Send + 'static>(
    path: Arc<PathBuf>,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, ConnectorError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(ConnectorError::disconnected(path.display().to_string(), error)),
        Err(error) => Err(ConnectorError::disconnected(path.display().to_string(), error)),
    }
}

/// Keeps other writers out for as long as the file is open.
pub(super) fn lock(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).write(true).truncate(false).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::Error(error)) => Err(error),
        Err(TryLockError::WouldBlock) => Err(io::Error::other("another writer has locked it")),
    }
}

pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Deletes the files in a folder, which may not exist.
pub(super) fn remove_files(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The bytes of a file; `None` if there is none.
pub(super) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where a file lies before it has its name.
pub(super) fn tmp_path(root: &Path, path: &str) -> PathBuf {
    root.join(TMP).join(tmp_name(path))
}

/// The number of blocks in a lake's log.
pub(super) fn count_blocks(root: &Path) -> io::Result<u64> {
    let entries = match fs::read_dir(root.join(BLOCKS)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut n_blocks = 0;
    for entry in entries {
        let number = entry?.file_name().to_str().and_then(number_of);
        n_blocks = number.map_or(n_blocks, |number| n_blocks.max(number + 1));
    }
    Ok(n_blocks)
}
