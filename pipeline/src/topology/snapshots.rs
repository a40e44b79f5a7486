//! Reading views while they run: a reader names an epoch that is not complete yet, and every worker answers when it has
//! seen exactly the epochs before it. So all views that one query reads are of one epoch, and the stream never waits.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use logdrive_connectors::Metrics;
use logdrive_operators::{Snapshots, View, ViewRows};
use logdrive_schemas::Partition;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::changes::{Feed, Feeds, Lost, Subscription};
use super::epochs::Epochs;
use super::profile::Profile;
use crate::config::Plan;

/// How far ahead the epoch lies that a reader names: longer than it takes to ask all workers.
const AHEAD: u64 = 50;

/// How long an answer may take; a dataflow that is this far behind has other worries.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The rows of a view, or why there are none.
type Rows = Result<ViewRows, String>;

/// Requests for the rows of views.
#[derive(Debug)]
pub struct ViewReader {
    views: HashMap<String, Table>,
    n_workers: usize,
    epochs: Arc<Epochs>,
    feeds: Feeds,
    profile: Arc<Profile>,
}

/// A view as a table.
#[derive(Debug)]
struct Table {
    /// `None` for a view that keeps nothing.
    schema: Option<SchemaRef>,
    /// How it is computed, for a reader.
    explain: String,
    n_waiting: AtomicUsize,
    requests: Mutex<Vec<Request>>,
    progress: Mutex<Progress>,
}

/// How far event time has come in a view.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Rows before this are late, in milliseconds since the Unix epoch; nothing before the first row.
    pub watermark_ms: Option<i64>,
    /// The source whose partition holds it back.
    pub source: Option<String>,
    /// That partition.
    pub partition: Option<String>,
}

/// A view whose answer is awaited.
struct Asked {
    view: String,
    schema: SchemaRef,
    answer: oneshot::Receiver<Rows>,
}

#[derive(Debug)]
struct Request {
    epoch: u64,
    answered: Vec<bool>,
    rows: Rows,
    reply: oneshot::Sender<Rows>,
}

impl ViewReader {
    pub(super) fn new(plan: &Plan, epochs: &Arc<Epochs>, metrics: &Arc<Metrics>) -> Arc<Self> {
        let table = |view: &dyn View| Table {
            schema: view.table(),
            explain: view.explain(),
            n_waiting: AtomicUsize::new(0),
            requests: Mutex::default(),
            progress: Mutex::default(),
        };
        let views = plan.views.iter().map(|view| (view.name.to_string(), table(&*view.view)));
        let (views, feeds) = (views.collect(), Feeds::new(plan, metrics));
        let profile = Arc::new(Profile::new(plan.workers));
        Arc::new(Self { views, n_workers: plan.workers, epochs: Arc::clone(epochs), feeds, profile })
    }

    /// The views that can be read, with their columns.
    pub fn tables(&self) -> impl Iterator<Item = (&str, &SchemaRef)> {
        self.views.iter().filter_map(|(name, table)| Some((name.as_str(), table.schema.as_ref()?)))
    }

    /// How a view is computed, for a reader; `None` if there is no such view.
    #[must_use]
    pub fn explain(&self, view: &str) -> Option<&str> {
        self.views.get(view).map(|table| table.explain.as_str())
    }

    /// What the operators of views do.
    #[must_use]
    pub(crate) fn profile(&self) -> &Arc<Profile> {
        &self.profile
    }

    /// On how many workers views are computed.
    #[must_use]
    pub fn n_workers(&self) -> usize {
        self.n_workers
    }

    /// How far event time has come in each view with windows, by name.
    #[must_use]
    pub fn progress(&self) -> BTreeMap<String, Progress> {
        let of = |table: &Table| table.progress.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.views.iter().map(|(name, table)| (name.clone(), of(table))).collect()
    }

    /// Whether there is such a view.
    #[must_use]
    pub fn has(&self, view: &str) -> bool {
        self.views.contains_key(view)
    }

    /// The rows of views at one epoch, each with its columns.
    ///
    /// # Errors
    /// If there is no such view, it keeps nothing, it has stopped, or the dataflow has ended.
    pub async fn read(&self, views: &[String]) -> Result<Vec<(SchemaRef, Vec<RecordBatch>)>, String> {
        loop {
            let epoch = self.epochs.current() + AHEAD;
            let asked = self.ask(views, epoch)?;
            // Asked too late, the workers may have gone on at different epochs.
            if self.epochs.current() < epoch {
                let whole = |(schema, rows): (SchemaRef, ViewRows)| {
                    let ViewRows { told: mut rows, mut untold } = rows;
                    rows.append(&mut untold);
                    (schema, rows)
                };
                return Ok(answers(asked).await?.into_iter().map(whole).collect());
            }
        }
    }

    /// The views that can be followed.
    pub fn followed(&self) -> impl Iterator<Item = &str> {
        self.views.keys().map(String::as_str)
    }

    /// The changes of a view, for the operator that sees them.
    pub(super) fn feed(&self, view: &str) -> Option<Arc<Feed>> {
        self.feeds.get(view).cloned()
    }

    /// The columns of what a subscription tells: the view's, `_change` and `_epoch`.
    #[must_use]
    pub fn changes_schema(&self, view: &str) -> Option<SchemaRef> {
        Some(Arc::clone(self.feeds.get(view)?.schema()))
    }

    /// Follows a view: from where `token` says, if its changes are still kept; else from a snapshot on. Views that keep
    /// no rows have none.
    ///
    /// # Errors
    /// If there is no such view, it has stopped, or the dataflow has ended.
    pub async fn subscribe(&self, view: &str, token: Option<&str>) -> Result<Subscription, String> {
        let feed = self.feeds.get(view).ok_or_else(|| format!("there is no view `{view}`"))?;
        let why = match token.map(|token| self.feeds.resume(feed, token)) {
            Some(Ok(subscription)) => return Ok(subscription),
            Some(Err(Lost(why))) => Some(why),
            None => None,
        };
        self.follow(view, feed, why).await
    }

    async fn follow(
        &self,
        view: &str,
        feed: &Arc<Feed>,
        why: Option<String>,
    ) -> Result<Subscription, String> {
        let views: Vec<String> = if self.views.get(view).is_some_and(|table| table.schema.is_some()) {
            vec![view.to_owned()]
        } else {
            Vec::new()
        };
        let mut again = false;
        loop {
            let epoch = self.epochs.current() + AHEAD;
            // It counts as a reader from now on, so that what is kept stays.
            let mut subscription = self.feeds.at(feed, epoch);
            again = feed.record_from(epoch, again);
            let asked = self.ask(&views, epoch)?;
            if self.epochs.current() < epoch {
                let rows: Vec<RecordBatch> =
                    answers(asked).await?.into_iter().flat_map(|(_, rows)| rows.told).collect();
                subscription.begin(why, &rows).map_err(|error| error.to_string())?;
                return Ok(subscription);
            }
        }
    }

    fn ask(&self, views: &[String], epoch: u64) -> Result<Vec<Asked>, String> {
        let mut asked = Vec::with_capacity(views.len());
        for view in views {
            let table = self.views.get(view).ok_or_else(|| format!("there is no view `{view}`"))?;
            let schema = table.schema.clone().ok_or_else(|| {
                format!("the view `{view}` aggregates nothing, so it keeps no rows; read what its sink holds")
            })?;
            let (reply, answer) = oneshot::channel();
            let request = Request {
                epoch,
                answered: vec![false; self.n_workers],
                rows: Ok(ViewRows::default()),
                reply,
            };
            table.requests().push(request);
            table.n_waiting.fetch_add(1, Ordering::Release);
            asked.push(Asked { view: view.clone(), schema, answer });
        }
        Ok(asked)
    }
}

async fn answers(asked: Vec<Asked>) -> Result<Vec<(SchemaRef, ViewRows)>, String> {
    let mut read = Vec::with_capacity(asked.len());
    for Asked { view, schema, answer } in asked {
        let rows = tokio::time::timeout(TIMEOUT, answer).await;
        let rows =
            rows.map_err(|_| format!("the view `{view}` has not answered in time: the pipeline is behind"))?;
        let rows = rows.map_err(|_| "the pipeline ends".to_owned())??;
        read.push((schema, rows));
    }
    Ok(read)
}

impl Table {
    fn requests(&self) -> std::sync::MutexGuard<'_, Vec<Request>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Snapshots for ViewReader {
    fn keeps(&self, worker: usize, operator: usize, n_rows: usize, n_bytes: usize) {
        self.profile.keeps(worker, operator, n_rows, n_bytes);
    }

    fn reached(&self, view: &str, watermark: i64, held_back_by: Option<(&str, u64)>) {
        let Some(table) = self.views.get(view) else { return };
        let mut progress = table.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = watermark != i64::MIN && watermark != i64::MAX;
        progress.watermark_ms = is_known.then_some(watermark.div_euclid(1_000));
        progress.source = held_back_by.map(|(source, _)| source.to_owned());
        progress.partition = held_back_by.map(|(_, partition)| Partition(partition).to_string());
    }

    fn is_due(&self, view: &str, worker: usize, epoch: u64) -> bool {
        let Some(table) = self.views.get(view).filter(|t| t.n_waiting.load(Ordering::Acquire) > 0) else {
            return false;
        };
        table.requests().iter().any(|request| request.epoch <= epoch && !request.answered[worker])
    }

    fn answer(&self, view: &str, worker: usize, epoch: u64, rows: Rows) {
        let Some(table) = self.views.get(view) else { return };
        let mut requests = table.requests();
        for request in requests.iter_mut().filter(|r| r.epoch <= epoch && !r.answered[worker]) {
            request.answered[worker] = true;
            match (&mut request.rows, &rows) {
                (Ok(all), Ok(rows)) => {
                    all.told.extend(rows.told.iter().cloned());
                    all.untold.extend(rows.untold.iter().cloned());
                }
                (all @ Ok(_), Err(why)) => *all = Err(why.clone()),
                (Err(_), _) => {}
            }
        }
        let whole = requests.extract_if(.., |request| request.answered.iter().all(|answered| *answered));
        for request in whole {
            table.n_waiting.fetch_sub(1, Ordering::Release);
            // A reader that has gone away is no trouble.
            request.reply.send(request.rows).ok();
        }
    }
}
