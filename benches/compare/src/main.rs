//! The command line of the comparison. `run` writes `docs/benchmarks.md`, `scaling` writes `docs/scaling.md`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use logdrive_compare::{overload, profile, run, say, scaling};

/// Compares Logdrive with its peers.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Runs all products on all workloads, in turn, and writes the tables.
    Run(run::Options),
    /// Measures what an event costs as something grows, and writes the plots.
    Scaling(scaling::Options),
    /// Runs one workload under `perf`: a flame graph, and how much of the time goes where.
    Profile(profile::Options),
    /// Sends three times what the far end takes, and looks at memory and losses.
    Overload(overload::Options),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Task::Run(options) => run::run(&options),
        Task::Scaling(options) => scaling::run(&options),
        Task::Profile(options) => profile::run(&options),
        Task::Overload(options) => overload::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            say(&format!("error: {problem}"));
            ExitCode::FAILURE
        }
    }
}
