//! Where alerts are kept and sent from: one book, one clock, and one courier per channel with a queue of its own.
//!
//! ```text
//! sink ── found ──► journal ─► book ◄── what time makes due ── clock
//!                               │
//!                 queue per channel ─► courier ─► far end
//! ```
//!
//! Nothing is told that is not in the journal; what a channel has taken is noted there before the next is sent.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::book::{Book, Delivery, Entry, Found, Rules};
use super::channels::{Channel, Notice, Undelivered};
use super::journal::Journal;
use crate::error::ConnectorError;
use crate::metrics::Metrics;
use crate::storage;

/// How often is looked for what is due.
const LOOK: Duration = Duration::from_millis(200);
/// How long a channel that failed waits; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_mins(5);

/// What is done about alerts.
pub(super) struct Settings {
    pub(super) sink: Arc<str>,
    pub(super) dir: PathBuf,
    pub(super) rules: Rules,
    /// The names of the channels.
    pub(super) channels: Vec<String>,
    pub(super) alerts_max: usize,
    pub(super) drain_timeout: Duration,
    pub(super) metrics: Arc<Metrics>,
}

/// The book, and how it is kept.
struct Desk {
    book: Book,
    journal: Journal,
    /// The delivery that each channel is about.
    in_flight: BTreeMap<String, u64>,
}

struct Shared {
    settings: Settings,
    desk: Mutex<Desk>,
    /// Changes whenever the book does.
    changed: watch::Sender<u64>,
    watched_since: i64,
}

/// An office that is open.
pub(super) struct Office {
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

/// Milliseconds since the Unix epoch.
pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

impl Office {
    /// Opens it with what an earlier process left.
    pub(super) async fn open(
        settings: Settings,
        channels: BTreeMap<String, Box<dyn Channel>>,
    ) -> Result<Self, ConnectorError> {
        let dir = settings.dir.clone();
        let opened = tokio::task::spawn_blocking(move || Journal::open(&dir)).await;
        let opened = opened.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        let (journal, book) = opened.map_err(|error| ConnectorError::storage(&settings.dir, error))?;
        let desk = Mutex::new(Desk { book, journal, in_flight: BTreeMap::new() });
        let changed = watch::Sender::new(0);
        let shared = Arc::new(Shared { settings, desk, changed, watched_since: now() });
        shared.dismiss_unknown().await?;
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        for (name, channel) in channels {
            let courier = Courier { name, channel, shared: Arc::clone(&shared), stop: stop.clone() };
            tasks.spawn(courier.run());
        }
        tasks.spawn(Arc::clone(&shared).watch_clock(stop.clone()));
        Ok(Self { shared, stop, tasks })
    }

    /// Makes findings durable. Returns how many of them were known already.
    pub(super) async fn take(&self, found: &[Found]) -> Result<u64, ConnectorError> {
        let settings = &self.shared.settings;
        let taken = self.shared.desk.lock().await;
        let new: Vec<_> = found.iter().filter(|found| !taken.book.is_known(found)).cloned().collect();
        let n_known = (found.len() - new.len()) as u64;
        if !new.is_empty() && taken.book.n_alerts() >= settings.alerts_max {
            warn!(sink = %settings.sink, "Too many alerts are open or wait; see `max_alerts`.");
            return Err(ConnectorError::Busy { endpoint: "the channels of alerts".into(), after: None });
        }
        drop(taken);
        self.shared.record(|_| new.into_iter().map(|f| Entry::Found(Box::new(f))).collect()).await?;
        Ok(n_known)
    }

    /// Sends what can be sent within a while, also what would wait for more of its kind; the rest stays for the next
    /// process.
    pub(super) async fn close(mut self) -> Result<(), ConnectorError> {
        self.shared.look(true).await?;
        let mut changed = self.shared.changed.subscribe();
        let sent = async {
            while self.shared.desk.lock().await.book.queues().next().is_some() {
                if changed.changed().await.is_err() {
                    break;
                }
            }
        };
        let settings = &self.shared.settings;
        if tokio::time::timeout(settings.drain_timeout, sent).await.is_err() {
            info!(sink = %settings.sink, "Some alerts were not sent; they are sent after the next start.");
        }
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        let shared = Arc::clone(&self.shared);
        shared.blocking(|desk| desk.journal.fold(&desk.book)).await
    }
}

impl Shared {
    /// Writes on the desk, where waiting for the disk holds nobody up but those who write there.
    async fn blocking<R: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&mut Desk) -> std::io::Result<R> + Send + 'static,
    ) -> Result<R, ConnectorError> {
        let this = Arc::clone(self);
        let worked = tokio::task::spawn_blocking(move || work(&mut this.desk.blocking_lock())).await;
        worked
            .unwrap_or_else(|error| Err(std::io::Error::other(error)))
            .map_err(|error| ConnectorError::storage(&self.settings.dir, error))
    }

    /// Makes entries durable, then applies them.
    async fn record(
        self: &Arc<Self>,
        entries: impl FnOnce(&Desk) -> Vec<Entry> + Send + 'static,
    ) -> Result<(), ConnectorError> {
        let this = Arc::clone(self);
        let recorded = self.blocking(move |desk| {
            let entries = entries(desk);
            if entries.is_empty() {
                return Ok(false);
            }
            desk.journal.append(&entries)?;
            entries.into_iter().for_each(|entry| desk.book.apply(entry));
            desk.journal.fold_if_long(&desk.book)?;
            this.show(&desk.book);
            Ok(true)
        });
        if recorded.await? {
            self.changed.send_modify(|n| *n += 1);
        }
        Ok(())
    }

    fn show(&self, book: &Book) {
        let (sink, metrics) = (&*self.settings.sink, &self.settings.metrics);
        metrics.alerts_open.with_label_values(&[sink]).set(book.n_open() as i64);
        for (channel, n_waiting) in self.settings.channels.iter().map(|name| (name, book.n_waiting(name))) {
            metrics.alert_queue.with_label_values(&[sink, channel]).set(n_waiting as i64);
        }
    }

    /// Looks for what is due.
    async fn look(self: &Arc<Self>, hurry: bool) -> Result<(), ConnectorError> {
        let this = Arc::clone(self);
        self.record(move |desk| {
            desk.book.due(now(), this.watched_since, hurry, &this.settings.rules, &desk.in_flight)
        })
        .await
    }

    async fn watch_clock(self: Arc<Self>, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
            if let Err(error) = self.look(false).await {
                error!(sink = %self.settings.sink, %error, "Alerts cannot be kept.");
            }
        }
    }

    /// What waits for a channel that the configuration has no more is given up, in the open.
    async fn dismiss_unknown(self: &Arc<Self>) -> Result<(), ConnectorError> {
        let mut gone = Vec::new();
        {
            let desk = self.desk.lock().await;
            let known = |name: &str| self.settings.channels.iter().any(|known| known == name);
            for (name, queue) in desk.book.queues().filter(|(name, _)| !known(name)) {
                gone.extend(queue.iter().map(|delivery| (name.to_owned(), delivery.clone())));
            }
            self.show(&desk.book);
        }
        for (channel, delivery) in gone {
            self.give_up(&channel, &delivery, "there is no such channel any more").await?;
        }
        Ok(())
    }

    /// Keeps what a channel will never take.
    async fn give_up(
        self: &Arc<Self>,
        channel: &str,
        delivery: &Delivery,
        reason: &str,
    ) -> Result<(), ConnectorError> {
        let (name, delivery, reason) = (channel.to_owned(), delivery.clone(), reason.to_owned());
        error!(sink = %self.settings.sink, channel, reason, "An alert is not taken; see `refused.ndjson`.");
        self.count(channel, "refused");
        let path = self.settings.dir.join("refused.ndjson");
        let done = Entry::Done { channel: name.clone(), delivery: delivery.number, taken: false };
        self.blocking(move |desk| {
            let alert = desk.book.alert(&delivery.alert);
            let line = json!({
                "at": now(), "channel": name, "reason": reason, "resolve": delivery.resolve,
                "id": delivery.alert, "alert": alert,
            });
            storage::append(&path, format!("{line}\n").as_bytes())
        })
        .await?;
        self.record(move |_| vec![done]).await
    }

    /// The next delivery of a channel, which is under way from now on.
    async fn next(&self, channel: &str) -> Option<(Delivery, Notice)> {
        let mut desk = self.desk.lock().await;
        let delivery = desk.book.front(channel)?.clone();
        let notice = Notice::of(&self.settings, &delivery, desk.book.alert(&delivery.alert)?);
        desk.in_flight.insert(channel.to_owned(), delivery.number);
        Some((delivery, notice))
    }

    fn count(&self, channel: &str, outcome: &str) {
        let labels = [&*self.settings.sink, channel, outcome];
        self.settings.metrics.alert_deliveries.with_label_values(&labels).inc();
    }
}

/// Who tells one channel.
struct Courier {
    name: String,
    channel: Box<dyn Channel>,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

impl Courier {
    async fn run(mut self) {
        let mut changed = self.shared.changed.subscribe();
        let mut pause = RETRY_MIN;
        let stop = self.stop.clone();
        loop {
            changed.mark_unchanged();
            let Some((delivery, notice)) = self.shared.next(&self.name).await else {
                match stop.run_until_cancelled(changed.changed()).await {
                    Some(Ok(())) => continue,
                    _ => return,
                }
            };
            let started = Instant::now();
            let Some(told) = stop.run_until_cancelled(self.channel.deliver(&notice)).await else { return };
            let settled = match told {
                Ok(()) => {
                    self.shared.count(&self.name, "delivered");
                    let seconds = started.elapsed().as_secs_f64();
                    let labels = [&*self.shared.settings.sink, &self.name];
                    self.shared.settings.metrics.alert_seconds.with_label_values(&labels).observe(seconds);
                    let (channel, delivery) = (self.name.clone(), delivery.number);
                    self.shared.record(move |_| vec![Entry::Done { channel, delivery, taken: true }]).await
                }
                Err(Undelivered::Never(reason)) => self.shared.give_up(&self.name, &delivery, &reason).await,
                Err(Undelivered::Later { reason, after }) => {
                    self.shared.count(&self.name, "failed");
                    let wait = after.unwrap_or(pause).min(RETRY_MAX);
                    warn!(
                        sink = %self.shared.settings.sink, channel = self.name, reason, ?wait,
                        "An alert was not delivered; trying again."
                    );
                    pause = (pause * 2).min(RETRY_MAX);
                    // While it waits, more may be added to what it says.
                    self.shared.desk.lock().await.in_flight.remove(&self.name);
                    if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                        return;
                    }
                    continue;
                }
            };
            self.shared.desk.lock().await.in_flight.remove(&self.name);
            match settled {
                Ok(()) => pause = RETRY_MIN,
                Err(error) => {
                    error!(sink = %self.shared.settings.sink, %error, "Alerts cannot be kept.");
                    if stop.run_until_cancelled(tokio::time::sleep(RETRY_MAX)).await.is_none() {
                        return;
                    }
                }
            }
        }
    }
}
