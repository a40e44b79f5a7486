//! `docs/benchmarks.md`: what was measured, on what, and who is ahead.

mod table;

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::error::{Result, fail};
use crate::limits::Limits;
use crate::products::Product;
use crate::stage::load;

pub use table::Table;

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

    /// When it began.
    pub fn date(&self) -> &str {
        &self.date
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
        writeln!(out, "# Benchmarks\n\nWritten by `{}`; do not edit.\n", command())?;
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
        if !self.tables.is_empty() {
            writeln!(
                out,
                "\n## Summary\n\nCPU-seconds per million events, and what part of the best peer's that is.\n"
            )?;
            writeln!(
                out,
                "| workload | product | CPU-s per M | of the best peer measured | of the best peer by reference |"
            )?;
            writeln!(out, "|---|---|---:|---|---|")?;
        }
        for table in &self.tables {
            table.summarise(&mut out)?;
        }
        writeln!(out, "\n## Workloads")?;
        for table in &self.tables {
            table.write(&mut out)?;
        }
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

/// The command that was given, without paths: they are this machine's alone.
pub fn command() -> String {
    let mut shown = "cargo run --release -p logdrive-compare --".to_owned();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--binary" | "--scratch" | "--report" => drop(arguments.next()),
            path if ["--binary=", "--scratch=", "--report="]
                .iter()
                .any(|option| path.starts_with(option)) => {}
            _ => shown = shown + " " + &argument,
        }
    }
    shown
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
}
