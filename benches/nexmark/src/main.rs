//! Runs Nexmark and writes the table.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use logdrive_nexmark::queries::{LEFT_OUT, QUERIES};
use logdrive_nexmark::{events, run};

/// Runs the queries as views on one worker, in turn with DataFusion over a table of the same rows.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many events.
    #[arg(long, default_value_t = 1_000_000)]
    events: usize,
    /// How many of them come in one epoch.
    #[arg(long, default_value_t = 20_000)]
    epoch: usize,
    /// How often each query is run; the median is shown.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Which queries, such as `q0,q5`; all unless given.
    #[arg(long, value_delimiter = ',')]
    queries: Vec<String>,
    /// Where the table goes.
    #[arg(long, default_value = "docs/nexmark.md")]
    report: PathBuf,
}

fn main() -> ExitCode {
    match go(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to do if this cannot be said.
            writeln!(std::io::stderr(), "error: {error}").ok();
            ExitCode::FAILURE
        }
    }
}

fn go(arguments: &Arguments) -> Result<(), String> {
    let epochs = events::generate(arguments.events, arguments.epoch);
    let mut table = String::new();
    for query in QUERIES {
        if !arguments.queries.is_empty() && !arguments.queries.iter().any(|name| name == query.name) {
            continue;
        }
        let (view, tables) =
            run::plan(query).map_err(|error| format!("{}: {}", query.name, error.message))?;
        let (mut of_view, mut of_batch) = (Vec::new(), Vec::new());
        for _ in 0..arguments.rounds.max(1) {
            let outcome = run::run(&view, &tables, &epochs, 1, false);
            if let Some(reason) = outcome.stopped {
                return Err(format!("{} stopped: {reason}", query.name));
            }
            of_view.push(outcome);
            of_batch
                .push(run::batch(query, &epochs, false).map_err(|error| format!("{}: {error}", query.name))?);
        }
        let middle = |mut times: Vec<Duration>| {
            times.sort_unstable();
            times[times.len() / 2].as_secs_f64()
        };
        let cpu = middle(of_view.iter().map(|outcome| outcome.cpu).collect());
        let wall = middle(of_view.iter().map(|outcome| outcome.wall).collect());
        let floor = middle(of_batch.iter().map(|outcome| outcome.cpu).collect());
        let millions = arguments.events as f64 / 1e6;
        let (name, what, n_changes) = (query.name, query.what, of_view[0].n_changes);
        writeln!(
            table,
            "| {name} | {what} | {:.0} k | {:.2} | {:.2} | {n_changes} |",
            arguments.events as f64 / wall / 1e3,
            cpu / millions,
            floor / millions,
        )
        .map_err(|error| error.to_string())?;
        writeln!(
            &mut std::io::stdout(),
            "{name}: {:.2} CPU-s per M, DataFusion over a table {:.2}",
            cpu / millions,
            floor / millions
        )
        .map_err(|error| error.to_string())?;
    }
    let mut page = format!(
        "# Nexmark\n\nWritten by `cargo run --release -p logdrive-nexmark -- --events {} --epoch {} --rounds {}`; do not edit.\n\n\
         Each query as a view, in a dataflow of one worker: {} events (2 % persons, 6 % auctions, 92 % bids) that are generated before the clock \
         starts, {} in an epoch, no checkpoints. Every change of the result is produced, epoch by epoch. \"Over a table\" is DataFusion \
         over all rows at once, on one core, which sees them only once: the floor. CPU-s are user and system time of the process per million \
         events of all kinds, medians. That results are those of DataFusion, on 1, 2 and 4 workers, is tested by `cargo test -p logdrive-nexmark`.\n\n\
         | query | | events/s | CPU-s per M events | over a table | changes |\n|---|---|---:|---:|---:|---:|\n{table}\nNot here:\n\n",
        arguments.events, arguments.epoch, arguments.rounds, arguments.events, arguments.epoch
    );
    for (name, why) in LEFT_OUT {
        writeln!(page, "- {name}: {why}.").map_err(|error| error.to_string())?;
    }
    std::fs::write(&arguments.report, page)
        .map_err(|error| format!("{}: {error}", arguments.report.display()))
}
