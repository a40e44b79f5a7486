//! `logdrive buffer`: looks at or mends the write-ahead buffer of a source that does not run.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use logdrive_connectors::buffer::inspect::{self, Report};

use super::{Outcome, print};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Read every record and verify it. Changes nothing. Exits with 1 if something is damaged.
    Check {
        /// The buffer's folder, such as `data/buffer/shop`.
        dir: PathBuf,
    },
    /// Cut damaged segments at their first bad record; what is cut is kept beside them.
    Repair {
        /// The buffer's folder, such as `data/buffer/shop`.
        dir: PathBuf,
    },
}

pub(super) fn run(command: Command) -> Outcome {
    let result = match &command {
        Command::Check { dir } => inspect::check(&folder(dir)),
        Command::Repair { dir } => inspect::repair(&folder(dir)),
    };
    let report = result.map_err(|error| {
        let cause = std::error::Error::source(&error).map(|e| format!(": {e}")).unwrap_or_default();
        format!("{error}{cause}")
    })?;
    print(&render(&report))?;
    Ok(if report.damage.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The buffer lies in a folder of its own inside the source's.
fn folder(dir: &Path) -> PathBuf {
    let inner = dir.join("buffer");
    if inner.is_dir() { inner } else { dir.to_owned() }
}

fn render(report: &Report) -> String {
    let mut out = String::new();
    for segment in &report.segments {
        let state = match &segment.bad {
            Some((offset, what)) if segment.torn => format!("torn tail at byte {offset}: {what}"),
            Some((offset, what)) => format!("DAMAGED at byte {offset}: {what}"),
            None => "whole".into(),
        };
        let name = segment.path.file_name().unwrap_or_default().to_string_lossy();
        writeln!(
            out,
            "{name}  from message {}  {} messages  {} bytes  {state}",
            segment.first, segment.messages, segment.bytes
        )
        .expect("writing to a string cannot fail");
    }
    if let Some(delivered) = report.delivered {
        writeln!(out, "delivered before message {delivered}").expect("writing to a string cannot fail");
    }
    writeln!(out, "{} messages wait for delivery", report.undelivered_messages)
        .expect("writing to a string cannot fail");
    for file in &report.damaged_files {
        writeln!(out, "cut off earlier: {}", file.display()).expect("writing to a string cannot fail");
    }
    if let Some(damage) = &report.damage {
        writeln!(out, "{}: byte {}: {}", damage.path.display(), damage.offset, damage.what)
            .expect("writing to a string cannot fail");
        writeln!(out, "`logdrive buffer repair` cuts it off and keeps it beside the segment")
            .expect("writing to a string cannot fail");
    }
    out
}
