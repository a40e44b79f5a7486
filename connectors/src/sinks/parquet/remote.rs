//! A lake in an object store. Objects have their final names from the start; they count once a record names them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::TryStreamExt;
use object_store::path::Path as Key;
use object_store::{Error as StoreError, ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use serde::{Deserialize, Serialize};

use super::commit::{Record, tmp_name};
use super::local::{blocking, lock, remove_files};
use super::storage::{BLOCKS, LOG, number_of, to_json};
use crate::error::ConnectorError;
use crate::object_stores::{UploadError, upload};

/// A lake in an object store.
#[derive(Clone)]
pub(super) struct Remote {
    store: Arc<dyn ObjectStore>,
    prefix: String,
    url: String,
    /// Where data files lie until they are uploaded.
    spool: Arc<PathBuf>,
    _lock: Option<Arc<std::fs::File>>,
}

/// What a writer is about to upload: objects that nobody names if it dies.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Intent {
    pub(super) commit: u64,
    pub(super) files: Vec<String>,
}

impl Remote {
    pub(super) fn new(store: Arc<dyn ObjectStore>, prefix: &str, url: &str) -> Self {
        let spool = Arc::new(PathBuf::new());
        Self { store, prefix: prefix.to_owned(), url: url.to_owned(), spool, _lock: None }
    }

    /// Creates the spool folder and takes its lock.
    pub(super) async fn open(mut self, spool: PathBuf) -> Result<Self, ConnectorError> {
        self.spool = Arc::new(spool);
        let folder = Arc::clone(&self.spool);
        let locked = blocking(Arc::clone(&self.spool), move || {
            std::fs::create_dir_all(&*folder)?;
            lock(&folder.with_extension("lock"))
        });
        self._lock = Some(Arc::new(locked.await?));
        Ok(self)
    }

    pub(super) fn key(&self, path: &str) -> Result<Key, ConnectorError> {
        let key = if self.prefix.is_empty() { path.to_owned() } else { format!("{}/{path}", self.prefix) };
        Key::parse(key).map_err(|error| ConnectorError::refused(&self.url, error.to_string()))
    }

    fn lost(&self, error: StoreError) -> ConnectorError {
        ConnectorError::disconnected(&self.url, error)
    }

    pub(super) async fn get(&self, path: &str) -> Result<Option<Vec<u8>>, ConnectorError> {
        match self.store.get(&self.key(path)?).await {
            Ok(found) => Ok(Some(found.bytes().await.map_err(|error| self.lost(error))?.to_vec())),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.lost(error)),
        }
    }

    /// Writes an object. With [`PutMode::Create`] an object that exists is an error: another writer was faster, and
    /// `connect` reads what it did.
    pub(super) async fn put(&self, path: &str, bytes: Vec<u8>, mode: PutMode) -> Result<(), ConnectorError> {
        let key = self.key(path)?;
        let put = self.store.put_opts(&key, PutPayload::from(bytes), mode.into());
        put.await.map(drop).map_err(|error| self.lost(error))
    }

    pub(super) async fn n_blocks(&self) -> Result<u64, ConnectorError> {
        let prefix = self.key(BLOCKS)?;
        let last = self.store.list(Some(&prefix)).try_fold(0, |n_blocks, object| async move {
            let number = object.location.filename().and_then(number_of);
            Ok(number.map_or(n_blocks, |number| n_blocks.max(number + 1)))
        });
        last.await.map_err(|error| self.lost(error))
    }

    fn intent_path() -> String {
        format!("{LOG}/intent.json")
    }

    /// What the last writer was about to upload.
    pub(super) async fn intent(&self) -> Result<Option<Intent>, ConnectorError> {
        let bytes = self.get(&Self::intent_path()).await?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    /// Deletes objects, of which some may not exist.
    pub(super) async fn delete(&self, paths: &[String]) -> Result<(), ConnectorError> {
        for path in paths {
            match self.store.delete(&self.key(path)?).await {
                Ok(()) | Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(self.lost(error)),
            }
        }
        Ok(())
    }

    /// Uploads the files of a commit.
    pub(super) async fn prepare(&self, record: &Record) -> Result<(), ConnectorError> {
        let files: Vec<String> = record.files.iter().map(|file| file.path.clone()).collect();
        let intent = Intent { commit: record.commit, files };
        self.put(&Self::intent_path(), to_json(&intent), PutMode::Overwrite).await?;
        for file in &record.files {
            self.upload(&self.spool.join(tmp_name(&file.path)), &file.path).await?;
        }
        Ok(())
    }

    async fn upload(&self, from: &Path, to: &str) -> Result<(), ConnectorError> {
        match upload(&*self.store, from, &self.key(to)?).await {
            Ok(()) => Ok(()),
            Err(UploadError::File(error)) => {
                Err(ConnectorError::disconnected(from.display().to_string(), error))
            }
            Err(UploadError::Store(error)) => Err(self.lost(error)),
        }
    }

    /// Deletes the local copies of a commit's files.
    pub(super) async fn forget_spool(&self, record: &Record) -> Result<(), ConnectorError> {
        let names: Vec<PathBuf> =
            record.files.iter().map(|file| self.spool.join(tmp_name(&file.path))).collect();
        blocking(Arc::clone(&self.spool), move || names.iter().try_for_each(std::fs::remove_file)).await
    }

    /// Deletes the local copies that an earlier run left.
    pub(super) async fn clean(&self) -> Result<(), ConnectorError> {
        let spool = Arc::clone(&self.spool);
        blocking(Arc::clone(&self.spool), move || remove_files(&spool)).await
    }
}
