//! W10: JSON over TCP into Parquet files. No peer here writes them.

use std::fmt::Write;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use super::Cast;
use crate::data::{self, Format};
use crate::error::Result;
use crate::process::{Process, free_port};
use crate::products::SCHEMA;
use crate::report::Spread;
use crate::run::Journal;
use crate::say;
use crate::send::Sender;

const START: Duration = Duration::from_secs(60);

#[derive(Serialize)]
struct Found {
    name: &'static str,
    seconds: f64,
    cpu_per_million: f64,
    memory: u64,
    /// Bytes of all files.
    stored: u64,
    files: usize,
}

/// Runs it.
pub(super) fn run(cast: &Cast<'_>, journal: &mut Journal) -> Result<String> {
    let mut all = Vec::new();
    for _ in 0..cast.rounds {
        let found = once(cast)?;
        say(&format!(
            "W10  logdrive         {:.2} s, {:.2} CPU-s per M",
            found.seconds, found.cpu_per_million
        ));
        journal.add(&found)?;
        all.push(found);
    }
    let spread = |figure: fn(&Found) -> f64| Spread::of(all.iter().map(figure)).ok_or("no round");
    let (cpu, seconds) = (spread(|found| found.cpu_per_million)?, spread(|found| found.seconds)?);
    let memory = spread(|found| found.memory as f64 / 1e6)?;
    let last = all.last().ok_or("no round")?;
    let (_, bytes) = data::file(&cast.bench.scratch, Format::Json, cast.lines)?;
    let mut out = "## W10: JSON over TCP → Parquet\n\nSorted by time, zstd level 3, without the original text; until the process has drained and ended. \
                   No peer here writes Parquet. Checked with a query: number of rows, of different ids, sum of `status`.\n\n"
        .to_owned();
    writeln!(
        out,
        "| product | CPU-s per M events | events/s | peak RSS MB | bytes stored of bytes in | files |"
    )?;
    writeln!(out, "|---|---:|---:|---:|---:|---:|")?;
    writeln!(
        out,
        "| **logdrive** | **{:.2}** ({:.2}–{:.2}) | {:.0} k | {:.0} | 1/{:.1} | {} |",
        cpu.median,
        cpu.min,
        cpu.max,
        cast.lines as f64 / seconds.median / 1000.0,
        memory.max,
        bytes as f64 / last.stored.max(1) as f64,
        last.files
    )?;
    Ok(out)
}

fn once(cast: &Cast<'_>) -> Result<Found> {
    let folder = cast.bench.folder("logdrive", "W10")?;
    let port = free_port()?;
    let (file, _) = data::file(&cast.bench.scratch, Format::Json, cast.lines)?;
    let lake = folder.join("lake");
    let pipeline = format!(
        "api: off\nsources:\n  in: {{ type: tcp, listen: \"127.0.0.1:{port}\", decoder: json, schema: {SCHEMA} }}\n\
         sinks:\n  lake: {{ type: parquet, from: [in], path: \"{}\", original: false }}\n",
        lake.display()
    );
    let mut process = Process::start(cast.ours.launch_text(&pipeline, &folder)?)?;
    process.wait_listening(port, START)?;
    process.wait_quiet(Duration::from_millis(400), Instant::now() + Duration::from_secs(10))?;
    let (before, start) = (process.cpu(), Instant::now());
    let sender = Sender::file(file, SocketAddr::from(([127, 0, 0, 1], port)));
    while !sender.is_done() && start.elapsed() < cast.bench.timeout {
        process.check()?;
        sleep(Duration::from_millis(5));
    }
    let memory = process.peak_memory();
    let (cpu, ended) = process.drain(cast.bench.timeout);
    let seconds = start.elapsed().as_secs_f64();
    sender.finish()?;
    if !ended {
        return Err("it did not end by itself".into());
    }
    check(cast, &lake, &folder)?;
    let sizes = sizes(&lake)?;
    fs::remove_dir_all(&lake)?;
    fs::remove_dir_all(folder.join("data"))?;
    Ok(Found {
        name: "W10",
        seconds,
        cpu_per_million: (cpu - before) / cast.lines as f64 * 1e6,
        memory,
        stored: sizes.iter().sum(),
        files: sizes.len(),
    })
}

/// Compares what a query says with what was sent.
fn check(cast: &Cast<'_>, lake: &Path, folder: &Path) -> Result<()> {
    let sql = format!("SELECT count(*), count(DISTINCT session_id), sum(status) FROM '{}'", lake.display());
    let answer = cast.ours.query(&sql, folder)?;
    let (mut sum, mut text) = (0, Vec::new());
    for index in 0..cast.lines {
        text.clear();
        data::line(Format::Json, index, &mut text);
        let value: Value = serde_json::from_slice(&text)?;
        sum += value["status"].as_u64().unwrap_or(0);
    }
    let wanted = format!("{},{},{sum}", cast.lines, cast.lines);
    let found = answer
        .lines()
        .find(|line| line.starts_with(|first: char| first.is_ascii_digit()))
        .unwrap_or_default();
    if found == wanted { Ok(()) } else { Err(format!("the files hold {found:?}, not {wanted:?}").into()) }
}

/// The sizes of all Parquet files below a folder.
fn sizes(folder: &Path) -> Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(sizes(&entry.path())?);
        } else if entry.path().extension().is_some_and(|extension| extension == "parquet") {
            found.push(entry.metadata()?.len());
        }
    }
    Ok(found)
}
