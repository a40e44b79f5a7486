//! The command line.

mod audit;
mod buffer;
mod check;
mod checkpoint;
mod explain;
mod generate;
mod infer;
mod plan;
mod rejects;
mod remote;
mod run;
mod sql;
mod test;
mod top;

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Files, Plan, PlanContext};

/// Collect, parse, enrich, detect, store and prove: one binary for logs.
#[derive(Debug, Parser)]
#[command(name = "logdrive", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Verify, prove or export an audit log.
    #[command(subcommand)]
    Audit(audit::Command),
    /// Look at or mend the write-ahead buffer of a source that does not run.
    #[command(subcommand)]
    Buffer(buffer::Command),
    /// Check configuration files: every error, with its place.
    Check(PipelineFiles),
    /// Look at the checkpoints of a pipeline that does not run.
    #[command(subcommand)]
    Checkpoint(checkpoint::Command),
    /// Show how the views of a pipeline are computed; with `--watermarks`, how far event time has come in a running one.
    Explain(explain::Explain),
    /// Write simulated e-commerce events to standard output.
    Generate(generate::Generate),
    /// Draw a pipeline as Mermaid or Graphviz.
    Graph {
        #[command(flatten)]
        files: PipelineFiles,
        /// How to draw.
        #[arg(long, value_enum, default_value_t)]
        format: config::graph::Format,
    },
    /// Print the `schema:` block that fits a file of JSON lines.
    Infer(infer::Infer),
    /// Say what becomes of the state on disk if this configuration is started: kept, rebuilt or dropped.
    Plan(plan::Plan),
    /// List or replay rejects.
    #[command(subcommand)]
    Rejects(rejects::Command),
    /// Run a pipeline until its sources end or it is stopped.
    Run(run::Run),
    /// Print the JSON Schema of pipeline files, for editors.
    Schema,
    /// Query Parquet by path, `SELECT … FROM 'data/lake'`, and the live views of a running pipeline.
    Sql(sql::Sql),
    /// Show live samples of a stream of a running pipeline.
    Tap(remote::Tap),
    /// Run the `tests:` of configuration files.
    Test(PipelineFiles),
    /// Watch a running pipeline, full screen.
    Top(remote::Api),
}

#[derive(Args, Clone, Debug)]
struct PipelineFiles {
    /// Pipeline files; several are read as one.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// What a command ends with: a message for people, already rendered.
type Outcome = Result<ExitCode, String>;

/// Runs the command line.
#[must_use]
pub fn main() -> ExitCode {
    let command = Cli::parse().command;
    if !matches!(command, Command::Run(_)) {
        // A pipe that closes early (`logdrive sql … | head`) ends the process quietly, as users expect of a command. Not
        // so a pipeline: there it is a connection that broke, which its sink deals with.
        reset_sigpipe();
    }
    let outcome = match command {
        Command::Audit(command) => audit::run(command),
        Command::Buffer(command) => buffer::run(command),
        Command::Check(files) => check::run(&files),
        Command::Checkpoint(command) => checkpoint::run(&command),
        Command::Explain(command) => explain::run(&command),
        Command::Generate(command) => generate::run(&command),
        Command::Graph { files, format } => check::graph(&files, format),
        Command::Infer(command) => infer::run(&command),
        Command::Plan(command) => plan::run(&command),
        Command::Rejects(command) => rejects::run(command),
        Command::Run(command) => run::run(&command),
        Command::Schema => print(&format!("{:#}\n", config::reference::json_schema())),
        Command::Sql(command) => sql::run(&command),
        Command::Tap(command) => remote::tap(&command),
        Command::Test(files) => test::run(&files),
        Command::Top(command) => top::run(&command),
    };
    match outcome {
        Ok(code) => code,
        Err(message) => {
            let mut stderr = std::io::stderr().lock();
            // With standard error gone there is nobody to tell.
            writeln!(stderr, "{}", message.trim_end()).ok();
            ExitCode::FAILURE
        }
    }
}

#[allow(unsafe_code, reason = "restoring a signal's default action has no safe interface")]
fn reset_sigpipe() {
    // SAFETY: called before any other thread exists; SIG_DFL is a valid action for SIGPIPE.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

fn print(text: &str) -> Outcome {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|e| e.to_string())?;
    Ok(ExitCode::SUCCESS)
}

/// Loads files; the error is the rendered report.
fn load(files: &PipelineFiles) -> Result<(Files, Plan), String> {
    let cx = PlanContext { working_dir: std::env::current_dir().map_err(|e| e.to_string())? };
    let (files, plan) = config::load(&files.files, &cx);
    match plan {
        Ok(plan) => Ok((files, plan)),
        Err(errors) => Err(config::report::render(&files, &errors, std::io::stderr().is_terminal())),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| e.to_string())
}

/// An error, and all that led to it.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        message.push_str(": ");
        message.push_str(&cause.to_string());
        source = cause.source();
    }
    message
}
