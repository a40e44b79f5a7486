//! `logdrive generate`: the traffic of the `generate` source, as lines on standard output.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use logdrive_connectors::sources::generate::{NOMINAL_RATE, ShopOptions, write_lines};

use super::Outcome;
use crate::topology::now_micros;

#[derive(Args, Debug)]
pub(super) struct Generate {
    /// How many events.
    #[arg(long, short = 'n', default_value_t = 1000)]
    count: u64,
    /// Another seed gives other events.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many shops.
    #[arg(long, default_value_t = 12)]
    tenants: u32,
    /// Which fraction of the events is part of a fraud, 0 to 1.
    #[arg(long, default_value_t = 0.002)]
    fraud: f64,
    /// Events per second of event time.
    #[arg(long, default_value_t = NOMINAL_RATE)]
    rate: f64,
    /// When the first event happens, in microseconds since the Unix epoch. Default: now.
    #[arg(long)]
    start: Option<i64>,
    /// A file for the truth about which events are fraud.
    #[arg(long)]
    labels: Option<PathBuf>,
}

pub(super) fn run(command: &Generate) -> Outcome {
    let options = ShopOptions {
        seed: command.seed,
        tenants: command.tenants.clamp(1, 1000),
        fraud: command.fraud,
        rate: command.rate.clamp(0.001, 1e8),
        start: command.start.unwrap_or_else(now_micros),
    };
    let mut labels = match &command.labels {
        Some(path) => {
            Some(BufWriter::new(File::create(path).map_err(|e| format!("{}: {e}", path.display()))?))
        }
        None => None,
    };
    let mut stdout = std::io::stdout().lock();
    let sink = labels.as_mut().map(|file| -> &mut dyn std::io::Write { file });
    write_lines(options, command.count, &mut stdout, sink).map_err(|e| e.to_string())?;
    if let Some(mut labels) = labels {
        labels.flush().map_err(|e| e.to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}
