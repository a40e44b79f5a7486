//! `logdrive run`: runs a pipeline until its sources end or it is stopped.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use logdrive_connectors::Metrics;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::{Outcome, PipelineFiles, load, runtime};
use crate::api;
use crate::config::Plan;
use crate::topology::{self, RunError, Stand};

mod status_line;

#[derive(Args, Debug)]
pub(super) struct Run {
    #[command(flatten)]
    files: PipelineFiles,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
    /// What is logged, such as `info` or `logdrive_connectors=debug`.
    #[arg(long, env = "LOGDRIVE_LOG", default_value = "info")]
    log: String,
    /// Do not draw the status line.
    #[arg(long)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    #[default]
    Text,
}

pub(super) fn run(command: &Run) -> Outcome {
    logdrive_connectors::memory::keep_freed_blocks();
    let (files, plan) = load(&command.files)?;
    let line = status_line::StatusLine::new(!command.quiet && std::io::stderr().is_terminal());
    start_logging(command, &line)?;
    topology::exit_on_panic();
    let outcome = runtime()?.block_on(drive(plan, line));
    match outcome {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(RunError::Config(errors)) => {
            Err(crate::config::report::render(&files, &errors, std::io::stderr().is_terminal()))
        }
        Err(error) => Err(format!("error: {}", super::with_causes(&error))),
    }
}

fn start_logging(command: &Run, line: &status_line::StatusLine) -> Result<(), String> {
    let filter = EnvFilter::try_new(&command.log).map_err(|e| format!("--log: {e}"))?;
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(line.writer());
    match command.log_format {
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init(),
        LogFormat::Text => {
            let color = std::io::stderr().is_terminal();
            registry.with(layer.with_ansi(color).with_target(false)).try_init()
        }
    }
    .map_err(|e| e.to_string())
}

async fn drive(plan: Plan, line: status_line::StatusLine) -> Result<(), RunError> {
    let metrics = Arc::new(Metrics::new());
    metrics.start_time.set(topology::now_micros() as f64 / 1e6);
    let (listen, postgres) = (plan.api, plan.postgres.clone());
    let hints = hints(&plan);
    let running = topology::start(plan, metrics, Stand::default()).await?;
    let view = running.view().clone();
    if let Some(listen) = listen {
        match api::serve(listen, view.clone()).await {
            Ok(bound) => info!(listen = %bound, "API is open."),
            Err(error) => {
                // Metrics are worth less than logs: a taken port must not keep the pipeline from running.
                warn!(%listen, %error, "The API is off: its address cannot be bound.");
            }
        }
    }
    if let Some(plan) = postgres {
        let listen = plan.config.listen;
        match crate::postgres::serve(plan, view.clone()).await {
            Ok(bound) => info!(listen = %bound, "PostgreSQL clients are listened to."),
            Err(error) => {
                warn!(%listen, %error, "PostgreSQL clients are not listened to: the address cannot be bound.")
            }
        }
    }
    let mut stderr = std::io::stderr();
    // Nobody reads it if this fails.
    writeln!(stderr, "ready").ok();
    for hint in hints {
        line.print(&hint);
    }
    let drawing = tokio::spawn(line.clone().draw(view.clone()));
    let shutdown = view.shutdown.clone();
    tokio::spawn(async move {
        let (Ok(mut interrupt), Ok(mut terminate)) =
            (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            warn!("Signals cannot be received; stop with SIGKILL, nothing acknowledged is lost.");
            return;
        };
        let mut stopping = false;
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if stopping {
                warn!("Stopped at once; what was not delivered waits in the buffers.");
                std::process::exit(130);
            }
            stopping = true;
            info!("Stopping: no new input, delivering what is there. Once more stops at once.");
            shutdown.cancel();
        }
    });
    let result = running.wait().await;
    drawing.abort();
    line.clear();
    if result.is_ok() {
        info!("Everything is delivered.");
    }
    result
}

/// What a person at a terminal may want to know next.
fn hints(plan: &Plan) -> Vec<String> {
    if !std::io::stderr().is_terminal() {
        return Vec::new();
    }
    let mut hints = Vec::new();
    for sink in &plan.sinks {
        let Some(path) = sink.node.get("path").and_then(|n| n.as_str()) else { continue };
        match sink.entry.name {
            "audit" => hints.push(format!("  logdrive audit verify {path}")),
            "parquet" => hints.push(format!("  logdrive sql \"SELECT count(*) FROM '{path}'\"")),
            _ => {}
        }
    }
    if let Some(api) = plan.api {
        hints.push("  logdrive top".to_owned());
        hints.push(format!("  curl http://{api}/metrics"));
    }
    if !hints.is_empty() {
        hints.insert(0, "While it runs, in another terminal:".to_owned());
        hints.push("Ctrl-C stops it.".to_owned());
    }
    hints
}
