//! One run: a product, a workload, a sender, a receiver; what it cost and whether everything arrived.
//!
//! Figures are taken from just before the first byte is sent (W6: from the start of the product) until everything has
//! arrived and the product is quiet again. A run that goes wrong is a result, not an error.

use std::thread::sleep;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::error::Result;
use crate::ledger::{Pace, Verdict};
use crate::products::Product;
use crate::send::Sender;
use crate::stage::{Bench, Far, QUIET, Setting, Stage, load};
use crate::workload::Workload;

/// How long nothing may arrive before the rest counts as lost.
const STALL: Duration = Duration::from_secs(20);
/// The far end is away for a while.
#[derive(Clone, Copy, Debug)]
pub struct Outage {
    /// It begins when this many lines have arrived.
    pub after: u64,
    /// How long it lasts.
    pub lasts: Duration,
}

/// What to run.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// Which product.
    pub product: &'a dyn Product,
    /// Which pipeline.
    pub workload: Workload,
    /// The name under which the result is kept, such as `W5` or `W9`.
    pub name: &'a str,
    /// How many lines.
    pub lines: u64,
    /// Which repetition.
    pub round: u32,
    /// Lines a second; as fast as it goes without.
    pub rate: Option<f64>,
    /// Whether the far end goes away in between.
    pub outage: Option<Outage>,
}

/// Percentiles of the latency in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Delays {
    /// The median.
    pub p50: f64,
    /// 99 of 100 are faster.
    pub p99: f64,
    /// 999 of 1000 are faster.
    pub p999: f64,
    /// The slowest.
    pub max: f64,
}

impl Delays {
    /// Of a histogram of microseconds.
    pub fn of(delays: &Histogram<u64>) -> Option<Self> {
        let at = |quantile| delays.value_at_quantile(quantile) as f64 / 1000.0;
        (!delays.is_empty()).then(|| Self {
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: delays.max() as f64 / 1000.0,
        })
    }
}

/// What a run gave.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    /// The workload or trial.
    pub name: String,
    /// The product.
    pub product: String,
    /// Which repetition.
    pub round: u32,
    /// Lines sent.
    pub lines: u64,
    /// Bytes sent.
    pub bytes: u64,
    /// Lines a second that were intended; none if as many as went.
    pub rate: Option<f64>,
    /// From the first byte sent to the last line arrived.
    pub seconds: f64,
    /// User and system CPU seconds of the product.
    pub cpu: f64,
    /// Its highest resident memory in bytes.
    pub memory: u64,
    /// What arrived; none if the output was not looked at.
    pub verdict: Option<Verdict>,
    /// Documents that arrived again and were recognised by their id.
    pub conflicts: u64,
    /// How long lines took.
    pub delays: Option<Delays>,
    /// What went wrong besides.
    pub problem: Option<String>,
    /// The machine's load average before.
    pub load: f64,
}

impl Outcome {
    /// Lines a second.
    pub fn events_per_second(&self) -> f64 {
        self.lines as f64 / self.seconds.max(1e-9)
    }

    /// Megabytes a second that went in.
    pub fn megabytes_per_second(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.seconds.max(1e-9)
    }

    /// CPU seconds for a million lines.
    pub fn cpu_per_million(&self) -> f64 {
        self.cpu / self.lines.max(1) as f64 * 1e6
    }

    /// Whether everything arrived as it should, as far as that was looked at.
    pub fn is_right(&self) -> bool {
        self.problem.is_none() && self.verdict.as_ref().is_none_or(Verdict::is_right)
    }

    /// What is not right, for a person.
    pub fn faults(&self) -> String {
        let mut faults: Vec<String> = self.problem.iter().cloned().collect();
        faults.extend(self.verdict.as_ref().map(Verdict::faults).filter(|faults| !faults.is_empty()));
        faults.join("; ")
    }
}

impl Bench {
    /// Runs it.
    pub fn run(&self, request: &Request<'_>) -> Outcome {
        let mut outcome = Outcome {
            name: request.name.to_owned(),
            product: request.product.name().to_owned(),
            round: request.round,
            lines: request.lines,
            rate: request.rate,
            load: load(),
            ..Outcome::default()
        };
        if let Err(problem) = self.attempt(request, &mut outcome) {
            outcome.problem = Some(problem.to_string());
        }
        outcome
    }

    fn attempt(&self, request: &Request<'_>, outcome: &mut Outcome) -> Result<()> {
        let deadline = Instant::now() + self.timeout;
        let mut stage = self.stage(&Setting {
            product: request.product,
            workload: request.workload,
            name: request.name,
            lines: request.lines,
            from_file: request.rate.is_none(),
            connections: 1,
            remember_ids: request.outage.is_some(),
        })?;
        outcome.bytes = stage.bytes;
        let measured = self.drive(request, &mut stage, deadline, outcome);
        outcome.memory = stage.process.peak_memory();
        outcome.verdict = match stage.far {
            Far::Nowhere => request.product.received(request.workload, stage.api).map(|arrived| Verdict {
                wanted: request.lines,
                arrived,
                ..Verdict::default()
            }),
            _ => Some(stage.ledger.verdict()),
        };
        if let Far::Http(elastic) = &stage.far {
            outcome.conflicts = elastic.conflicts();
        }
        outcome.delays = Delays::of(&stage.ledger.delays());
        stage.end();
        measured
    }

    fn drive(
        &self,
        request: &Request<'_>,
        stage: &mut Stage,
        deadline: Instant,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let mut start = stage.process.started;
        let (mut sender, mut before) = (None, 0.0);
        if request.workload != Workload::W6 {
            before = stage.settle()?;
            start = Instant::now();
            sender = Some(match request.rate {
                None => Sender::file(stage.file.clone(), stage.input()),
                Some(rate) => {
                    let pace = Pace { start: start + Duration::from_millis(50), rate };
                    stage.ledger.set_pace(pace);
                    Sender::paced(request.workload.format(), request.lines, pace, stage.input())
                }
            });
        }
        let blind = matches!(stage.far, Far::Nowhere);
        let (mut progress, mut seen, mut down) = (Instant::now(), 0, None);
        let mut problem = None;
        loop {
            sleep(Duration::from_millis(10));
            stage.process.check()?;
            if stage.ledger.arrived() > seen {
                (seen, progress) = (stage.ledger.arrived(), Instant::now());
            }
            if let (Far::Http(elastic), Some(outage)) = (&stage.far, request.outage) {
                match down {
                    None if seen >= outage.after => {
                        elastic.set_down(true);
                        down = Some(Instant::now());
                    }
                    Some(since) if since.elapsed() >= outage.lasts => elastic.set_down(false),
                    _ => {}
                }
            }
            let sent = sender.as_ref().is_none_or(Sender::is_done);
            if sent && (blind || stage.ledger.is_complete()) {
                break;
            }
            let patience = STALL + request.outage.map_or(Duration::ZERO, |outage| outage.lasts * 2);
            if sent && progress.elapsed() > patience {
                break;
            }
            if Instant::now() > deadline {
                problem = Some(format!("not done within {:?}", self.timeout));
                break;
            }
        }
        let busy = stage.process.wait_quiet(QUIET, Instant::now() + Duration::from_secs(15))?;
        outcome.cpu = stage.process.cpu() - before;
        let end = if blind { busy } else { stage.ledger.latest() };
        outcome.seconds = end.saturating_duration_since(start).as_secs_f64();
        if let Some(problem) = problem {
            return Err(problem.into());
        }
        if let Some(sender) = sender {
            outcome.bytes = sender.finish()?.bytes;
        }
        Ok(())
    }
}
