//! The task `profile`: where the CPU time of a workload goes, as a flame graph and as shares.
//!
//! The product runs the workload as in the comparison while `perf` takes samples of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Cursor};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use inferno::collapse::Collapse;
use inferno::collapse::perf::{Folder, Options as FoldOptions};
use inferno::flamegraph;

use crate::error::{Result, fail};
use crate::products::Buffer;
use crate::run::Common;
use crate::say;
use crate::send::Sender;
use crate::stage::{Far, Setting};
use crate::workload::Workload;

/// Samples a second and processor. Odd, so that it does not beat with timers.
const FREQUENCY: &str = "499";

/// What to look at.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,

    /// Which workload, `W1` to `W7`.
    workload: String,

    /// Where messages wait: `disk` or `memory`.
    #[arg(long, default_value = "disk")]
    buffer: Kind,

    /// How many lines.
    #[arg(long, default_value_t = 4_000_000)]
    lines: u64,

    /// Where the flame graph goes; `profile-W1.svg` in the scratch folder by default.
    #[arg(long)]
    output: Option<PathBuf>,
}

/// Where messages wait.
#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Disk,
    Memory,
}

/// What a sample is counted as: the first of these of which a frame contains one of the texts.
const SHARES: &[(&str, &[&str])] = &[
    ("page faults", &["exc_page_fault"]),
    ("reading the socket", &["tcp_recvmsg", "sock_read_iter"]),
    ("writing the socket", &["tcp_sendmsg", "sock_write_iter"]),
    ("reading the file", &["ext4_file_read_iter", "filemap_read"]),
    ("writing and syncing the buffer", &["ext4_file_write_iter", "vfs_fsync", "do_fsync", "ext4_sync_file"]),
    ("deleting buffer segments", &["do_unlinkat", "evict", "ext4_truncate"]),
    ("decoding", &["decoders::"]),
    ("making documents", &["document::"]),
    ("steps", &["logdrive_operators::steps", "datafusion", "maxminddb"]),
    ("sink", &["sinks::", "hyper", "reqwest"]),
    ("framing", &["net::lines", "net::stream", "sources::"]),
    ("buffer in memory", &["buffer::", "crc32fast"]),
    ("topology", &["topology::", "timely"]),
    ("allocator", &["malloc", "free", "realloc", "calloc"]),
    ("scheduling", &["schedule", "futex", "epoll", "tokio", "swapper"]),
];

/// Runs it.
pub fn run(options: &Options) -> Result<()> {
    let workload = Workload::ALL.iter().copied().find(|workload| workload.name() == options.workload);
    let workload = workload.ok_or_else(|| format!("there is no workload {}", options.workload))?;
    let bench = options.common.prepare()?;
    let buffer = match options.buffer {
        Kind::Disk => Buffer::Disk,
        Kind::Memory => Buffer::Memory,
    };
    let product = options.common.product(buffer)?;
    let samples = bench.scratch.join("perf.data");
    let mut stage = bench.stage(&Setting {
        product: &product,
        workload,
        name: "profile",
        lines: options.lines,
        from_file: true,
        connections: 1,
        remember_ids: false,
    })?;
    let before = if workload == Workload::W6 { 0.0 } else { stage.settle()? };
    let mut perf = record(stage.process.id(), &samples)?;
    let sender = (workload != Workload::W6).then(|| Sender::file(stage.file.clone(), stage.input()));
    let deadline = Instant::now() + bench.timeout;
    let blind = matches!(stage.far, Far::Nowhere);
    while Instant::now() < deadline {
        stage.process.check()?;
        sleep(Duration::from_millis(20));
        if sender.as_ref().is_none_or(Sender::is_done) && (blind || stage.ledger.is_complete()) {
            break;
        }
    }
    stage.process.wait_quiet(Duration::from_millis(400), deadline)?;
    let per_million = (stage.process.cpu() - before) / options.lines as f64 * 1e6;
    stop(&mut perf)?;
    stage.end();
    let folded = fold(&samples)?;
    let output = options.output.clone();
    let output = output.unwrap_or_else(|| bench.scratch.join(format!("profile-{}.svg", workload.name())));
    let file = File::create(&output).map_err(fail(format_args!("cannot write {}", output.display())))?;
    let mut picture = flamegraph::Options::default();
    picture.title = format!("{}: {per_million:.2} CPU-seconds per million events", workload.name());
    flamegraph::from_reader(&mut picture, Cursor::new(&folded), BufWriter::new(file))?;
    say(&format!("{}\n{}", shares(&String::from_utf8_lossy(&folded), per_million), output.display()));
    Ok(())
}

fn record(pid: u32, samples: &std::path::Path) -> Result<Child> {
    let perf = Command::new("perf")
        .args([
            "record",
            "--quiet",
            "-F",
            FREQUENCY,
            "--call-graph",
            "dwarf,8192",
            "-p",
            &pid.to_string(),
            "-o",
        ])
        .arg(samples)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    perf.map_err(fail(format_args!("cannot run perf, of the package linux-perf")))
}

/// Lets `perf` write what it has.
fn stop(perf: &mut Child) -> Result<()> {
    Command::new("sh").args(["-c", &format!("kill -INT {}", perf.id())]).status()?;
    perf.wait()?;
    Ok(())
}

/// The samples as lines `thread;frame;frame count`.
fn fold(samples: &std::path::Path) -> Result<Vec<u8>> {
    let mut script = Command::new("perf")
        .args(["script", "--no-inline", "-i"])
        .arg(samples)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let text = script.stdout.take().ok_or("perf has no output")?;
    let mut folded = Vec::new();
    Folder::from(FoldOptions::default()).collapse(BufReader::new(text), &mut folded)?;
    script.wait()?;
    Ok(folded)
}

/// How much of the time goes where.
fn shares(folded: &str, per_million: f64) -> String {
    let mut counts = BTreeMap::<&str, u64>::new();
    for line in folded.lines() {
        let Some((stack, count)) = line.rsplit_once(' ') else { continue };
        let count: u64 = count.parse().unwrap_or(0);
        let is_of = |texts: &[&str]| texts.iter().any(|text| stack.contains(text));
        let name = SHARES.iter().find(|(_, texts)| is_of(texts)).map_or("other", |(name, _)| name);
        *counts.entry(name).or_default() += count;
    }
    let total = counts.values().sum::<u64>().max(1) as f64;
    let mut counts: Vec<(&str, u64)> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let mut out = String::from("| where | share | ns per event |\n|---|---:|---:|\n");
    for (name, count) in counts {
        let share = count as f64 / total;
        out.push_str(&format!("| {name} | {:.1} % | {:.0} |\n", share * 100.0, share * per_million * 1000.0));
    }
    out.push_str(&format!("| all | 100 % | {:.0} |\n", per_million * 1000.0));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_counted_where_they_belong() {
        let folded = "w;decoders::json::scan 60\nt;buffer::writer;exc_page_fault 30\nt;mystery 10\n";
        let shares = shares(folded, 0.5);
        for line in
            ["| decoding | 60.0 % | 300 |", "| page faults | 30.0 % | 150 |", "| other | 10.0 % | 50 |"]
        {
            assert!(shares.contains(line), "{shares}");
        }
    }
}
