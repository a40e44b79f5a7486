//! `logdrive checkpoint`: looks at the checkpoints of a pipeline that does not run.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use logdrive_connectors::object_stores;
use logdrive_schemas::Epoch;

use super::{Outcome, print};
use crate::checkpoint::inspect::Shelf;
use crate::checkpoint::{Blob, Manifest, Place};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Say what is in each checkpoint: operators, rows, bytes, positions of the sources. Changes nothing.
    Inspect {
        /// The folder, such as `data` or `data/checkpoints`, or a URL such as `s3://bucket/prefix`.
        place: String,
        #[command(flatten)]
        options: StoreOptions,
    },
    /// Read everything and compare it with its checksums. Exits with 1 if something is damaged, and says what.
    Verify {
        /// The folder, such as `data` or `data/checkpoints`, or a URL such as `s3://bucket/prefix`.
        place: String,
        #[command(flatten)]
        options: StoreOptions,
    },
}

/// What an object store needs beside its URL.
#[derive(Args, Debug)]
pub(super) struct StoreOptions {
    /// An option of the object store, such as `aws_endpoint=http://127.0.0.1:9000`; more than one may be given.
    /// Credentials come from the environment (`AWS_ACCESS_KEY_ID`, …).
    #[arg(long = "option", value_name = "KEY=VALUE", value_parser = option)]
    options: Vec<(String, String)>,
}

fn option(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("an option is written KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// What a command was told of: a folder, in which checkpoints may have one of their own, or an object store.
pub(super) fn place_of(named: &str, options: &StoreOptions) -> Place {
    if object_stores::is_url(named) {
        let options = options.options.iter().cloned().collect();
        return Place::Store { url: named.to_owned(), options, copies: PathBuf::new() };
    }
    Place::Folder(folder(Path::new(named)))
}

pub(super) fn run(command: &Command) -> Outcome {
    let (Command::Inspect { place, options } | Command::Verify { place, options }) = command;
    let place = place_of(place, options);
    let failed = |e| format!("{place}: {e}");
    let shelf = Shelf::open(&place).map_err(failed)?;
    let found = shelf.list().map_err(failed)?;
    if found.is_empty() {
        return Err(format!("{place}: no checkpoints"));
    }
    let (mut out, mut n_damaged) = (String::new(), 0);
    for (cut, manifest) in &found {
        let damages = match (manifest, command) {
            (Ok(manifest), Command::Inspect { .. }) => {
                describe(&mut out, manifest);
                continue;
            }
            (Ok(manifest), Command::Verify { .. }) => shelf.verify(manifest),
            (Err(damage), _) => vec![damage.clone()],
        };
        let n_files = manifest.as_ref().map_or(0, |manifest| manifest.files().count());
        let state = if damages.is_empty() { format!("whole: {n_files} files") } else { "DAMAGED".to_owned() };
        write_line(&mut out, &format!("{}  {state}", title(*cut)));
        damages.iter().for_each(|damage| write_line(&mut out, &format!("  {damage}")));
        n_damaged += usize::from(!damages.is_empty());
    }
    if n_damaged == found.len() {
        write_line(&mut out, "none is whole: the pipeline would not start");
    } else if n_damaged > 0 {
        write_line(&mut out, "the pipeline starts from the newest that is whole");
    }
    print(&out)?;
    Ok(if n_damaged == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Checkpoints lie in a folder of their own inside the pipeline's.
fn folder(dir: &Path) -> PathBuf {
    let inner = dir.join("checkpoints");
    if inner.is_dir() { inner } else { dir.to_owned() }
}

/// When a cut was, as people and as machines say it.
pub(super) fn title(cut: u64) -> String {
    let micros = i64::try_from(cut).unwrap_or(i64::MAX).saturating_mul(Epoch::UNIT_US);
    let at = Timestamp::from_microsecond(micros).map_or_else(|_| "?".to_owned(), |at| at.to_string());
    format!("epoch {cut}  {at}")
}

fn describe(out: &mut String, manifest: &Manifest) {
    let (n_files, n_bytes) = manifest.files().fold((0, 0), |(n, bytes), file| (n + 1, bytes + file.bytes));
    let workers = manifest.workers;
    write_line(out, &format!("{}  {workers} workers  {n_files} files  {n_bytes} bytes", title(manifest.cut)));
    for (source, partitions) in &manifest.positions {
        for (partition, offset) in partitions {
            write_line(out, &format!("  source {source}  partition {partition}  up to offset {offset}"));
        }
    }
    for (name, operator) in &manifest.operators {
        let state = match &operator.state {
            Blob::Inline(text) => format!("{} bytes in the manifest", text.len() * 3 / 4),
            Blob::File(file) => format!("{}  {} bytes  xxh3 {}", file.name, file.bytes, file.xxh3),
        };
        write_line(out, &format!("  operator {name}  fingerprint {}  state: {state}", operator.fingerprint));
        for (table, rows) in &operator.tables {
            let keys = if rows.keys > 0 { "by key" } else { "without keys" };
            let n_rows: u64 = rows.runs.iter().map(|run| run.rows).sum();
            write_line(out, &format!("    table {table}  {keys}  {n_rows} rows in {} runs", rows.runs.len()));
            for run in &rows.runs {
                let file = run.file.as_ref();
                let file = file.map_or_else(
                    || "no file".to_owned(),
                    |file| format!("{}  {} bytes  xxh3 {}", file.name, file.bytes, file.xxh3),
                );
                let (rows, removed, dropped) = (run.rows, run.removed, run.dropped.len());
                let line = format!(
                    "      {file}  {rows} rows  {removed} keys removed  {dropped} partitions dropped"
                );
                write_line(out, &line);
            }
        }
    }
}

fn write_line(out: &mut String, line: &str) {
    writeln!(out, "{line}").expect("writing to a string cannot fail");
}
