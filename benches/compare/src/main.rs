//! The command line of the comparison. `run` writes `docs/benchmarks.md`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use logdrive_compare::{run, say};

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
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Task::Run(options) => run::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            say(&format!("error: {problem}"));
            ExitCode::FAILURE
        }
    }
}
