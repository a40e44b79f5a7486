//! One run: a product, a workload, a sender, a receiver; what it cost and whether everything arrived.
//!
//! Figures are taken from just before the first byte is sent (W6: from the start of the product) until everything has
//! arrived and the product is quiet again. A run that goes wrong is a result, not an error.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::data;
use crate::elastic::Elastic;
use crate::error::Result;
use crate::expect::Expectation;
use crate::ledger::{Ledger, Pace, Verdict};
use crate::process::{Process, empty_folder, free_port};
use crate::products::{Product, Site};
use crate::receive::Receiver;
use crate::send::Sender;
use crate::workload::{Output, Way, Workload};

/// How long a product may take to listen.
const START: Duration = Duration::from_secs(60);
/// How long nothing may arrive before the rest counts as lost.
const STALL: Duration = Duration::from_secs(20);
/// How long a product must be quiet.
const QUIET: Duration = Duration::from_millis(400);

/// What all runs share.
pub struct Bench {
    /// Where data, folders of runs and results lie.
    pub scratch: PathBuf,
    /// The geo database.
    pub places: PathBuf,
    /// How long one run may take.
    pub timeout: Duration,
}

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
    fn of(delays: &Histogram<u64>) -> Option<Self> {
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

/// The first figure of `/proc/loadavg`.
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}

/// What takes a product's output.
enum Far {
    Nowhere,
    Lines(Receiver),
    Http(Elastic),
}

impl Far {
    fn address(&self) -> SocketAddr {
        match self {
            Self::Nowhere => SocketAddr::from(([127, 0, 0, 1], 9)),
            Self::Lines(receiver) => receiver.address,
            Self::Http(elastic) => elastic.address,
        }
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

    /// An empty folder for a run.
    pub fn folder(&self, product: &str, name: &str) -> Result<PathBuf> {
        let folder = self.scratch.join("runs").join(format!("{product}-{name}"));
        empty_folder(&folder)?;
        Ok(folder.canonicalize()?)
    }

    fn attempt(&self, request: &Request<'_>, outcome: &mut Outcome) -> Result<()> {
        let workload = request.workload;
        let way = request.product.way(workload).ok_or("it has no way to do this")?;
        let folder = self.folder(request.product.name(), request.name)?;
        let (file, bytes) = data::file(&self.scratch, workload.format(), request.lines)?;
        outcome.bytes = bytes;
        let ledger = Arc::new(Ledger::new(Expectation {
            format: workload.format(),
            shape: workload.shape(&way),
            lines: request.lines,
        }));
        let far = match way.output {
            Output::None => Far::Nowhere,
            Output::Tcp => Far::Lines(Receiver::start(Arc::clone(&ledger), None)?),
            Output::Http => Far::Http(Elastic::start(Arc::clone(&ledger), request.outage.is_some())?),
        };
        let site = Site {
            folder: &folder,
            input: free_port()?,
            output: far.address(),
            file: &file,
            places: &self.places,
            api: free_port()?,
            connections: 2,
        };
        let launch = request.product.launch(workload, &site)?;
        let deadline = Instant::now() + self.timeout;
        let mut process = Process::start(launch)?;
        let measured = self.drive(request, &way, &site, &ledger, &far, &mut process, deadline, outcome);
        outcome.memory = process.peak_memory();
        if way.output == Output::None {
            outcome.verdict = request.product.received(workload, &site).map(|arrived| Verdict {
                wanted: request.lines,
                arrived,
                ..Verdict::default()
            });
        } else {
            outcome.verdict = Some(ledger.verdict());
        }
        if let Far::Http(elastic) = &far {
            outcome.conflicts = elastic.conflicts();
        }
        outcome.delays = Delays::of(&ledger.delays());
        process.stop(Duration::from_secs(10));
        clean(&folder);
        measured
    }

    #[expect(clippy::too_many_arguments, reason = "one caller, and each is a thing of its own")]
    fn drive(
        &self,
        request: &Request<'_>,
        way: &Way,
        site: &Site<'_>,
        ledger: &Ledger,
        far: &Far,
        process: &mut Process,
        deadline: Instant,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let mut start = process.started;
        let (mut sender, mut before) = (None, 0.0);
        if request.workload != Workload::W6 {
            process.wait_listening(site.input, START)?;
            process.wait_quiet(QUIET, Instant::now() + Duration::from_secs(10))?;
            before = process.cpu();
            start = Instant::now();
            let to = SocketAddr::from(([127, 0, 0, 1], site.input));
            sender = Some(match request.rate {
                None => Sender::file(site.file.to_owned(), to),
                Some(rate) => {
                    let pace = Pace { start: start + Duration::from_millis(50), rate };
                    ledger.set_pace(pace);
                    Sender::paced(request.workload.format(), request.lines, pace, to)
                }
            });
        }
        let complete = || way.output == Output::None || ledger.is_complete();
        let (mut progress, mut seen, mut down) = (Instant::now(), 0, None);
        let mut problem = None;
        loop {
            sleep(Duration::from_millis(10));
            process.check()?;
            if ledger.arrived() > seen {
                (seen, progress) = (ledger.arrived(), Instant::now());
            }
            if let (Far::Http(elastic), Some(outage)) = (far, request.outage) {
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
            if sent && complete() {
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
        let busy = process.wait_quiet(QUIET, Instant::now() + Duration::from_secs(15))?;
        outcome.cpu = process.cpu() - before;
        let end = if way.output == Output::None { busy } else { ledger.latest() };
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

/// Buffers and spools of a run can be large; its configuration and log are kept.
fn clean(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            // What stays is overwritten by the next run.
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}
