//! Checkpoints in an object store: every operation on its objects, for code that waits for each.
//!
//! Operations run on a thread of their own, so that whoever waits may do so from any thread. Once the store has answered
//! for the first time, an operation that fails for now is tried until it succeeds or the pipeline ends: meanwhile checkpoints are
//! late, and nothing else.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use futures::TryStreamExt as _;
use logdrive_connectors::object_stores::{self, PART_BYTES, UploadError};
use object_store::path::Path as Key;
use object_store::{Error as StoreError, ObjectStore, ObjectStoreExt as _, PutMode, PutPayload};
use prometheus::IntCounter;
use tokio::io::AsyncWriteExt as _;
use tokio::runtime::Runtime;
use tracing::warn;

/// What the name of the object begins with that says who writes here.
const OWNER: &str = "owner-";
/// Between two tries; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// How often is looked whether the pipeline ends.
const TICK: Duration = Duration::from_millis(100);
/// After how long an operation is worth a line in the log.
const LATE: Duration = Duration::from_secs(15);
/// What errors of local files are marked with: waiting does not help.
const LOCAL: &str = "local disk";

/// A prefix in an object store.
pub(super) struct Remote {
    store: Arc<dyn ObjectStore>,
    prefix: Key,
    url: String,
    /// Absent only while it is dropped.
    runtime: Option<Runtime>,
    /// Names and sizes of what is there: listed once, kept up to date from then on.
    objects: Mutex<Option<BTreeMap<String, u64>>>,
    /// The object that is there as long as nobody else has taken over.
    owner: OnceLock<String>,
    /// Counts tries that failed.
    failures: OnceLock<IntCounter>,
    is_patient: AtomicBool,
    is_closing: AtomicBool,
    #[cfg(test)]
    pub(super) faults: super::tests::faults::RemoteFaults,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // Waiting for its thread is not allowed everywhere.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Remote {
    pub(super) fn new(store: Arc<dyn ObjectStore>, prefix: Key, url: &str) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("checkpoint-store")
            .enable_all()
            .build()?;
        Ok(Self {
            store,
            prefix,
            url: url.to_owned(),
            runtime: Some(runtime),
            objects: Mutex::default(),
            owner: OnceLock::new(),
            failures: OnceLock::new(),
            is_patient: AtomicBool::new(false),
            is_closing: AtomicBool::new(false),
            #[cfg(test)]
            faults: super::tests::faults::RemoteFaults::default(),
        })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// From now on operations are tried until they succeed: an object that cannot be read now is not damaged.
    pub(super) fn be_patient(&self, failures: Option<&IntCounter>) {
        if let Some(failures) = failures {
            self.failures.get_or_init(|| failures.clone());
        }
        self.is_patient.store(true, Ordering::Release);
    }

    /// Ends what is being waited for.
    pub(super) fn close(&self) {
        self.is_closing.store(true, Ordering::Release);
    }

    /// Takes the prefix over: a process that still writes there finds out before its next manifest.
    pub(super) fn take_over(&self) -> io::Result<()> {
        let marks = |names: Vec<String>| -> Vec<String> {
            names.into_iter().filter(|name| name.starts_with(OWNER)).collect()
        };
        let older = marks(self.names()?);
        let number = |mark: &String| mark.strip_prefix(OWNER)?.parse::<u64>().ok();
        let next = older.iter().filter_map(number).max().unwrap_or(0) + 1;
        let mark = format!("{OWNER}{next:020}");
        self.create(&mark, Vec::new()).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                io::Error::other("another process begins to write its checkpoints here, too")
            }
            _ => error,
        })?;
        older.iter().try_for_each(|mark| self.remove(mark))?;
        self.owner.get_or_init(|| mark);
        // What the one before wrote in between is seen now; what it writes from now on is no checkpoint.
        *self.objects() = None;
        self.names().map(drop)
    }

    /// Unlike that of all others who have written here.
    pub(super) fn tag(&self) -> String {
        let number = self.owner.get().and_then(|mark| mark.strip_prefix(OWNER));
        number.map_or_else(String::new, |number| format!("{}.", number.trim_start_matches('0')))
    }

    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        if let Some(objects) = &*self.objects() {
            return Ok(objects.keys().cloned().collect());
        }
        let prefix = self.prefix.clone();
        let listed: Vec<_> = self.run(move |store| {
            let prefix = prefix.clone();
            async move { store.list(Some(&prefix)).try_collect().await }
        })?;
        let listed = listed.into_iter().filter_map(|object| {
            let mut parts = object.location.prefix_match(&self.prefix)?;
            let name = parts.next()?.as_ref().to_owned();
            parts.next().is_none().then_some((name, object.size))
        });
        let objects = listed.collect::<BTreeMap<_, _>>();
        let names = objects.keys().cloned().collect();
        *self.objects() = Some(objects);
        Ok(names)
    }

    /// How large an object is.
    pub(super) fn size(&self, name: &str) -> io::Result<u64> {
        self.names()?;
        let size = self.objects().as_ref().and_then(|objects| objects.get(name).copied());
        size.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it is not in the object store"))
    }

    pub(super) fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let key = self.key(name);
        self.run(move |store| {
            let key = key.clone();
            async move { Ok(store.get(&key).await?.bytes().await?.to_vec()) }
        })
    }

    /// Copies an object to a file.
    pub(super) fn download(&self, name: &str, to: &Path) -> io::Result<()> {
        let (key, to, size) = (self.key(name), to.to_owned(), self.size(name)?);
        self.run(move |store| download(store, key.clone(), to.clone(), size))
    }

    /// Copies a file to an object.
    pub(super) fn upload(&self, name: &str, from: &Path) -> io::Result<()> {
        let (key, path) = (self.key(name), from.to_owned());
        self.run(move |store| {
            let (key, path) = (key.clone(), path.clone());
            async move {
                object_stores::upload(&*store, &path, &key).await.map_err(|error| match error {
                    UploadError::File(error) => local(error),
                    UploadError::Store(error) => error,
                })
            }
        })?;
        self.note(name, std::fs::metadata(from)?.len());
        Ok(())
    }

    /// Writes an object that says what others are part of, if nobody else has taken over, and none has this name.
    pub(super) fn publish(&self, name: &str, bytes: Vec<u8>) -> io::Result<()> {
        let taken = || {
            io::Error::other(format!(
                "another process has taken over the checkpoints at {}: only one may write there",
                self.url
            ))
        };
        if let Some(mark) = self.owner.get() {
            let key = self.key(mark);
            let found = self.run(move |store| {
                let key = key.clone();
                async move { store.head(&key).await }
            });
            found.map_err(|error| if error.kind() == io::ErrorKind::NotFound { taken() } else { error })?;
        }
        match self.create(name, bytes.clone()) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // It may be ours: the answer to an earlier try was lost.
                if self.read(name)? == bytes { Ok(()) } else { Err(taken()) }
            }
            other => other,
        }?;
        self.note(name, bytes.len() as u64);
        Ok(())
    }

    fn create(&self, name: &str, bytes: Vec<u8>) -> io::Result<()> {
        let (key, size) = (self.key(name), bytes.len() as u64);
        let payload = PutPayload::from(bytes);
        self.run(move |store| {
            let (key, payload) = (key.clone(), payload.clone());
            async move { store.put_opts(&key, payload, PutMode::Create.into()).await.map(drop) }
        })?;
        self.note(name, size);
        Ok(())
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (size, keys) = (self.size(from)?, (self.key(from), self.key(to)));
        self.run(move |store| {
            let (from, to) = keys.clone();
            async move { store.copy(&from, &to).await }
        })?;
        self.note(to, size);
        self.remove(from)
    }

    /// Removes an object; it may be gone already.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        let key = self.key(name);
        let removed = self.run(move |store| {
            let key = key.clone();
            async move { store.delete(&key).await }
        });
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if let Some(objects) = &mut *self.objects() {
            objects.remove(name);
        }
        Ok(())
    }

    fn key(&self, name: &str) -> Key {
        self.prefix.clone().join(name)
    }

    fn note(&self, name: &str, size: u64) {
        if let Some(objects) = &mut *self.objects() {
            objects.insert(name.to_owned(), size);
        }
    }

    fn objects(&self) -> MutexGuard<'_, Option<BTreeMap<String, u64>>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for an operation; again and again, where that may help.
    fn run<T, F>(&self, work: impl Fn(Arc<dyn ObjectStore>) -> F) -> io::Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let mut pause = RETRY_MIN;
        loop {
            let done = self.once(work(Arc::clone(&self.store)));
            let error = match done {
                Ok(value) => return Ok(value),
                Err(error) if self.is_patient.load(Ordering::Acquire) && may_pass(&error) => error,
                Err(error) => return Err(to_io(error)),
            };
            if let Some(failures) = self.failures.get() {
                failures.inc();
            }
            warn!(url = self.url, %error, "The object store of the checkpoints fails; trying again.");
            self.sleep(pause)?;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    fn once<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        #[cfg(test)]
        let lost = self.faults.step()?;
        let ended = || local(ending());
        let Some(runtime) = &self.runtime else { return Err(ended()) };
        let (done, answer) = sync_channel(1);
        let task = runtime.spawn(async move { done.send(work.await).ok() });
        let (begun, mut is_told) = (Instant::now(), false);
        loop {
            match answer.recv_timeout(TICK) {
                #[cfg(test)]
                Ok(Ok(_)) if lost.is_some() => return Err(lost.expect("just seen")),
                Ok(result) => return result,
                Err(RecvTimeoutError::Timeout) if !self.is_closing.load(Ordering::Acquire) => {
                    if begun.elapsed() > LATE && !is_told {
                        is_told = true;
                        warn!(url = self.url, "The object store of the checkpoints is slow or down.");
                    }
                }
                Err(_) => {
                    task.abort();
                    return Err(ended());
                }
            }
        }
    }

    fn sleep(&self, pause: Duration) -> io::Result<()> {
        let until = Instant::now() + pause;
        while Instant::now() < until {
            if self.is_closing.load(Ordering::Acquire) {
                return Err(ending());
            }
            std::thread::sleep(TICK.min(pause));
        }
        Ok(())
    }
}

async fn download(store: Arc<dyn ObjectStore>, key: Key, to: PathBuf, size: u64) -> Result<(), StoreError> {
    let mut file = tokio::fs::File::create(&to).await.map_err(local)?;
    let mut at = 0;
    while at < size {
        let end = size.min(at + PART_BYTES as u64);
        let bytes = store.get_range(&key, at..end).await?;
        file.write_all(&bytes).await.map_err(local)?;
        at = end;
    }
    file.flush().await.map_err(local)
}

fn ending() -> io::Error {
    io::Error::other("the pipeline ends")
}

fn local(error: io::Error) -> StoreError {
    StoreError::Generic { store: LOCAL, source: error.into() }
}

/// Whether it may succeed later: the store cannot be reached, or does not let us in for now.
fn may_pass(error: &StoreError) -> bool {
    match error {
        StoreError::Generic { store, .. } => *store != LOCAL,
        StoreError::JoinError { .. }
        | StoreError::PermissionDenied { .. }
        | StoreError::Unauthenticated { .. } => true,
        _ => false,
    }
}

fn to_io(error: StoreError) -> io::Error {
    let kind = match &error {
        StoreError::NotFound { .. } => io::ErrorKind::NotFound,
        StoreError::AlreadyExists { .. } | StoreError::Precondition { .. } => io::ErrorKind::AlreadyExists,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}
