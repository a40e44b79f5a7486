//! The task `scaling`: what an event costs as something grows, with a plot and the name of the growth for each.
//!
//! Writes `docs/scaling.md` and its plots. Every run ends in a blackhole, which reads all declared fields; its own count
//! says whether all lines came through.

mod growth;
mod plot;
mod series;

use std::fmt::Write;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::data;
use crate::error::{Result, fail};
use crate::process::{Process, free_port};
use crate::products::{Buffer, Logdrive, Product};
use crate::report::{Spread, command, machine};
use crate::run::{Common, Journal};
use crate::say;
use crate::send::Sender;
use crate::stage::{Bench, QUIET, load};
use crate::workload::Workload;
use growth::Growth;
use series::{Point, SERIES, Series};

const START: Duration = Duration::from_secs(60);

/// What to measure, and how often.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,

    /// Which series, such as `keys,fields`; all without.
    #[arg(long, value_delimiter = ',')]
    series: Vec<String>,

    /// How often each point is measured.
    #[arg(long, default_value_t = 3)]
    rounds: u32,

    /// Megabytes that a run sends, where lines do not all need to be different.
    #[arg(long, default_value_t = 300)]
    megabytes: u64,

    /// The most lines of a run: more keys than this are not measured.
    #[arg(long, default_value_t = 10_000_000)]
    max_lines: u64,

    /// Where the text goes; the plots lie beside it.
    #[arg(long, default_value = "docs/scaling.md")]
    report: PathBuf,
}

/// One point of a series, measured.
#[derive(Clone, Debug, Serialize)]
struct Measured {
    series: &'static str,
    x: f64,
    lines: u64,
    bytes: u64,
    /// CPU seconds per million events, each round.
    cpu: Vec<f64>,
    /// Events a second, each round.
    rate: Vec<f64>,
    /// The highest resident memory in bytes.
    memory: u64,
}

/// Measures all series.
pub fn run(options: &Options) -> Result<()> {
    let bench = options.common.prepare()?;
    let ours = options.common.product(Buffer::Memory)?;
    let mut journal = Journal::open(&bench.scratch)?;
    let date = jiff::Zoned::now().strftime("%Y-%m-%d %H:%M %Z").to_string();
    let mut out = format!(
        "# Scaling\n\nWritten by `{}`; do not edit.\n\n{}\n{}\n\
         JSON lines over one TCP connection, buffer in memory, into a blackhole that reads every declared field. Points are medians of {} rounds.\n\
         The growth is that of the line that fits best: the exponent of a power of x, and cost at nothing plus cost of each where that fits better.\n",
        command(),
        machine(load(), &date),
        format_args!("Logdrive {}.\n", ours.version()),
        options.rounds
    );
    let folder = options.report.parent().unwrap_or(Path::new(".")).to_owned();
    fs::create_dir_all(&folder)?;
    let wanted =
        |series: &&Series| options.series.is_empty() || options.series.iter().any(|name| name == series.name);
    for series in SERIES.iter().filter(wanted) {
        let mut points = Vec::new();
        for point in (series.points)(options.megabytes * 1_000_000, options.max_lines) {
            if let Some(needed) = too_large(&points, &point) {
                let text = format!(
                    "{} at {}: not measured, it would need about {:.0} GB",
                    series.title,
                    point.x,
                    needed / 1e9
                );
                say(&text);
                writeln!(out, "\n{text}.")?;
                break;
            }
            match measure(&bench, &ours, series, &point, options.rounds) {
                Ok(measured) => {
                    journal.add(&measured)?;
                    points.push(measured);
                }
                Err(problem) => {
                    say(&format!("{} at {}: {problem}", series.name, point.x));
                    writeln!(out, "\n{} at {}: **{problem}**", series.title, point.x)?;
                }
            }
        }
        section(&mut out, series, &points, &folder)?;
        fs::write(&options.report, &out)
            .map_err(fail(format_args!("cannot write {}", options.report.display())))?;
    }
    say(&format!("wrote {}", options.report.display()));
    Ok(())
}

/// The memory that a point is likely to need, if the machine does not have it to spare: what the last two points
/// needed, drawn out.
fn too_large(points: &[Measured], next: &Point) -> Option<f64> {
    let [.., before, last] = points else { return None };
    let each = (last.memory as f64 - before.memory as f64) / (last.x - before.x);
    let needed = last.memory as f64 + each.max(0.0) * (next.x - last.x);
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let free: f64 = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()?;
    (needed > free * 1024.0 * 0.6).then_some(needed)
}

fn section(out: &mut String, series: &Series, points: &[Measured], folder: &Path) -> Result<()> {
    let median = |figures: &[f64]| Spread::of(figures.iter().copied()).map_or(0.0, |spread| spread.median);
    let shown = |point: &Measured| if series.by_rate { median(&point.rate) } else { median(&point.cpu) };
    let line: Vec<(f64, f64)> = points.iter().map(|point| (point.x, shown(point))).collect();
    let growth = Growth::of(&line, series.by_rate);
    let picture = format!("scaling-{}.svg", series.name);
    plot::draw(&folder.join(&picture), series, &line, growth.as_ref())?;
    writeln!(out, "\n## {}\n\n{}\n\n![{}]({picture})\n", series.title, series.what, series.title)?;
    if let Some(growth) = &growth {
        writeln!(out, "Growth of {}: **{growth}**.\n", series.axis())?;
    }
    writeln!(
        out,
        "| {} | CPU-s per M events | events/s | MB/s | peak RSS MB |\n|---:|---:|---:|---:|---:|",
        series.x
    )?;
    for point in points {
        let (cpu, rate) = (Spread::of(point.cpu.iter().copied()), median(&point.rate));
        let cpu =
            cpu.map(|cpu| format!("{:.2} ({:.2}–{:.2})", cpu.median, cpu.min, cpu.max)).unwrap_or_default();
        let bytes = rate * point.bytes as f64 / point.lines.max(1) as f64 / 1e6;
        let memory = point.memory as f64 / 1e6;
        writeln!(out, "| {} | {cpu} | {:.0} k | {bytes:.0} | {memory:.0} |", point.x, rate / 1000.0)?;
    }
    if let Some(growth) = growth.filter(|_| series.on_paper) {
        on_paper(out, &growth)?;
    }
    Ok(())
}

/// What as many workers would take if each had a core of its own.
fn on_paper(out: &mut String, growth: &Growth) -> Result<()> {
    writeln!(
        out,
        "\nOn paper, with a core for each worker and nothing else in the way, workers take their number by what an event \
         costs among them, by the line of the growth:\n\n\
         | workers | events/s | of what as many alone would take |\n|---:|---:|---:|"
    )?;
    let cost = |workers: f64| growth.at(workers).max(1e-9);
    for workers in (0..=6).map(|power| f64::from(1 << power)) {
        let (rate, share) = (workers / cost(workers), cost(1.0) / cost(workers) * 100.0);
        writeln!(out, "| {workers} | {rate:.1} M | {share:.0} % |")?;
    }
    Ok(())
}

fn measure(bench: &Bench, ours: &Logdrive, series: &Series, point: &Point, rounds: u32) -> Result<Measured> {
    let path = bench.scratch.join("data").join("scaling.log");
    let bytes = data::write_file(&path, point.lines, |index, out| (point.line)(index, point, out))?;
    let mut measured = Measured {
        series: series.name,
        x: point.x,
        lines: point.lines,
        bytes,
        cpu: Vec::new(),
        rate: Vec::new(),
        memory: 0,
    };
    for _ in 0..rounds {
        let (cpu, seconds, memory) = once(bench, ours, point, &path)?;
        measured.cpu.push(cpu / point.lines as f64 * 1e6);
        measured.rate.push(point.lines as f64 / seconds.max(1e-9));
        measured.memory = measured.memory.max(memory);
    }
    let cpu = Spread::of(measured.cpu.iter().copied()).map_or(0.0, |spread| spread.median);
    say(&format!(
        "{:<9} {:>9} {cpu:>8.2} CPU-s per M {:>6.0} MB",
        series.name,
        point.x,
        measured.memory as f64 / 1e6
    ));
    fs::remove_file(&path)?;
    Ok(measured)
}

/// CPU seconds, seconds and peak memory of one run.
fn once(bench: &Bench, ours: &Logdrive, point: &Point, path: &Path) -> Result<(f64, f64, u64)> {
    let folder = bench.folder("logdrive", "scaling")?;
    let (port, api) = (free_port()?, free_port()?);
    let pipeline = format!("api: {{ listen: \"127.0.0.1:{api}\" }}\n{}", (point.pipeline)(point, port));
    let mut process = Process::start(ours.launch_text(&pipeline, &folder)?)?;
    process.wait_listening(port, START)?;
    process.wait_quiet(QUIET, Instant::now() + Duration::from_secs(10))?;
    let (before, start) = (process.cpu(), Instant::now());
    let sender = Sender::file(path.to_owned(), SocketAddr::from(([127, 0, 0, 1], port)));
    while !sender.is_done() {
        process.check()?;
        if start.elapsed() > bench.timeout {
            return Err(format!("not done within {:?}", bench.timeout).into());
        }
        sleep(Duration::from_millis(5));
    }
    let deadline = Instant::now() + bench.timeout;
    let busy = loop {
        let busy = process.wait_quiet(QUIET, Instant::now() + Duration::from_secs(15))?;
        if ours.received(Workload::W1, api) == Some(point.lines) {
            break busy;
        }
        if Instant::now() > deadline {
            return Err(format!(
                "{:?} of {} lines came through",
                ours.received(Workload::W1, api),
                point.lines
            )
            .into());
        }
    };
    let figures =
        (process.cpu() - before, busy.saturating_duration_since(start).as_secs_f64(), process.peak_memory());
    process.stop(Duration::from_secs(10));
    Ok(figures)
}
