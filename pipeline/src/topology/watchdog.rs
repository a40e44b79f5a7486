//! What ends the process when something inside has failed: a panic at once, a dataflow that stands still after a while.
//!
//! Timely does neither: when a worker panics the others wait for it for ever, and an operator that never returns is not
//! noticed by anybody. After the end the pipeline is started anew, and goes on from its checkpoint.
//!
//! A dataflow stands still if a sink, view or detector stays behind what every source has told the workers. A sink that
//! is down does not make it so: it holds back what is acknowledged, but rows still reach it; and a source that cannot
//! connect tells the workers nothing.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use logdrive_schemas::Epoch;

/// The code that the process ends with after a panic.
const PANICKED: i32 = 101;
/// The code that the process ends with when the dataflow stands still.
const STALLED: i32 = 102;

/// From now on a panic anywhere ends the process: half a pipeline acknowledges nothing wrong, but it must not hang
/// either.
pub fn exit_on_panic() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default(info);
        std::process::exit(PANICKED);
    }));
}

/// How far everything is. Sources and workers write it down.
#[derive(Debug)]
pub(super) struct Pulse {
    began: Instant,
    /// By worker: when its last step ended, in milliseconds since `began`.
    steps: Vec<AtomicU64>,
    /// By source: the epoch that it told the workers last.
    told: Vec<AtomicU64>,
    places: Vec<Place>,
    is_over: AtomicBool,
}

/// A sink, view or detector.
#[derive(Debug)]
pub(super) struct Place {
    /// What it is, and its name.
    name: String,
    /// By worker: every epoch before it has come here.
    reached: Vec<AtomicU64>,
}

impl Pulse {
    pub(super) fn new(n_workers: usize, n_sources: usize, places: Vec<String>) -> Arc<Self> {
        let zeros = |n: usize| (0..n).map(|_| AtomicU64::new(0)).collect();
        let places = places.into_iter().map(|name| Place { name, reached: zeros(n_workers) }).collect();
        let (steps, told) = (zeros(n_workers), zeros(n_sources));
        Arc::new(Self { began: Instant::now(), steps, told, places, is_over: AtomicBool::new(false) })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A worker has finished a step.
    pub(super) fn stepped(&self, worker: usize) {
        self.steps[worker].store(self.now(), Ordering::Relaxed);
    }

    /// A source has told all workers that nothing comes before `epoch`.
    pub(super) fn told(&self, source: usize, epoch: u64) {
        self.told[source].store(epoch, Ordering::Relaxed);
    }

    /// On a worker everything before `epoch` has come to a place.
    pub(super) fn reached(&self, place: usize, worker: usize, epoch: u64) {
        self.places[place].reached[worker].store(epoch, Ordering::Relaxed);
    }

    /// The dataflow has ended.
    pub(super) fn over(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// Ends the process when the dataflow stands still for `timeout`; nothing if that is zero.
pub(super) fn watch(pulse: &Arc<Pulse>, timeout: Duration) -> std::io::Result<()> {
    if timeout.is_zero() {
        return Ok(());
    }
    let mut watchdog = Watchdog::new(pulse, timeout);
    let pause = (timeout / 8).clamp(Duration::from_millis(10), Duration::from_secs(1));
    let look = move || {
        while !watchdog.pulse.is_over.load(Ordering::Relaxed) {
            if let Some(what) = watchdog.look(watchdog.pulse.now()) {
                tracing::error!(
                    "The dataflow stands still; the process ends, to go on from its checkpoint. {what}"
                );
                std::process::exit(STALLED);
            }
            std::thread::sleep(pause);
        }
    };
    std::thread::Builder::new().name("watchdog".into()).spawn(look).map(drop)
}

struct Watchdog {
    pulse: Arc<Pulse>,
    /// In milliseconds.
    timeout: u64,
    /// By place and worker: how far it was, and since when, in milliseconds.
    seen: Vec<Vec<(u64, u64)>>,
}

impl Watchdog {
    fn new(pulse: &Arc<Pulse>, timeout: Duration) -> Self {
        let seen = pulse.places.iter().map(|place| vec![(0, 0); place.reached.len()]).collect();
        let timeout = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        Self { pulse: Arc::clone(pulse), timeout, seen }
    }

    /// Says what stands still, if something does.
    fn look(&mut self, now: u64) -> Option<String> {
        let pulse = Arc::clone(&self.pulse);
        let expected = pulse.told.iter().map(|epoch| epoch.load(Ordering::Relaxed)).min().unwrap_or(0);
        let mut standing = Vec::new();
        for (place, seen) in pulse.places.iter().zip(&mut self.seen) {
            for (worker, (reached, seen)) in place.reached.iter().zip(seen).enumerate() {
                let epoch = reached.load(Ordering::Relaxed);
                // While there is nothing to come it does not stand still.
                if epoch != seen.0 || expected <= epoch {
                    *seen = (epoch, now);
                } else if now.saturating_sub(seen.1) >= self.timeout {
                    standing.push((place, worker, epoch));
                }
            }
        }
        (!standing.is_empty()).then(|| describe(&pulse, &standing, expected, now))
    }
}

fn describe(pulse: &Pulse, standing: &[(&Place, usize, u64)], expected: u64, now: u64) -> String {
    let mut what = String::new();
    for (worker, step) in pulse.steps.iter().enumerate() {
        let since = now.saturating_sub(step.load(Ordering::Relaxed)) as f64 / 1e3;
        if since > 0.5 {
            write!(what, "Worker {worker} has been in one step for {since:.1} s. ")
                .expect("writing to a string cannot fail");
        }
    }
    for (place, worker, epoch) in standing {
        let behind = expected.saturating_sub(*epoch) as f64 * Epoch::UNIT_US as f64 / 1e6;
        let stays = if *epoch == 0 {
            "has not begun".to_owned()
        } else {
            format!("stays at epoch {epoch}, {behind:.1} s behind the sources")
        };
        write!(what, "{} {stays} on worker {worker}. ", place.name).expect("writing to a string cannot fail");
    }
    what.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watchdog() -> (Arc<Pulse>, Watchdog) {
        let pulse = Pulse::new(2, 2, vec!["view totals".into(), "sink out".into()]);
        let watchdog = Watchdog::new(&pulse, Duration::from_secs(10));
        (pulse, watchdog)
    }

    #[test]
    fn what_is_as_far_as_the_slowest_source_does_not_stand_still() {
        let (pulse, mut watchdog) = watchdog();
        // One source has not begun, or cannot connect.
        pulse.told(0, 50_000);
        assert_eq!(watchdog.look(1_000_000), None);
        pulse.told(1, 7_000);
        for place in [0, 1] {
            for worker in [0, 1] {
                pulse.reached(place, worker, 7_000);
            }
        }
        assert_eq!(watchdog.look(1_001_000), None);
        assert_eq!(watchdog.look(9_000_000), None);
    }

    #[test]
    fn what_stays_behind_is_named_after_a_while() {
        let (pulse, mut watchdog) = watchdog();
        [0, 1].into_iter().for_each(|source| pulse.told(source, 7_000));
        [(0, 0), (0, 1), (1, 0), (1, 1)]
            .into_iter()
            .for_each(|(place, worker)| pulse.reached(place, worker, 7_000));
        assert_eq!(watchdog.look(1_000), None);
        [0, 1].into_iter().for_each(|source| pulse.told(source, 9_000));
        [(0, 0), (1, 0), (1, 1)].into_iter().for_each(|(place, worker)| pulse.reached(place, worker, 9_000));
        assert_eq!(watchdog.look(2_000), None);
        assert_eq!(watchdog.look(10_500), None);
        let what = watchdog.look(12_000).unwrap();
        assert!(
            what.contains("view totals stays at epoch 7000, 2.0 s behind the sources on worker 1."),
            "{what}"
        );
        assert!(what.contains("Worker 1 has been in one step for 12.0 s."), "{what}");
        assert!(!what.contains("sink out"), "{what}");
        // It goes on, if slowly.
        pulse.reached(0, 1, 8_000);
        assert_eq!(watchdog.look(13_000), None);
    }
}
