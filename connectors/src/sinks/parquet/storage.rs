//! Where the lake lies, a local folder or an object store, and its commit log.
//!
//! Both commit in three phases. `prepare` makes the data files durable, `commit` writes the record, `reveal` gives
//! the files their names. A crash before the record leaves nothing but leftovers; after it, `open` finishes.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use futures::future::try_join_all;

use super::commit::{BLOCK_COMMITS, Block, CommittedFile, Record, SNAPSHOT_COMMITS};
use super::dedupe::Seen;
use super::local::{self, Local};
pub(super) use super::remote::Remote;
use crate::error::ConnectorError;
use crate::object_stores;

/// The folder of data files that are not committed.
pub(super) const TMP: &str = "_tmp";
/// The folder of the commit log.
pub(super) const LOG: &str = "_logdrive";
/// The folder of its blocks.
pub(super) const BLOCKS: &str = "_logdrive/blocks";
/// Records that are fetched at a time.
const FETCH_RECORDS: u64 = 16;

/// The place of a commit's record.
pub(super) fn record_key(commit: u64) -> String {
    format!("{LOG}/{commit:08}.json")
}

/// The place of the files of [`BLOCK_COMMITS`] commits.
pub(super) fn block_key(block: u64) -> String {
    format!("{BLOCKS}/{block:08}.json")
}

/// The number in a name such as `00000012.json`.
pub(super) fn number_of(name: &str) -> Option<u64> {
    name.strip_suffix(".json")?.parse().ok()
}

/// The object store that a URL names, with options from the environment and from the configuration.
pub(super) fn object_store(path: &str, options: &BTreeMap<String, String>) -> Result<Remote, String> {
    if path.starts_with("file:") {
        return Err("a lake on local disk is written as a plain path".into());
    }
    let (store, prefix) = object_stores::open(path, options)?;
    Ok(Remote::new(store, prefix.as_ref(), path))
}

/// What the commit log says.
pub(super) struct History {
    /// The number of the next commit.
    pub(super) n_commits: u64,
    /// The records since the last snapshot.
    pub(super) records: Vec<Record>,
}

/// Where the lake lies.
pub(super) struct Storage {
    backend: Backend,
    /// The files since the last block.
    block: Mutex<Vec<CommittedFile>>,
}

enum Backend {
    Local(Local),
    Remote(Remote),
}

impl Storage {
    /// Opens a folder: finishes the last commit, and deletes what no commit names.
    pub(super) async fn open_local(root: PathBuf, spool: PathBuf) -> Result<(Self, History), ConnectorError> {
        let storage = Self::new(Backend::Local(Local::open(root, spool).await?));
        let history = storage.load().await?;
        if let Some(last) = history.records.last() {
            storage.backend.reveal(last).await?;
        }
        storage.backend.clean().await?;
        Ok((storage, history))
    }

    /// Opens an object store: makes sure that no earlier writer can still commit, and deletes what it left.
    pub(super) async fn open_remote(
        remote: Remote,
        spool: PathBuf,
    ) -> Result<(Self, History), ConnectorError> {
        let storage = Self::new(Backend::Remote(remote.open(spool).await?));
        let mut history = storage.load().await?;
        let Backend::Remote(remote) = &storage.backend else { return Ok((storage, history)) };
        if let Some(intent) = remote.intent().await?.filter(|intent| intent.commit == history.n_commits) {
            let mut seen = Seen::default();
            history.records.iter().for_each(|record| seen.apply(record));
            let fence = Record::fence(history.n_commits, &seen);
            storage.commit(&fence).await?;
            storage.reveal(&fence).await?;
            remote.delete(&intent.files).await?;
            history.n_commits += 1;
            history.records.push(fence);
        }
        storage.backend.clean().await?;
        Ok((storage, history))
    }

    fn new(backend: Backend) -> Self {
        Self { backend, block: Mutex::default() }
    }

    /// Reads the end of the commit log.
    async fn load(&self) -> Result<History, ConnectorError> {
        let mut n_blocks = self.backend.n_blocks().await?;
        let mut records = Vec::new();
        let first = n_blocks * BLOCK_COMMITS;
        loop {
            let next = first + records.len() as u64;
            let wave = self.records(next..next + FETCH_RECORDS).await?;
            let n_found = wave.len() as u64;
            records.extend(wave);
            if n_found < FETCH_RECORDS {
                break;
            }
        }
        let n_commits = first + records.len() as u64;
        // A crash may have come between a commit and its block.
        let mut files: Vec<&Record> = records.iter().collect();
        while files.len() as u64 >= BLOCK_COMMITS {
            let rest = files.split_off(BLOCK_COMMITS as usize);
            let files_of_block = files.iter().flat_map(|record| record.files.clone()).collect();
            self.backend.put_block(n_blocks, Block { files: files_of_block }).await?;
            n_blocks += 1;
            files = rest;
        }
        *self.block.lock().expect("no holder panics") =
            files.iter().flat_map(|record| record.files.clone()).collect();
        let since = n_commits.saturating_sub(1) / SNAPSHOT_COMMITS * SNAPSHOT_COMMITS;
        if since < first {
            records = self.records(since..n_commits).await?;
        } else {
            records.retain(|record| record.commit >= since);
        }
        Ok(History { n_commits, records })
    }

    /// Reads records up to the first that does not exist.
    async fn records(&self, range: std::ops::Range<u64>) -> Result<Vec<Record>, ConnectorError> {
        let fetched = try_join_all(range.map(|commit| async move {
            let key = record_key(commit);
            let Some(bytes) = self.backend.get(&key).await? else { return Ok(None) };
            parse_record(&key, &bytes).map(Some).map_err(|reason| ConnectorError::refused(key, reason))
        }));
        Ok(fetched.await?.into_iter().map_while(|record| record).collect())
    }

    /// Phase one: the data files survive a crash, but nobody knows of them.
    pub(super) async fn prepare(&self, record: &Record) -> Result<(), ConnectorError> {
        match &self.backend {
            Backend::Local(local) => local.prepare().await,
            Backend::Remote(remote) => remote.prepare(record).await,
        }
    }

    /// Phase two: the record. From here on the rows are in the lake.
    pub(super) async fn commit(&self, record: &Record) -> Result<(), ConnectorError> {
        let key = record_key(record.commit);
        match &self.backend {
            Backend::Local(local) => local.put(&key, to_json(record)).await,
            Backend::Remote(remote) => remote.put(&key, to_json(record), object_store::PutMode::Create).await,
        }
    }

    /// Phase three: the files get their names.
    pub(super) async fn reveal(&self, record: &Record) -> Result<(), ConnectorError> {
        self.backend.reveal(record).await?;
        let full = {
            let mut files = self.block.lock().expect("no holder panics");
            files.extend(record.files.iter().cloned());
            let is_full = (record.commit + 1).is_multiple_of(BLOCK_COMMITS);
            is_full.then(|| Block { files: std::mem::take(&mut *files) })
        };
        match full {
            Some(block) => self.backend.put_block(record.commit / BLOCK_COMMITS, block).await,
            None => Ok(()),
        }
    }
}

impl Backend {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, ConnectorError> {
        match self {
            Self::Local(local) => local.get(key).await,
            Self::Remote(remote) => remote.get(key).await,
        }
    }

    async fn n_blocks(&self) -> Result<u64, ConnectorError> {
        match self {
            Self::Local(local) => local.n_blocks().await,
            Self::Remote(remote) => remote.n_blocks().await,
        }
    }

    async fn put_block(&self, block: u64, content: Block) -> Result<(), ConnectorError> {
        let (key, bytes) = (block_key(block), to_json(&content));
        match self {
            Self::Local(local) => local.put(&key, bytes).await,
            Self::Remote(remote) => remote.put(&key, bytes, object_store::PutMode::Overwrite).await,
        }
    }

    async fn reveal(&self, record: &Record) -> Result<(), ConnectorError> {
        match self {
            Self::Local(local) => local.reveal(record).await,
            Self::Remote(remote) => remote.forget_spool(record).await,
        }
    }

    async fn clean(&self) -> Result<(), ConnectorError> {
        match self {
            Self::Local(local) => local.clean().await,
            Self::Remote(remote) => remote.clean().await,
        }
    }
}

pub(super) fn to_json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("records are made of strings and numbers")
}

fn parse_record(key: &str, bytes: &[u8]) -> Result<Record, String> {
    let record: Record = serde_json::from_slice(bytes).map_err(|error| format!("{key}: {error}"))?;
    if record.version != Record::VERSION {
        return Err(format!("{key}: version {} of the commit log is not known here", record.version));
    }
    Ok(record)
}

/// The files of a lake on local disk, oldest commit first, each whole and committed; none if there is no lake. Opens
/// one small file per 256 commits and one per later commit.
///
/// A file that is being given its name while this runs may move: a reader that does not find one lists again.
///
/// # Errors
/// If the commit log cannot be read.
pub fn committed_files(path: &Path) -> io::Result<Vec<CommittedFile>> {
    let (n_blocks, mut files) = (local::count_blocks(path)?, Vec::new());
    for block in 0..n_blocks {
        let Some(bytes) = local::read(&path.join(block_key(block)))? else { continue };
        files.extend(serde_json::from_slice::<Block>(&bytes)?.files);
    }
    let mut last = files.len();
    for commit in n_blocks * BLOCK_COMMITS.. {
        let key = record_key(commit);
        let Some(bytes) = local::read(&path.join(&key))? else { break };
        last = files.len();
        files.extend(parse_record(&key, &bytes).map_err(io::Error::other)?.files);
    }
    for (idx, file) in files.iter_mut().enumerate() {
        let (name, tmp) = (path.join(&file.path), local::tmp_path(path, &file.path));
        // Only the last commit may still be about to name its files.
        let path = if idx >= last && !name.exists() && tmp.exists() { tmp } else { name };
        file.path = path.display().to_string();
    }
    Ok(files)
}

/// [`committed_files`] of a lake in an object store: `url` and `options` as in the sink's configuration. The paths are
/// keys in the bucket.
///
/// # Errors
/// If the store cannot be reached, or the commit log cannot be read.
pub async fn committed_objects(
    url: &str,
    options: &BTreeMap<String, String>,
) -> Result<Vec<CommittedFile>, ConnectorError> {
    let remote = object_store(url, options).map_err(|reason| ConnectorError::refused(url, reason))?;
    objects(remote).await
}

pub(super) async fn objects(remote: Remote) -> Result<Vec<CommittedFile>, ConnectorError> {
    let storage = Storage::new(Backend::Remote(remote));
    let Backend::Remote(remote) = &storage.backend else { return Ok(Vec::new()) };
    let n_blocks = remote.n_blocks().await?;
    let mut files = Vec::new();
    for block in 0..n_blocks {
        let key = block_key(block);
        let Some(bytes) = remote.get(&key).await? else { continue };
        let block: Block = serde_json::from_slice(&bytes)
            .map_err(|error| ConnectorError::refused(key, error.to_string()))?;
        files.extend(block.files);
    }
    let mut next = n_blocks * BLOCK_COMMITS;
    loop {
        let wave = storage.records(next..next + FETCH_RECORDS).await?;
        let n_found = wave.len() as u64;
        files.extend(wave.into_iter().flat_map(|record| record.files));
        next += n_found;
        if n_found < FETCH_RECORDS {
            break;
        }
    }
    for file in &mut files {
        file.path = remote.key(&file.path)?.to_string();
    }
    Ok(files)
}
