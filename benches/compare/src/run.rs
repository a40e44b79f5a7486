//! The task `run`: all products on all workloads, in turn, so that what the machine does besides falls on all alike.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use serde_json::json;

use crate::data::{self, Format};
use crate::error::{Result, fail};
use crate::geo;
use crate::limits::{self, Limits};
use crate::measure::{Outcome, Request};
use crate::products::{self, Buffer, Logdrive, PEERS, Product};
use crate::report::{Report, Table, command};
use crate::say;
use crate::stage::Bench;
use crate::trials::{Cast, TRIALS, windows};
use crate::workload::{Output, Workload};

/// What all tasks need to know.
#[derive(Args, Clone)]
pub struct Common {
    /// The product; built with cargo if it is not there.
    #[arg(long, default_value = "target/release/logdrive")]
    pub binary: PathBuf,

    /// Where data, peers and results lie.
    #[arg(long, default_value = "target/compare")]
    pub scratch: PathBuf,

    /// How long one run may take, in seconds.
    #[arg(long, default_value_t = 240)]
    pub timeout: u64,
}

impl Common {
    /// Makes sure of the product, the scratch folder and the geo database.
    pub fn prepare(&self) -> Result<Bench> {
        if !self.binary.exists() {
            say(&format!("{} is not there: building it", self.binary.display()));
            let status = Command::new("cargo")
                .args(["build", "--release", "-p", "logdrive", "--bin", "logdrive"])
                .status()?;
            if !status.success() {
                return Err("the product could not be built".into());
            }
        }
        fs::create_dir_all(&self.scratch)
            .map_err(fail(format_args!("cannot make {}", self.scratch.display())))?;
        let scratch = self.scratch.canonicalize()?;
        let places = geo::file(&scratch)?;
        Ok(Bench { scratch, places, timeout: Duration::from_secs(self.timeout) })
    }

    /// The product with a given buffer.
    pub fn product(&self, buffer: Buffer) -> Result<Logdrive> {
        let binary =
            self.binary.canonicalize().map_err(fail(format_args!("no {}", self.binary.display())))?;
        Logdrive::new(&binary, buffer)
    }
}

/// What to compare, and how often.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,

    /// Which workloads and trials, such as `W1,W5,W14`.
    #[arg(long, value_delimiter = ',')]
    workloads: Vec<String>,

    /// Which peers; none with `--peers none`.
    #[arg(long, value_delimiter = ',', default_values_t = PEERS.iter().chain(windows::PEERS).map(|peer| (*peer).to_owned()))]
    peers: Vec<String>,

    /// How often each product runs each workload.
    #[arg(long, default_value_t = 3)]
    rounds: u32,

    /// Lines of a run.
    #[arg(long, default_value_t = 1_000_000)]
    lines: u64,

    /// How long the runs at half load take, in seconds; 0 leaves them out.
    #[arg(long, default_value_t = 10)]
    half_load: u64,

    /// How long Elasticsearch is away in W9, in seconds.
    #[arg(long, default_value_t = 10)]
    outage: u64,

    /// How long nothing happens in W11, in seconds.
    #[arg(long, default_value_t = 60)]
    idle: u64,

    /// How many connections W12 opens.
    #[arg(long, default_value_t = 10_000)]
    connections: u32,

    /// Where the Kafka broker listens that W8 starts; it takes the next port too.
    #[arg(long, default_value_t = 19_092)]
    kafka_port: u16,

    /// Where the tables go.
    #[arg(long, default_value = "docs/benchmarks.md")]
    report: PathBuf,
}

/// Keeps every result, as lines of JSON, whatever becomes of the rest.
pub struct Journal(File);

impl Journal {
    /// Opens the journal in the scratch folder.
    pub fn open(scratch: &Path) -> Result<Self> {
        let path = scratch.join("results.jsonl");
        let file = File::options().create(true).append(true).open(&path);
        Ok(Self(file.map_err(fail(format_args!("cannot write {}", path.display())))?))
    }

    /// Adds a result.
    pub fn add<T: Serialize>(&mut self, result: &T) -> Result<()> {
        let mut line = serde_json::to_string(result)?;
        line.push('\n');
        Ok(self.0.write_all(line.as_bytes())?)
    }
}

impl Options {
    fn wants(&self, name: &str) -> bool {
        self.workloads.is_empty() || self.workloads.iter().any(|wanted| wanted.eq_ignore_ascii_case(name))
    }

    /// Whether anything but `name` is wanted.
    fn wants_more_than(&self, name: &str) -> bool {
        self.workloads.is_empty() || self.workloads.iter().any(|wanted| !wanted.eq_ignore_ascii_case(name))
    }
}

/// Compares.
pub fn run(options: &Options) -> Result<()> {
    let known = |name: &String| {
        Workload::ALL
            .iter()
            .map(|workload| workload.name())
            .chain(TRIALS.iter().map(|trial| trial.0))
            .any(|known| known.eq_ignore_ascii_case(name))
    };
    if let Some(name) = options.workloads.iter().find(|name| !known(name)) {
        return Err(format!("no workload is called {name:?}; there are W1 to W14").into());
    }
    let bench = options.common.prepare()?;
    let mut journal = Journal::open(&bench.scratch)?;
    let mut all: Vec<Box<dyn Product>> = vec![
        Box::new(options.common.product(Buffer::Disk)?),
        Box::new(options.common.product(Buffer::Memory)?),
    ];
    let mut report = Report::begin(options.rounds, options.lines);
    journal.add(&json!({ "command": command(), "began": report.date() }))?;
    let of_others = |name: &&String| !windows::PEERS.contains(&name.as_str()) && *name != "none";
    for name in options.peers.iter().filter(of_others).filter(|_| options.wants_more_than("W8")) {
        say(&format!("getting {name}"));
        match products::peer(name, &bench.scratch) {
            Ok(peer) => all.push(peer),
            Err(problem) => report.skip(name, &problem.to_string()),
        }
    }
    report.products(&all);

    say("measuring the machine");
    let (file, _) = data::file(&bench.scratch, Format::Json, options.lines)?;
    let limits = limits::measure(&file, &bench.scratch)?;
    journal.add(&limits)?;
    report.limits(limits);

    for workload in Workload::ALL.iter().copied().filter(|workload| options.wants(workload.name())) {
        let table = compare(options, &bench, &mut journal, &all, workload, limits)?;
        report.table(table);
        report.write(&options.report)?;
    }
    let ours = options.common.product(Buffer::Disk)?;
    for (name, trial) in TRIALS.iter().filter(|(name, _)| options.wants(name)) {
        let cast = Cast {
            bench: &bench,
            all: &all,
            ours: &ours,
            lines: options.lines,
            rounds: options.rounds,
            outage: options.outage,
            idle: options.idle,
            connections: options.connections,
            kafka_port: options.kafka_port,
            peers: &options.peers,
            tables: report.tables(),
        };
        let section = trial(&cast, &mut journal).unwrap_or_else(|problem| {
            say(&format!("{name}: {problem}"));
            format!("## {name}\n\n**It failed: {problem}.**\n")
        });
        report.trial(section);
        report.write(&options.report)?;
    }
    report.write(&options.report)?;
    say(&format!("wrote {}", options.report.display()));
    Ok(())
}

fn compare(
    options: &Options,
    bench: &Bench,
    journal: &mut Journal,
    all: &[Box<dyn Product>],
    workload: Workload,
    limits: Limits,
) -> Result<Table> {
    let mut table = Table::new(workload, limits);
    let able = || all.iter().filter(|product| product.way(workload).is_some());
    for round in 1..=options.rounds {
        for product in able() {
            let request = Request {
                product: product.as_ref(),
                workload,
                name: workload.name(),
                lines: options.lines,
                round,
                rate: None,
                outage: None,
            };
            let outcome = bench.run(&request);
            tell(&outcome);
            journal.add(&outcome)?;
            table.add(product.as_ref(), outcome);
        }
    }
    for product in able() {
        let times =
            product.way(workload).is_some_and(|way| way.output != Output::None) && workload != Workload::W6;
        let Some(most) = table.median_rate(product.name()).filter(|_| times && options.half_load > 0) else {
            continue;
        };
        let rate = most / 2.0;
        let request = Request {
            product: product.as_ref(),
            workload,
            name: workload.name(),
            lines: (rate * options.half_load as f64) as u64,
            round: 0,
            rate: Some(rate),
            outage: None,
        };
        let outcome = bench.run(&request);
        tell(&outcome);
        journal.add(&outcome)?;
        table.add_half_load(outcome);
    }
    Ok(table)
}

/// One line for the terminal.
pub fn tell(outcome: &Outcome) {
    let latency =
        outcome.delays.map(|delays| format!(", p50 {:.1} ms, p99 {:.1} ms", delays.p50, delays.p99));
    let figures = if outcome.is_right() {
        format!(
            "{:>9.0} events/s {:>6.0} MB/s {:>7.2} CPU-s per M {:>6.0} MB{}",
            outcome.events_per_second(),
            outcome.megabytes_per_second(),
            outcome.cpu_per_million(),
            outcome.memory as f64 / 1e6,
            latency.unwrap_or_default()
        )
    } else {
        format!("WRONG: {}", outcome.faults())
    };
    say(&format!("{:<4} {:<16} {figures}", outcome.name, outcome.product));
}
