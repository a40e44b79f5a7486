//! `docs/benchmarks.md`: what was measured, on what, and who is ahead.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::error::{Result, fail};
use crate::limits::Limits;
use crate::measure::Outcome;
use crate::products::Product;
use crate::stage::load;
use crate::workload::Workload;

/// CPU-seconds per million lines of a simd-json tape on the machine where the reference figures come from.
pub const REFERENCE_TAPE: f64 = 0.43;

/// Smallest, middle and largest of some figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The smallest.
    pub min: f64,
    /// The middle one; of an even number the mean of the two in the middle.
    pub median: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of at least one figure.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.len() {
            0 => return None,
            n if n % 2 == 1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        };
        Some(Self { min: sorted[0], median, max: *sorted.last()? })
    }
}

struct Line {
    product: String,
    ours: bool,
    note: &'static str,
    runs: Vec<Outcome>,
    half_load: Option<Outcome>,
}

impl Line {
    fn spread(&self, figure: impl Fn(&Outcome) -> f64) -> Option<Spread> {
        Spread::of(self.runs.iter().filter(|run| run.is_right()).map(figure))
    }

    fn right(&self) -> String {
        let mut wrong = self.runs.iter().chain(&self.half_load).filter(|run| !run.is_right());
        let Some(first) = wrong.next() else {
            let text = self.runs.iter().any(|run| run.verdict.as_ref().is_some_and(|v| v.numbers_as_text));
            return match (self.runs.iter().any(|run| run.verdict.is_some()), text) {
                (false, _) => "not visible".to_owned(),
                (true, false) => "yes".to_owned(),
                (true, true) => "yes; numbers became text".to_owned(),
            };
        };
        let at = if first.rate.is_some() { " at half load" } else { "" };
        format!(
            "**no**: {} of {} runs{at}: {}",
            1 + wrong.count(),
            self.runs.len(),
            first.faults().replace('|', "/")
        )
    }
}

/// The results of one workload.
pub struct Table {
    workload: Workload,
    limits: Limits,
    lines: Vec<Line>,
}

impl Table {
    /// An empty table.
    pub fn new(workload: Workload, limits: Limits) -> Self {
        Self { workload, limits, lines: Vec::new() }
    }

    /// Which workload.
    pub fn workload(&self) -> Workload {
        self.workload
    }

    /// Adds a run.
    pub fn add(&mut self, product: &dyn Product, outcome: Outcome) {
        match self.lines.iter_mut().find(|line| line.product == outcome.product) {
            Some(line) => line.runs.push(outcome),
            None => self.lines.push(Line {
                product: outcome.product.clone(),
                ours: product.is_ours(),
                note: product.way(self.workload).map_or("", |way| way.note),
                runs: vec![outcome],
                half_load: None,
            }),
        }
    }

    /// Adds the run at half load of a product that is in the table.
    pub fn add_half_load(&mut self, outcome: Outcome) {
        if let Some(line) = self.lines.iter_mut().find(|line| line.product == outcome.product) {
            line.half_load = Some(outcome);
        }
    }

    /// The median of the events a second of a product's right runs.
    pub fn median_rate(&self, product: &str) -> Option<f64> {
        let line = self.lines.iter().find(|line| line.product == product)?;
        Some(line.spread(Outcome::events_per_second)?.median)
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "\n### {}: {}\n", self.workload.name(), self.workload.title())?;
        writeln!(
            out,
            "| product | CPU-s per M events | events/s | MB/s | peak RSS MB | p50 / p99 ms at half load | complete and right |"
        )?;
        writeln!(out, "|---|---:|---:|---:|---:|---:|---|")?;
        for line in &self.lines {
            let note = if line.note.is_empty() { String::new() } else { format!(" ({})", line.note) };
            let name = if line.ours {
                format!("**{}**{note}", line.product)
            } else {
                format!("{}{note}", line.product)
            };
            let Some((cpu, rate)) =
                line.spread(Outcome::cpu_per_million).zip(line.spread(Outcome::events_per_second))
            else {
                writeln!(out, "| {name} | – | – | – | – | – | {} |", line.right())?;
                continue;
            };
            let bytes = line.spread(Outcome::megabytes_per_second).map_or(0.0, |spread| spread.median);
            let memory = line.spread(|run| run.memory as f64 / 1e6).map_or(0.0, |spread| spread.max);
            let delays = line.half_load.as_ref().filter(|run| run.is_right()).and_then(|run| run.delays);
            let delays =
                delays.map_or("–".to_owned(), |delays| format!("{:.1} / {:.1}", delays.p50, delays.p99));
            writeln!(
                out,
                "| {name} | **{:.2}** ({:.2}–{:.2}) | {} ({}–{}) | {bytes:.0} | {memory:.0} | {delays} | {} |",
                cpu.median,
                cpu.min,
                cpu.max,
                thousands(rate.median),
                thousands(rate.min),
                thousands(rate.max),
                line.right()
            )?;
        }
        for (name, figure) in self.reference() {
            writeln!(out, "| *{name}, by reference* | *{figure:.2}* | | | | | |")?;
        }
        self.judge(out)
    }

    /// The figures of products that cannot be had here, as they would be on this machine.
    fn reference(&self) -> Vec<(&'static str, f64)> {
        let factor = self.limits.tape / REFERENCE_TAPE;
        self.workload.reference().into_iter().map(|(name, figure)| (name, figure * factor)).collect()
    }

    fn judge(&self, out: &mut String) -> std::fmt::Result {
        let cpu = |line: &Line| line.spread(Outcome::cpu_per_million).map(|spread| spread.median);
        let rate = |line: &Line| line.spread(Outcome::events_per_second).map(|spread| spread.median);
        let measured: Vec<(&str, f64)> = self
            .lines
            .iter()
            .filter(|line| !line.ours)
            .filter_map(|line| Some((line.product.as_str(), cpu(line)?)))
            .collect();
        let fastest = self
            .lines
            .iter()
            .filter(|line| !line.ours)
            .filter_map(|line| Some((line.product.as_str(), rate(line)?)));
        let fastest = fastest.max_by(|a, b| a.1.total_cmp(&b.1));
        for line in self.lines.iter().filter(|line| line.ours) {
            let (Some(own), Some(speed)) = (cpu(line), rate(line)) else { continue };
            writeln!(out)?;
            write!(out, "{}:", line.product)?;
            match best(&measured) {
                Some((name, figure)) => write!(out, " {}", compared(own, name, figure, "measured"))?,
                None => write!(out, " no peer was measured")?,
            }
            if let Some((name, figure)) = best(&self.reference()) {
                write!(out, "; {}", compared(own, name, figure, "by reference"))?;
            }
            if let Some((name, figure)) = fastest {
                write!(out, "; {:.1} times the events/s of {name}", speed / figure)?;
                if speed < figure {
                    write!(out, ": **{name} is ahead in events/s**")?;
                }
            }
            writeln!(out, ".")?;
        }
        Ok(())
    }
}

fn best<'a>(figures: &[(&'a str, f64)]) -> Option<(&'a str, f64)> {
    figures.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1))
}

/// Who uses less CPU, and by how much.
fn compared(own: f64, name: &str, figure: f64, how: &str) -> String {
    if own <= figure {
        format!("1/{:.1} of the CPU of the best peer {how}, {name}", figure / own.max(1e-9))
    } else {
        format!("{:.1} times the CPU of the best peer {how}: **{name} is ahead**", own / figure)
    }
}

/// `1234567` as `1 235 k`.
fn thousands(figure: f64) -> String {
    format!("{:.0} k", figure / 1000.0)
}

/// Everything that goes into the file.
pub struct Report {
    rounds: u32,
    lines: u64,
    date: String,
    load: f64,
    products: Vec<(String, String)>,
    skipped: Vec<(String, String)>,
    limits: Limits,
    tables: Vec<Table>,
    trials: Vec<String>,
}

impl Report {
    /// Begins one: notes date and load.
    pub fn begin(rounds: u32, lines: u64) -> Self {
        Self {
            rounds,
            lines,
            date: jiff::Zoned::now().strftime("%Y-%m-%d %H:%M %Z").to_string(),
            load: load(),
            products: Vec::new(),
            skipped: Vec::new(),
            limits: Limits::default(),
            tables: Vec::new(),
            trials: Vec::new(),
        }
    }

    /// Notes a peer that is not at hand.
    pub fn skip(&mut self, name: &str, why: &str) {
        crate::say(&format!("skipped {name}: {why}"));
        self.skipped.push((name.to_owned(), why.to_owned()));
    }

    /// Notes the products.
    pub fn products(&mut self, all: &[Box<dyn Product>]) {
        self.products =
            all.iter().map(|product| (product.name().to_owned(), product.version().to_owned())).collect();
    }

    /// Notes the limits.
    pub fn limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Adds a workload.
    pub fn table(&mut self, table: Table) {
        self.tables.push(table);
    }

    /// The tables so far.
    pub fn tables(&self) -> &[Table] {
        &self.tables
    }

    /// Adds a section of a trial, in Markdown.
    pub fn trial(&mut self, section: String) {
        self.trials.push(section);
    }

    /// Writes the file.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = self.text()?;
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(path, text).map_err(fail(format_args!("cannot write {}", path.display())))?;
        Ok(())
    }

    fn text(&self) -> Result<String> {
        let mut out = String::new();
        let command: Vec<String> = std::env::args().skip(1).collect();
        writeln!(
            out,
            "# Benchmarks\n\nWritten by `cargo run --release -p logdrive-compare -- {}`; do not edit.\n",
            command.join(" ")
        )?;
        out.push_str(METHOD);
        writeln!(out, "\n## Machine and versions\n\n{}", machine(self.load, &self.date))?;
        writeln!(
            out,
            "{} rounds of {} lines, products in turn within each round.\n",
            self.rounds, self.lines
        )?;
        for (name, version) in &self.products {
            writeln!(out, "- {name} {version}")?;
        }
        for (name, why) in &self.skipped {
            writeln!(out, "- skipped: {name}, {}", why.replace('\n', " "))?;
        }
        self.write_limits(&mut out)?;
        writeln!(out, "\n## Workloads")?;
        for table in &self.tables {
            table.write(&mut out)?;
        }
        writeln!(out, "\n### W8: Kafka\n\nNot measured: needs Kafka connectors.")?;
        for trial in &self.trials {
            out.push('\n');
            out.push_str(trial);
        }
        Ok(out)
    }

    fn write_limits(&self, out: &mut String) -> std::fmt::Result {
        let limits = self.limits;
        writeln!(
            out,
            "\n## Limits of this machine\n\nThe JSON lines of the workloads, mean {:.0} bytes; best of three.\n",
            limits.line
        )?;
        writeln!(out, "| what | CPU-s per M lines |\n|---|---:|")?;
        for (what, figure) in [
            ("find the ends of lines in memory", limits.newlines),
            ("copy in memory", limits.copy),
            ("read from a loopback connection and drop", limits.discard),
            ("simd-json: tape of each line, buffers reused", limits.tape),
            ("serde_json: each line to `Value`", limits.value),
        ] {
            writeln!(out, "| {what} | {figure:.3} |")?;
        }
        writeln!(
            out,
            "\nThe loopback carries {:.1} M lines/s. A file is written and synced with {:.0} MB/s.",
            limits.discard_rate / 1e6,
            limits.disk / 1e6
        )
    }
}

const METHOD: &str = "\
How it is measured: one sender and one connection over the loopback; sender, receiver and product share the machine. The main figure is
user and system CPU time of the product's process per million events sent, from just before the first byte until everything has arrived and
the product is quiet (W6: from its start); events/s counts until the last line has arrived. In brackets: smallest and largest run.
Every run is checked: each line carries an id, a bitmap finds losses and repetitions, and one line in 97 is compared in full with what was
sent. A run that is not complete and right gives no figure, only its fault. W1 has no output; Logdrive's own count is checked there.
Latency is from the moment when an event was meant to be sent, so a product that holds the sender up is charged for it.

Peers run with their defaults, except: queues of rsyslog and syslog-ng are larger and block instead of dropping; OpenTelemetry's sends batches
of 2000. None of them writes to disk before it goes on, as `logdrive` does by default; `logdrive-memory` is the like-for-like row. The
Elasticsearch sink sends uncompressed, as the peers' do.

\"By reference\": Vector and Fluent Bit are not packaged where this runs. Their figures were measured once with the same kind of input, on a
machine where simd-json's tape takes 0.43 CPU-s per million lines; here they are scaled by the tape of this run. Take them for an estimate:
nothing but the tape was scaled.
";

/// Processor, cores, memory, kernel, load, compiler.
pub fn machine(load: f64, date: &str) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let model = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown processor".to_owned());
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let memory = field(&read("/proc/meminfo"), "MemTotal")
        .and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    let compiler = Command::new("rustc").arg("--version").output();
    let compiler =
        compiler.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    format!(
        "{date}. {model}, {cores} cores, {:.0} GB, Linux {}, load average {load:.2} at the start. {compiler}.\n",
        memory.unwrap_or(0.0) / 1e6,
        read("/proc/sys/kernel/osrelease").trim(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_found() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { min: 1.0, median: 2.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0]).map(|spread| spread.median), Some(2.5));
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn who_is_ahead_is_said() {
        assert!(compared(1.0, "x", 5.0, "measured").starts_with("1/5.0 "));
        assert!(compared(5.0, "x", 2.0, "measured").contains("**x is ahead**"));
    }
}
