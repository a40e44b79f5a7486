//! The schedule of faults, what feeds numbered messages meanwhile, and the account at the end.

use std::io::{Write as _, stdout};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use logdrive_connectors::{ConnectorContext, Sink};
use logdrive_schemas::Batch;
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::support::proxy::{Fault, Proxy};
use crate::support::{batch, deliver, deliver_at_last};

/// No single wait is longer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a fault lasts. Connections that were swallowed stay so; those that are made afterwards are well.
const FAULT_LASTS: Duration = Duration::from_millis(1200);
const SWALLOWING_LASTS: Duration = Duration::from_millis(400);
/// Messages that are fed at once, and how often.
const N_AT_ONCE: usize = 20;
const PACE: Duration = Duration::from_millis(10);
/// With fewer messages a test shows nothing.
const N_MIN: usize = 300;

/// How often each number came.
#[derive(Clone, Default)]
pub(crate) struct Tally(Arc<Mutex<Counts>>);

#[derive(Default)]
struct Counts {
    times: Vec<u32>,
    n_all: usize,
}

impl Tally {
    pub(crate) fn of(numbers: impl IntoIterator<Item = usize>) -> Self {
        let tally = Self::default();
        tally.add(numbers);
        tally
    }

    pub(crate) fn add(&self, numbers: impl IntoIterator<Item = usize>) {
        let mut counts = self.0.lock().unwrap();
        for n in numbers {
            if counts.times.len() <= n {
                counts.times.resize(n + 1, 0);
            }
            counts.times[n] += 1;
            counts.n_all += 1;
        }
    }

    /// How many came, again and again.
    pub(crate) fn n_all(&self) -> usize {
        self.0.lock().unwrap().n_all
    }

    /// How many different ones came.
    pub(crate) fn n_different(&self) -> usize {
        self.0.lock().unwrap().times.iter().filter(|times| **times > 0).count()
    }

    /// How many numbers of another tally never came.
    pub(crate) fn n_missing(&self, of: &Self) -> usize {
        let wanted = of.0.lock().unwrap().times.clone();
        let counts = self.0.lock().unwrap();
        let came = |n: usize| counts.times.get(n).is_some_and(|times| *times > 0);
        wanted.iter().enumerate().filter(|(n, times)| **times > 0 && !came(*n)).count()
    }
}

/// Waits until it is so.
pub(crate) async fn until(what: impl Fn() -> String, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {}", what());
        sleep(Duration::from_millis(5)).await;
    }
}

/// Every fault in turn, each in the midst of traffic, of which `n_done` says how much there was. Between two faults
/// traffic flows; whether it does behind swallowed connections, too, without their being reset, is up to who made them:
/// `notices`.
pub(crate) async fn storm(
    what: &str,
    proxy: &Proxy,
    faults: &[Fault],
    notices: bool,
    n_done: impl Fn() -> usize,
) {
    let flows = async |behind: Fault| {
        let before = n_done();
        until(
            || format!("{what}: something comes after {behind:?}, {} came", n_done()),
            || n_done() > before + N_AT_ONCE,
        )
        .await;
    };
    flows(Fault::None).await;
    for fault in faults.iter().copied() {
        let before = proxy.harmed(fault);
        proxy.set(fault);
        until(|| format!("{what}: {fault:?} meets somebody"), || proxy.harmed(fault) > before).await;
        sleep(if fault == Fault::HalfOpen { SWALLOWING_LASTS } else { FAULT_LASTS }).await;
        proxy.set(Fault::None);
        if notices || fault != Fault::HalfOpen {
            flows(fault).await;
        }
    }
}

/// Waits until everything that was acknowledged is delivered, and says how it went.
pub(crate) async fn settle(
    what: &str,
    proxy: &Proxy,
    n_sent: usize,
    acknowledged: &Tally,
    mut delivered: impl AsyncFnMut() -> Tally,
) {
    assert!(acknowledged.n_different() >= N_MIN, "{what}: {} acknowledged", acknowledged.n_different());
    let deadline = Instant::now() + PATIENCE;
    let found = loop {
        let found = delivered().await;
        let n_missing = found.n_missing(acknowledged);
        if n_missing == 0 {
            break found;
        }
        assert!(
            Instant::now() < deadline,
            "{what}: of {} that were acknowledged {n_missing} are missing",
            acknowledged.n_different()
        );
        sleep(Duration::from_millis(100)).await;
    };
    say(what, proxy, n_sent, acknowledged, &found);
}

/// One line.
pub(crate) fn say(what: &str, proxy: &Proxy, n_sent: usize, acknowledged: &Tally, delivered: &Tally) {
    let n_delivered = delivered.n_different();
    writeln!(
        &mut stdout(),
        "{what}: {n_sent} sent, {} acknowledged, {n_delivered} delivered, {} of them again, {} of the acknowledged missing; \
         connections broken {}, swallowed {}, pieces delayed {}",
        acknowledged.n_different(),
        delivered.n_all() - n_delivered,
        delivered.n_missing(acknowledged),
        proxy.harmed(Fault::Reset) + proxy.harmed(Fault::Refuse),
        proxy.harmed(Fault::HalfOpen),
        proxy.harmed(Fault::Latency(FAULT_LASTS)) + proxy.harmed(Fault::Bandwidth(0)),
    )
    .unwrap();
}

/// Delivers numbered rows as the runtime does, some at a time, until it is to stop. Returns how many there were.
pub(crate) async fn write_on(
    out: &mut dyn Sink,
    n_at_once: usize,
    rows: impl Fn(Range<usize>) -> Batch,
    acknowledged: &Tally,
    stop: &CancellationToken,
) -> usize {
    let (mut n, mut is_connected) = (0, false);
    while !stop.is_cancelled() {
        let numbers = n..n + n_at_once;
        n = numbers.end;
        let rows = [rows(numbers.clone())];
        if !is_connected || deliver(out, &rows).await.is_err() {
            deliver_at_last(out, &rows).await;
            is_connected = true;
        }
        acknowledged.add(numbers);
        sleep(Duration::from_millis(2)).await;
    }
    n
}

/// What a sink acknowledges is stored, whatever happens on the way.
pub(crate) async fn sink_survives(
    what: &str,
    proxy: &Proxy,
    faults: &[Fault],
    mut out: Box<dyn Sink>,
    (n_at_once, rows): (usize, impl Fn(Range<usize>) -> Batch),
    stored: impl AsyncFnMut() -> Tally,
) {
    let (acknowledged, stop) = (Tally::default(), CancellationToken::new());
    let storming = async {
        storm(what, proxy, faults, true, || acknowledged.n_all()).await;
        stop.cancel();
    };
    let writing = write_on(&mut *out, n_at_once, rows, &acknowledged, &stop);
    let (n_sent, ()) = tokio::join!(writing, storming);
    settle(what, proxy, n_sent, &acknowledged, stored).await;
}

/// Rows that are `{"n":17}`.
pub(crate) fn numbered(numbers: Range<usize>) -> Batch {
    let first = numbers.start as u64;
    let documents: Vec<String> = numbers.map(|n| format!("{{\"n\":{n}}}")).collect();
    batch(1, first, &documents, &[])
}

/// Feeds numbers in a thread of its own, until it is stopped or dropped.
pub(crate) struct Feeder {
    stop: DropGuard,
    thread: JoinHandle<usize>,
}

impl Feeder {
    pub(crate) fn start(mut feed: impl FnMut(Range<usize>) + Send + 'static) -> Self {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut n = 0;
            while !stopped.is_cancelled() {
                feed(n..n + N_AT_ONCE);
                n += N_AT_ONCE;
                std::thread::sleep(PACE);
            }
            n
        });
        Self { stop: stop.drop_guard(), thread }
    }

    /// How many numbers were fed.
    pub(crate) fn stop(self) -> usize {
        drop(self.stop);
        self.thread.join().unwrap()
    }
}

/// Lines that are `{"n":17}`.
pub(crate) fn lines(numbers: Range<usize>) -> String {
    numbers.map(|n| format!("{{\"n\":{n}}}\n")).collect()
}

/// The numbers that stand behind each occurrence of a mark.
pub(crate) fn numbers_behind<'a>(text: &'a str, mark: &'a str) -> impl Iterator<Item = usize> + 'a {
    text.split(mark).skip(1).filter_map(|rest| {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest[..digits].parse().ok()
    })
}

/// The complete lines of a file, which may not be there yet.
pub(crate) fn read_lines(path: &Path) -> String {
    let mut text = String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
    text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
    text
}

/// A context of its own, in a folder.
pub(crate) fn context(name: &str, dir: &Path) -> ConnectorContext {
    ConnectorContext {
        name: name.into(),
        state_dir: dir.join(name),
        metrics: Arc::default(),
        shutdown: CancellationToken::new(),
    }
}
