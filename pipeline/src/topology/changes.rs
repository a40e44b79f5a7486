//! Following a view: a snapshot at one epoch, then every change after it, once and in order.
//!
//! An operator behind each view sees its rows and the frontier (`worker.rs`). While somebody follows the view, and for a
//! while afterwards, it keeps the changes of the epochs that all workers have passed, up to a bound. A follower has no
//! queue: it holds an epoch and reads on from there, so a slow one costs nothing and holds nothing up; when what it
//! wants is no longer kept, it is told so. Its epoch, and what identifies the run, is the token to go on with.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringViewArray};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use logdrive_connectors::Metrics;
use logdrive_queries::views::{CHANGE, with_change};
use tokio::sync::watch;

use crate::config::Plan;

/// How many bytes of changes are kept for each view that is followed.
const KEPT_BYTES: usize = 16 << 20;
/// How long they are kept when nobody follows the view any more.
const KEPT_FOR: Duration = Duration::from_secs(600);
/// How often a follower is told how far it is when nothing changes.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// The changes of all views.
#[derive(Debug)]
pub(super) struct Feeds {
    views: HashMap<String, Arc<Feed>>,
    /// Tells this run from others, whose epochs were cut otherwise.
    run: u64,
    metrics: Arc<Metrics>,
}

/// The changes of one view.
#[derive(Debug)]
pub(super) struct Feed {
    view: String,
    /// The view's columns, the change and its epoch.
    schema: SchemaRef,
    /// Whether changes are kept.
    records: AtomicBool,
    /// The epoch that each worker has not passed.
    passed: Vec<AtomicU64>,
    /// The epoch that not all workers have passed.
    complete: watch::Sender<u64>,
    book: Mutex<Book>,
}

#[derive(Debug)]
struct Book {
    /// All changes from this epoch on are here.
    since: u64,
    /// Those of epochs that are not complete.
    open: BTreeMap<u64, Vec<RecordBatch>>,
    /// Those of epochs that are, in order.
    history: VecDeque<Changes>,
    n_bytes: usize,
    n_readers: usize,
    left_at: Instant,
}

/// The changes of one epoch.
#[derive(Clone, Debug)]
struct Changes {
    epoch: u64,
    rows: Arc<[RecordBatch]>,
    n_bytes: usize,
}

/// What a follower is told.
#[derive(Debug)]
pub enum Event {
    /// What it had must be forgotten: why, and a snapshot follows.
    Resync(String),
    /// Rows, with `_change` and `_epoch`: of a snapshot, or of one epoch.
    Rows(Vec<RecordBatch>),
    /// Everything before this epoch has been told.
    Progress {
        /// The epoch, in milliseconds since the Unix epoch.
        epoch: u64,
        /// What a follower goes on with after it was disconnected.
        token: String,
    },
}

/// A follower's place in the changes of a view.
#[derive(Debug)]
pub struct Subscription {
    feed: Arc<Feed>,
    run: u64,
    metrics: Arc<Metrics>,
    complete: watch::Receiver<u64>,
    /// Told next.
    first: VecDeque<Event>,
    /// Everything before it was told.
    cursor: u64,
    /// Whether something was told since the last progress.
    owes_progress: bool,
    told_at: Instant,
}

/// A follower wants what is no longer kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Lost(pub String);

impl Feeds {
    pub(super) fn new(plan: &Plan, metrics: &Arc<Metrics>) -> Self {
        let feed = |view: &crate::config::ViewPlan| {
            let schema = view.view.schema();
            let schema =
                if schema.column_with_name(CHANGE).is_some() { schema } else { with_change(&schema) };
            (view.name.to_string(), Arc::new(Feed::new(&view.name, schema, plan.workers)))
        };
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        let run = started ^ (u64::from(std::process::id()) << 48);
        Self { views: plan.views.iter().map(feed).collect(), run, metrics: Arc::clone(metrics) }
    }

    pub(super) fn get(&self, view: &str) -> Option<&Arc<Feed>> {
        self.views.get(view)
    }

    /// The epoch that a token names, if it is of this run.
    fn epoch_of(&self, token: &str) -> Option<u64> {
        let (run, epoch) = token.split_once('-')?;
        let run = u64::from_str_radix(run, 16).ok()?;
        epoch.parse().ok().filter(|_| run == self.run)
    }

    /// Goes on where a token says, if its changes are still there.
    pub(super) fn resume(&self, feed: &Arc<Feed>, token: &str) -> Result<Subscription, Lost> {
        let Some(cursor) = self.epoch_of(token) else {
            return Err(Lost("the token is of another run of the pipeline".into()));
        };
        let subscription = self.at(feed, cursor);
        let book = feed.book();
        if !feed.records.load(Ordering::SeqCst)
            || cursor < book.since
            || cursor > *subscription.complete.borrow()
        {
            drop(book);
            return Err(Lost("the changes since the token are no longer kept".into()));
        }
        drop(book);
        Ok(subscription)
    }

    /// Follows from an epoch on.
    pub(super) fn at(&self, feed: &Arc<Feed>, cursor: u64) -> Subscription {
        feed.book().n_readers += 1;
        self.metrics.subscribers.with_label_values(&[&feed.view]).inc();
        Subscription {
            feed: Arc::clone(feed),
            run: self.run,
            metrics: Arc::clone(&self.metrics),
            complete: feed.complete.subscribe(),
            first: VecDeque::new(),
            cursor,
            owes_progress: true,
            told_at: Instant::now(),
        }
    }
}

impl Feed {
    fn new(view: &str, schema: SchemaRef, n_workers: usize) -> Self {
        let book = Book {
            since: u64::MAX,
            open: BTreeMap::new(),
            history: VecDeque::new(),
            n_bytes: 0,
            n_readers: 0,
            left_at: Instant::now(),
        };
        Self {
            view: view.to_owned(),
            schema,
            records: AtomicBool::new(false),
            passed: (0..n_workers).map(|_| AtomicU64::new(0)).collect(),
            complete: watch::Sender::new(0),
            book: Mutex::new(book),
        }
    }

    /// The view's columns, the change and its epoch.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the changes from an epoch on that has not begun. True if none were kept before, or this is the same
    /// attempt at a later epoch.
    pub(super) fn record_from(&self, epoch: u64, again: bool) -> bool {
        let mut book = self.book();
        let starts = again || !self.records.load(Ordering::SeqCst);
        if starts {
            book.since = epoch;
            self.records.store(true, Ordering::SeqCst);
        }
        starts
    }

    /// A worker has rows of the view at an epoch.
    pub(super) fn changed(&self, epoch: u64, rows: &RecordBatch) {
        if !self.records.load(Ordering::SeqCst) {
            return;
        }
        let mut book = self.book();
        if epoch >= book.since {
            book.n_bytes += rows.get_array_memory_size();
            book.open.entry(epoch).or_default().push(rows.clone());
        }
    }

    /// A worker has passed all epochs before this one.
    pub(super) fn passed(&self, worker: usize, frontier: u64) {
        if self.passed[worker].swap(frontier, Ordering::AcqRel) == frontier {
            return;
        }
        let upto = self.passed.iter().map(|passed| passed.load(Ordering::Acquire)).min().unwrap_or(frontier);
        if self.records.load(Ordering::SeqCst) {
            self.complete(upto);
        }
        self.complete.send_if_modified(|complete| std::mem::replace(complete, upto.max(*complete)) < upto);
    }

    fn complete(&self, upto: u64) {
        let mut book = self.book();
        while let Some(entry) = book.open.first_entry().filter(|entry| *entry.key() < upto) {
            let (epoch, rows) = entry.remove_entry();
            let n_bytes = rows.iter().map(RecordBatch::get_array_memory_size).sum();
            let told = rows.iter().map(|rows| told(rows, &self.schema, epoch));
            match told.collect::<Result<Arc<[RecordBatch]>, _>>() {
                Ok(rows) => book.history.push_back(Changes { epoch, rows, n_bytes }),
                Err(error) => {
                    // Cannot be: the schema was made of the view's. Followers begin anew rather than miss something.
                    tracing::error!(view = self.view, %error, "Changes of a view cannot be told.");
                    book.forget_before(epoch + 1);
                }
            }
        }
        if book.n_readers == 0 && book.left_at.elapsed() > KEPT_FOR {
            self.records.store(false, Ordering::SeqCst);
            book.forget_before(u64::MAX);
            return;
        }
        while book.n_bytes > KEPT_BYTES {
            // The newest goes last; even that is let go of if it is too much by itself.
            let Some(epoch) = book.history.front().map(|oldest| oldest.epoch) else { break };
            book.forget_before(epoch + 1);
        }
    }
}

impl Book {
    fn forget_before(&mut self, epoch: u64) {
        self.since = self.since.max(epoch);
        while let Some(forgotten) = self.history.pop_front_if(|changes| changes.epoch < epoch) {
            self.n_bytes = self.n_bytes.saturating_sub(forgotten.n_bytes);
        }
        if epoch == u64::MAX {
            self.open.clear();
            self.n_bytes = 0;
        }
    }
}

/// Rows with the columns of a feed: those that say nothing of a change are new.
fn told(rows: &RecordBatch, schema: &SchemaRef, epoch: u64) -> Result<RecordBatch, ArrowError> {
    if rows.num_columns() == schema.fields().len() {
        return Ok(rows.clone());
    }
    let n_rows = rows.num_rows();
    let mut columns: Vec<ArrayRef> = rows.columns().to_vec();
    columns.push(Arc::new(StringViewArray::from_iter_values(std::iter::repeat_n("insert", n_rows))));
    columns.push(Arc::new(Int64Array::from_value(i64::try_from(epoch).unwrap_or(i64::MAX), n_rows)));
    RecordBatch::try_new(Arc::clone(schema), columns)
}

impl Subscription {
    /// The columns of rows: the view's, `_change` and `_epoch`.
    #[must_use]
    pub fn schema(&self) -> &SchemaRef {
        &self.feed.schema
    }

    /// The view.
    #[must_use]
    pub fn view(&self) -> &str {
        &self.feed.view
    }

    /// Tells the rows of a snapshot first, as of the epochs before the one it follows from; and why, if it was to go on.
    pub(super) fn begin(&mut self, why: Option<String>, rows: &[RecordBatch]) -> Result<(), ArrowError> {
        let epoch = self.cursor.saturating_sub(1);
        let rows =
            rows.iter().filter(|rows| rows.num_rows() > 0).map(|rows| told(rows, &self.feed.schema, epoch));
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        if let Some(why) = why {
            self.metrics.subscriber_resyncs.with_label_values(&[self.view()]).inc();
            self.first.push_back(Event::Resync(why));
        }
        if !rows.is_empty() {
            self.first.push_back(Event::Rows(rows));
        }
        Ok(())
    }

    /// What comes next; nothing when the pipeline has ended.
    ///
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    /// If the changes that come next are no longer kept.
    pub async fn next(&mut self) -> Result<Option<Event>, Lost> {
        if let Some(first) = self.first.pop_front() {
            return Ok(Some(first));
        }
        loop {
            // Before the book is looked into: what is complete now is in it.
            let upto = *self.complete.borrow_and_update();
            if let Some(rows) = self.kept()? {
                self.owes_progress = true;
                return Ok(Some(Event::Rows(rows.to_vec())));
            }
            if upto == u64::MAX {
                return Ok(self.progress(self.cursor));
            }
            self.cursor = self.cursor.max(upto);
            let rests = PROGRESS_EVERY.saturating_sub(self.told_at.elapsed());
            // Before a snapshot's epoch is complete there is nothing to go on from.
            if upto >= self.cursor && (self.owes_progress || rests.is_zero()) {
                self.owes_progress = true;
                return Ok(self.progress(self.cursor));
            }
            // An error: the pipeline is gone, and its last word was `u64::MAX` or never comes.
            if self.complete.changed().await.is_err() {
                return Ok(None);
            }
        }
    }

    /// Once for what was told.
    fn progress(&mut self, epoch: u64) -> Option<Event> {
        if !std::mem::take(&mut self.owes_progress) {
            return None;
        }
        self.told_at = Instant::now();
        Some(Event::Progress { epoch, token: format!("{:016x}-{epoch}", self.run) })
    }

    /// The next changes that are complete.
    fn kept(&mut self) -> Result<Option<Arc<[RecordBatch]>>, Lost> {
        let book = self.feed.book();
        if self.cursor < book.since {
            return Err(Lost("changes come faster than they were read, and are no longer kept".into()));
        }
        let idx = book.history.partition_point(|changes| changes.epoch < self.cursor);
        let Some(changes) = book.history.get(idx) else { return Ok(None) };
        self.cursor = changes.epoch + 1;
        Ok(Some(Arc::clone(&changes.rows)))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.metrics.subscribers.with_label_values(&[&self.feed.view]).dec();
        let mut book = self.feed.book();
        book.n_readers -= 1;
        book.left_at = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use arrow::array::AsArray as _;
    use arrow::datatypes::Int64Type;

    use super::*;

    fn rows(values: &[i64]) -> RecordBatch {
        let values: ArrayRef = Arc::new(Int64Array::from(values.to_vec()));
        RecordBatch::try_from_iter([("n", values)]).unwrap()
    }

    fn feeds(n_workers: usize) -> (Feeds, Arc<Feed>) {
        let feed = Arc::new(Feed::new("view", with_change(&rows(&[]).schema()), n_workers));
        let views = HashMap::from([("view".to_owned(), Arc::clone(&feed))]);
        (Feeds { views, run: 7, metrics: Arc::new(Metrics::new()) }, feed)
    }

    /// What is told without waiting: rows as their values, progress as its epoch.
    fn told_now(subscription: &mut Subscription) -> Vec<Result<Vec<i64>, u64>> {
        let mut told = Vec::new();
        loop {
            let next = std::pin::pin!(subscription.next());
            match next.poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(Some(Event::Rows(batches)))) => {
                    let values =
                        batches.iter().flat_map(|rows| rows.column(0).as_primitive::<Int64Type>().values());
                    told.push(Ok(values.copied().collect()));
                }
                Poll::Ready(Ok(Some(Event::Progress { epoch, token }))) => {
                    assert_eq!(token, format!("{:016x}-{epoch}", 7));
                    told.push(Err(epoch));
                }
                Poll::Ready(other) => panic!("{other:?}"),
                Poll::Pending => return told,
            }
        }
    }

    #[tokio::test]
    async fn changes_are_told_once_all_workers_have_passed_them_and_in_order() {
        let (feeds, feed) = feeds(2);
        feed.changed(3, &rows(&[0]));
        assert!(feed.record_from(10, false));
        let mut follower = feeds.at(&feed, 10);
        feed.changed(9, &rows(&[9]));
        feed.changed(11, &rows(&[111]));
        feed.changed(10, &rows(&[100]));
        feed.passed(0, 12);
        assert_eq!(told_now(&mut follower), [], "the other worker may have more");
        feed.changed(10, &rows(&[101]));
        feed.passed(1, 11);
        assert_eq!(told_now(&mut follower), [Ok(vec![100, 101]), Err(11)]);
        feed.passed(1, 20);
        assert_eq!(told_now(&mut follower), [Ok(vec![111]), Err(12)]);

        // From a token on: the same again.
        let mut again = feeds.resume(&feed, "0000000000000007-11").unwrap();
        assert_eq!(told_now(&mut again), [Ok(vec![111]), Err(12)]);
        for lost in ["0000000000000007-9", "0000000000000007-13", "0000000000000008-11", "x", ""] {
            assert!(feeds.resume(&feed, lost).is_err(), "{lost}");
        }
        feed.passed(0, u64::MAX);
        feed.passed(1, u64::MAX);
        assert!(follower.next().await.unwrap().is_none(), "what was told is not told again at the end");
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_to_begin_anew_and_holds_nothing_up() {
        let (feeds, feed) = feeds(1);
        feed.record_from(1, false);
        let mut slow = feeds.at(&feed, 1);
        let mut fast = feeds.at(&feed, 1);
        let large = rows(&vec![1; 1 << 17]);
        for epoch in 1..100 {
            feed.changed(epoch, &large);
            feed.passed(0, epoch + 1);
            assert!(matches!(fast.next().await, Ok(Some(Event::Rows(_)))));
            assert!(matches!(fast.next().await, Ok(Some(Event::Progress { .. }))));
        }
        assert!(feed.book().n_bytes <= KEPT_BYTES, "what is kept is bounded");
        let lost = slow.next().await.unwrap_err();
        assert!(lost.0.contains("no longer kept"), "{lost}");
        assert!(feeds.resume(&feed, "0000000000000007-5").is_err());
        assert!(feeds.resume(&feed, "0000000000000007-99").is_ok());
    }
}
