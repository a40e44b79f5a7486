//! Runs Nexmark and writes the tables.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use logdrive_compare::error::Result;
use logdrive_compare::say;
use logdrive_compare::stage::load;
use logdrive_nexmark::events::Epoch;
use logdrive_nexmark::queries::{QUERIES, Query, READ};
use logdrive_nexmark::report::{InMemory, Report};
use logdrive_nexmark::trial::Trial;
use logdrive_nexmark::{events, files, job, measure, peers, trial};

/// Runs the queries as views on one core, in turn with DataFusion and other products over the same events.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    task: Option<Task>,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Args)]
struct Options {
    /// How many events.
    #[arg(long, default_value_t = 1_000_000)]
    events: usize,
    /// How many of them come in one epoch.
    #[arg(long, default_value_t = 20_000)]
    epoch: usize,
    /// How often each query is run; smallest, middle and largest are shown.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Which queries, such as `q0,q5`; all unless given.
    #[arg(long, value_delimiter = ',')]
    queries: Vec<String>,
    /// Which peers; none with `--peers none`.
    #[arg(long, value_delimiter = ',', default_values_t = peers::PEERS.iter().map(|name| (*name).to_owned()))]
    peers: Vec<String>,
    /// The core that everything measured runs on.
    #[arg(long, default_value_t = 0)]
    core: usize,
    /// How long one run may take, in seconds.
    #[arg(long, default_value_t = 300)]
    timeout: u64,
    /// Where events, peers and answers lie.
    #[arg(long, default_value = "target/compare")]
    scratch: PathBuf,
    /// Where the tables go.
    #[arg(long, default_value = "docs/nexmark.md")]
    report: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// One query over the files, in this process: what the benchmark starts.
    #[command(hide = true)]
    Job {
        /// `Logdrive` or `DataFusion`.
        product: String,
        /// Such as `q5`.
        query: String,
        /// The folder of the files.
        #[arg(long)]
        data: PathBuf,
        /// What takes the answer.
        #[arg(long)]
        output: PathBuf,
        /// How many events come in one epoch.
        #[arg(long)]
        epoch: usize,
    },
}

fn main() -> ExitCode {
    let Arguments { task, options } = Arguments::parse();
    // As `logdrive run` has it.
    logdrive_connectors::memory::keep_freed_blocks();
    let result = match task {
        Some(Task::Job { product, query, data, output, epoch }) => {
            serve(&product, &query, &data, &output, epoch)
        }
        None => compare(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            say(&format!("error: {problem}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs a query, says so, and stays to be measured.
fn serve(product: &str, query: &str, data: &Path, output: &Path, per_epoch: usize) -> Result<()> {
    let query = [&READ].into_iter().chain(QUERIES).find(|known| known.name == query);
    let query = query.ok_or("no such query")?;
    match product == peers::DATAFUSION.name {
        true => job::batch(query, data, output)?,
        false => job::view(query, data, per_epoch, output)?,
    }
    measure::finished();
}

/// Everything.
fn compare(options: &Options) -> Result<()> {
    let mut report = Report::begin(options.events, options.epoch, options.rounds, load());
    std::fs::create_dir_all(&options.scratch)?;
    let scratch = options.scratch.canonicalize()?;
    let mut products = vec![peers::LOGDRIVE, peers::DATAFUSION];
    for name in options.peers.iter().filter(|name| *name != "none") {
        say(&format!("getting {name}"));
        match peers::peer(name, &scratch) {
            Ok(peer) => products.push(peer),
            Err(problem) => report.skip(name, &problem.to_string()),
        }
    }
    report.products(&products);
    let few = trial::FEW.min(options.events);
    let trial = Trial {
        few: files::make(&scratch, few, options.epoch)?,
        full: files::make(&scratch, options.events, options.epoch)?,
        n_events: options.events.saturating_sub(few),
        per_epoch: options.epoch,
        scratch,
        core: options.core,
        limit: Duration::from_secs(options.timeout),
    };
    let epochs = events::generate(options.events, options.epoch);
    let wanted =
        |query: &&Query| options.queries.is_empty() || options.queries.iter().any(|name| name == query.name);
    for query in [&READ].into_iter().chain(QUERIES).filter(wanted) {
        let in_memory = measure_in_memory(query, &epochs, options)?;
        let from_files = trial.run(query, &products, options.rounds)?;
        report.add(query, in_memory, from_files);
        report.write(&options.report)?;
    }
    say(&format!("wrote {}", options.report.display()));
    Ok(())
}

/// Rows that are there before the clock starts, as a view and with DataFusion, in turn.
fn measure_in_memory(query: &Query, epochs: &[Epoch], options: &Options) -> Result<InMemory> {
    let runs = (0..options.rounds.max(1)).map(|_| trial::in_memory(query, epochs, options.core));
    let runs = runs.collect::<Result<Vec<_>>>()?;
    let in_memory = InMemory::of(&runs, options.events);
    say(&format!("{:<5} in memory: {in_memory}", query.name));
    Ok(in_memory)
}
