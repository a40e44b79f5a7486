//! What each operator of a view does on a running pipeline: rows, runs, time. From timely's own log, which is taken in
//! where it is made; an event of it is an addition.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use timely::logging::{StartStop, TimelyEvent, TimelyEventBuilder};
use timely::worker::Worker;

/// What an operator has done since the start, on all workers together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Operator {
    /// As the dataflow calls it.
    pub(crate) name: String,
    /// How many operators it is within.
    pub(crate) depth: usize,
    /// Rows that it took in.
    pub(crate) rows: u64,
    /// How often it ran.
    pub(crate) runs: u64,
    /// For how long, with what is within it.
    pub(crate) time: Duration,
    /// What it keeps, if it keeps something.
    pub(crate) kept: Option<Kept>,
}

/// What an operator keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) rows: usize,
    pub(crate) bytes: usize,
}

/// The operators of all views.
#[derive(Debug)]
pub(crate) struct Profile {
    workers: Vec<Mutex<OfWorker>>,
}

#[derive(Debug, Default)]
struct OfWorker {
    operators: HashMap<usize, Logged>,
    kept: HashMap<usize, Kept>,
    /// The operator that a channel leads to, and how many rows went there.
    channels: HashMap<usize, (Vec<usize>, u64)>,
    /// The numbers of the operators that a view has.
    views: HashMap<String, Range<usize>>,
}

#[derive(Debug, Default)]
struct Logged {
    name: String,
    address: Vec<usize>,
    runs: u64,
    time: Duration,
    began: Duration,
}

impl Profile {
    pub(super) fn new(n_workers: usize) -> Self {
        Self { workers: (0..n_workers).map(|_| Mutex::default()).collect() }
    }

    fn worker(&self, idx: usize) -> MutexGuard<'_, OfWorker> {
        self.workers[idx].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what a worker logs; its operators are built after that.
    pub(super) fn listen(self: &std::sync::Arc<Self>, worker: &Worker) {
        let (profile, index) = (std::sync::Arc::clone(self), worker.index());
        let Some(mut log) = worker.log_register() else { return };
        log.insert::<TimelyEventBuilder, _>("timely", move |_, events| {
            if let Some(events) = events {
                let mut of_worker = profile.worker(index);
                events.drain(..).for_each(|(at, event)| of_worker.take(at, event));
            }
        });
    }

    /// A view has the operators with these numbers.
    pub(super) fn attached(&self, worker: usize, view: &str, operators: Range<usize>) {
        self.worker(worker).views.insert(view.to_owned(), operators);
    }

    /// An operator keeps this much.
    pub(super) fn keeps(&self, worker: usize, operator: usize, rows: usize, bytes: usize) {
        self.worker(worker).kept.insert(operator, Kept { rows, bytes });
    }

    /// The operators of a view, in the order in which they were built.
    #[must_use]
    pub(crate) fn of(&self, view: &str) -> Vec<Operator> {
        let mut found: Vec<Operator> = Vec::new();
        for worker in 0..self.workers.len() {
            // All workers build the same.
            for (idx, operator) in self.worker(worker).of(view).into_iter().enumerate() {
                match found.get_mut(idx) {
                    Some(sum) => {
                        sum.rows += operator.rows;
                        sum.runs += operator.runs;
                        sum.time += operator.time;
                        if let (Some(all), Some(kept)) = (&mut sum.kept, operator.kept) {
                            all.rows += kept.rows;
                            all.bytes += kept.bytes;
                        } else {
                            sum.kept = sum.kept.or(operator.kept);
                        }
                    }
                    None => found.push(operator),
                }
            }
        }
        found
    }
}

impl OfWorker {
    fn take(&mut self, at: Duration, event: TimelyEvent) {
        match event {
            TimelyEvent::Operates(operates) => {
                let logged = Logged { name: operates.name, address: operates.addr, ..Logged::default() };
                self.operators.insert(operates.id, logged);
            }
            TimelyEvent::Channels(channel) => {
                let mut target = channel.scope_addr;
                target.push(channel.target.0);
                self.channels.insert(channel.id, (target, 0));
            }
            TimelyEvent::Messages(message) if !message.is_send => {
                if let Some((_, rows)) = self.channels.get_mut(&message.channel) {
                    *rows += u64::try_from(message.record_count).unwrap_or(0);
                }
            }
            TimelyEvent::Schedule(schedule) => {
                let Some(operator) = self.operators.get_mut(&schedule.id) else { return };
                match schedule.start_stop {
                    StartStop::Start => operator.began = at,
                    StartStop::Stop => {
                        operator.runs += 1;
                        operator.time += at.saturating_sub(operator.began);
                    }
                }
            }
            _ => {}
        }
    }

    fn of(&self, view: &str) -> Vec<Operator> {
        let Some(numbers) = self.views.get(view) else { return Vec::new() };
        let mut rows: HashMap<&[usize], u64> = HashMap::new();
        for (target, n_rows) in self.channels.values() {
            *rows.entry(target.as_slice()).or_default() += n_rows;
        }
        let depth = |logged: &Logged| logged.address.len();
        let logged = |number| Some((number, self.operators.get(&number)?));
        let found: Vec<(usize, &Logged)> = numbers.clone().filter_map(logged).collect();
        let least = found.iter().map(|(_, logged)| depth(logged)).min().unwrap_or(0);
        found
            .into_iter()
            .map(|(number, logged)| Operator {
                name: logged.name.clone(),
                depth: depth(logged) - least,
                rows: rows.get(logged.address.as_slice()).copied().unwrap_or(0),
                runs: logged.runs,
                time: logged.time,
                kept: self.kept.get(&number).copied(),
            })
            .collect()
    }
}
