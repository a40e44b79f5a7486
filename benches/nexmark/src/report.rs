//! `docs/nexmark.md`: what was measured, on what, and who is ahead.

use std::fmt::{self, Display, Write};
use std::fs;
use std::path::Path;

use logdrive_compare::error::{Result, fail};
use logdrive_compare::report::{Spread, machine};

use crate::peers;
use crate::peers::{DATAFUSION, LOGDRIVE, Product};
use crate::queries::{LEFT_OUT, Query};
use crate::run::Outcome;
use crate::trial::{FEW, Finding, Pair};

/// Events a second and core that are aimed at, in thousands.
const AIMS: &[(&str, f64)] = &[
    ("q0", 1000.0),
    ("q1", 1000.0),
    ("q2", 1000.0),
    ("q5", 500.0),
    ("q7", 300.0),
    ("q14", 1000.0),
    ("q17", 400.0),
    ("q18", 150.0),
    ("q19", 150.0),
    ("q21", 1000.0),
    ("q22", 1000.0),
];

/// A query over rows in memory.
#[derive(Clone, Copy, Debug)]
pub struct InMemory {
    /// Thousands of events a second, as a view.
    rate: Spread,
    /// CPU-seconds per million events, as a view.
    cpu: Spread,
    /// The same with DataFusion.
    floor: Spread,
    /// Rows that left the view.
    n_changes: usize,
}

impl InMemory {
    /// Of the rounds, of which there is at least one.
    #[must_use]
    pub fn of(rounds: &[(Outcome, Outcome)], n_events: usize) -> Self {
        let n_events = n_events as f64;
        let spread = |figure: &dyn Fn(&(Outcome, Outcome)) -> f64| {
            Spread::of(rounds.iter().map(figure)).expect("at least one round")
        };
        Self {
            rate: spread(&|(view, _)| n_events / view.wall.as_secs_f64() / 1e3),
            cpu: spread(&|(view, _)| view.cpu.as_secs_f64() / n_events * 1e6),
            floor: spread(&|(_, batch)| batch.cpu.as_secs_f64() / n_events * 1e6),
            n_changes: rounds.first().map_or(0, |(view, _)| view.n_changes),
        }
    }
}

impl Display for InMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rate, cpu, floor, .. } = self;
        write!(
            f,
            "{:.0} k events/s, {:.2} CPU-s per M, DataFusion {:.2}",
            rate.median, cpu.median, floor.median
        )
    }
}

/// A product's figures for a query over the files, its start taken off.
#[derive(Clone, Copy)]
struct Figures {
    cpu: Spread,
    rate: Spread,
    memory: f64,
    start: f64,
}

impl Figures {
    /// `None` if there are too few events to tell the work from the start.
    fn of(pairs: &[Pair], n_events: f64) -> Option<Self> {
        let start = |figure: fn(&Pair) -> f64| Some(Spread::of(pairs.iter().map(figure))?.median);
        let (cpu, wall) = (start(|pair| pair.start.cpu)?, start(|pair| pair.start.wall)?);
        let above = |work: f64| Some(work).filter(|work| *work > 0.0);
        let costs = pairs.iter().map(|pair| above(pair.whole.cpu - cpu)).collect::<Option<Vec<_>>>()?;
        let times = pairs.iter().map(|pair| above(pair.whole.wall - wall)).collect::<Option<Vec<_>>>()?;
        Some(Self {
            cpu: Spread::of(costs.iter().map(|cost| cost / n_events * 1e6))?,
            rate: Spread::of(times.iter().map(|time| n_events / time / 1e3))?,
            memory: Spread::of(pairs.iter().map(|pair| pair.whole.memory as f64 / 1e6))?.max,
            start: cpu,
        })
    }
}

/// A query's line in all tables.
struct Line {
    query: &'static str,
    what: &'static str,
    in_memory: InMemory,
    from_files: Vec<(Finding, Option<Figures>)>,
}

/// Everything that goes into the file.
pub struct Report {
    n_events: usize,
    per_epoch: usize,
    rounds: usize,
    machine: String,
    /// Name, version and how it does it.
    products: Vec<[&'static str; 3]>,
    skipped: Vec<(String, String)>,
    lines: Vec<Line>,
}

impl Report {
    /// Begins one: notes date and load.
    #[must_use]
    pub fn begin(n_events: usize, per_epoch: usize, rounds: usize, load: f64) -> Self {
        let date = jiff::Zoned::now().strftime("%Y-%m-%d %H:%M %Z").to_string();
        Self {
            n_events,
            per_epoch,
            rounds,
            machine: machine(load, &date),
            products: Vec::new(),
            skipped: Vec::new(),
            lines: Vec::new(),
        }
    }

    /// Notes a peer that is not at hand.
    pub fn skip(&mut self, name: &str, why: &str) {
        logdrive_compare::say(&format!("skipped {name}: {why}"));
        self.skipped.push((name.to_owned(), why.replace('\n', " ")));
    }

    /// Notes the products, in the order of what [`Report::add`] is given.
    pub fn products(&mut self, products: &[Product]) {
        self.products =
            products.iter().map(|product| [product.name, product.version, product.note]).collect();
    }

    /// Adds a query.
    pub fn add(&mut self, query: &Query, in_memory: InMemory, from_files: Vec<Finding>) {
        let n_events = self.n_events.saturating_sub(FEW) as f64;
        let figures = |finding: Finding| {
            let figures = match &finding {
                Finding::Right(pairs) => Figures::of(pairs, n_events),
                Finding::LeftOut | Finding::Fault(_) => None,
            };
            (finding, figures)
        };
        let from_files = from_files.into_iter().map(figures).collect();
        self.lines.push(Line { query: query.name, what: query.what, in_memory, from_files });
    }

    /// Writes the file.
    ///
    /// # Errors
    /// If that fails.
    pub fn write(&self, path: &Path) -> Result<()> {
        fs::write(path, self.text()?).map_err(fail(format_args!("cannot write {}", path.display())))?;
        Ok(())
    }

    fn text(&self) -> std::result::Result<String, fmt::Error> {
        let Self { n_events, per_epoch, rounds, .. } = self;
        let mut out = format!(
            "# Nexmark\n\nWritten by `cargo run --release -p logdrive-nexmark -- --events {n_events} --epoch {per_epoch} --rounds {rounds}`; do not \
             edit.\n\n{}\n{n_events} events (2 % persons, 6 % auctions, 92 % bids), the same in every run, {per_epoch} in an epoch; {rounds} rounds, in \
             turn within each. Everything measured is bound to one core. CPU-s are user and system time per million events of all kinds, also where a \
             query reads bids alone: the median, in brackets the smallest and the largest.\n",
            self.machine
        );
        self.write_in_memory(&mut out)?;
        self.write_from_files(&mut out)?;
        self.write_notes(&mut out)?;
        Ok(out)
    }

    fn write_in_memory(&self, out: &mut String) -> fmt::Result {
        out.push_str(IN_MEMORY);
        for Line { query, what, in_memory, .. } in &self.lines {
            let aim = AIMS.iter().find(|(name, _)| name == query);
            let aim = aim.map_or("–".to_owned(), |(_, aim)| {
                let verdict = if in_memory.rate.median >= *aim { "reached" } else { "**missed**" };
                format!("{aim:.0} k, {verdict}")
            });
            writeln!(
                out,
                "| {query} | {what} | {:.0} k | {aim} | {} | {} | {} |",
                in_memory.rate.median,
                shown(in_memory.cpu),
                shown(in_memory.floor),
                in_memory.n_changes
            )?;
        }
        Ok(())
    }

    fn write_from_files(&self, out: &mut String) -> fmt::Result {
        out.push_str(FROM_FILES);
        self.write_table(out, "CPU-seconds per million events", true, |figures| shown(figures.cpu))?;
        self.write_table(out, "Thousands of events per second", false, |figures| {
            format!("{:.0}", figures.rate.median)
        })?;
        self.write_table(out, "Peak resident memory, MB", false, |figures| format!("{:.0}", figures.memory))?;
        self.write_table(out, "CPU-seconds of a start, taken off above", false, |figures| {
            format!("{:.2}", figures.start)
        })
    }

    fn write_table(
        &self,
        out: &mut String,
        title: &str,
        ranks: bool,
        cell: impl Fn(&Figures) -> String,
    ) -> fmt::Result {
        let names: Vec<&str> = self.products.iter().map(|[name, ..]| *name).collect();
        writeln!(
            out,
            "\n### {title}\n\n| query | {} |{}\n|---|{}{}",
            names.join(" | "),
            if ranks { " least, DataFusion aside |" } else { "" },
            "---:|".repeat(names.len()),
            if ranks { "---|" } else { "" }
        )?;
        for line in &self.lines {
            let cells = line.from_files.iter().map(|(finding, figures)| match (finding, figures) {
                (_, Some(figures)) => cell(figures),
                (Finding::LeftOut, _) => "–".to_owned(),
                (Finding::Fault(_), _) => "wrong".to_owned(),
                (Finding::Right(_), None) => "too short".to_owned(),
            });
            let cells = cells.collect::<Vec<_>>().join(" | ");
            let least = if ranks { format!(" {} |", self.least(line)) } else { String::new() };
            writeln!(out, "| {} | {cells} |{least}", line.query)?;
        }
        Ok(())
    }

    /// Who of those that follow a stream takes the least CPU time, and how much of that of the next.
    fn least(&self, line: &Line) -> String {
        let figures = self.products.iter().zip(&line.from_files);
        let figures = figures.filter(|([name, ..], _)| *name != DATAFUSION.name);
        let mut costs: Vec<(&str, f64)> = figures
            .filter_map(|([name, ..], (_, figures))| Some((*name, figures.as_ref()?.cpu.median)))
            .collect();
        costs.sort_by(|(_, a), (_, b)| a.total_cmp(b));
        match costs[..] {
            [(first, cost), (next, other), ..] if first == LOGDRIVE.name => {
                format!("{first}: {next} takes {:.1} times as much", other / cost)
            }
            [(first, cost), ..] if first != LOGDRIVE.name => {
                let ours = costs.iter().find(|(name, _)| *name == LOGDRIVE.name);
                let times = ours.map_or(String::new(), |(_, ours)| {
                    format!(": Logdrive takes {:.1} times as much", ours / cost)
                });
                format!("**{first}{times}**")
            }
            _ => "–".to_owned(),
        }
    }

    fn write_notes(&self, out: &mut String) -> fmt::Result {
        let faults = self.lines.iter().flat_map(|line| {
            let of_line = self.products.iter().zip(&line.from_files);
            of_line.filter_map(|([name, ..], (finding, _))| match finding {
                Finding::Fault(fault) => Some((line.query, *name, fault)),
                Finding::LeftOut | Finding::Right(_) => None,
            })
        });
        for (n, (query, name, fault)) in faults.enumerate() {
            let head = if n == 0 { "\nWrong answers, which give no figure:\n\n" } else { "" };
            writeln!(out, "{head}- {name}, {query}: {fault}")?;
        }
        out.push_str("\n## Products\n\n");
        for [name, version, note] in &self.products {
            writeln!(out, "- {name} {version}: {note}.")?;
        }
        for (name, why) in &self.skipped {
            writeln!(out, "- Not at hand: {name}: {why}.")?;
        }
        out.push_str("\nQueries and products that are left out:\n\n");
        for (name, why) in LEFT_OUT {
            writeln!(out, "- {name}: {why}.")?;
        }
        for (name, why) in peers::LEFT_OUT {
            writeln!(out, "- {name}: {why}.")?;
        }
        Ok(())
    }
}

fn shown(spread: Spread) -> String {
    let Spread { min, median, max } = spread;
    format!("{median:.2} ({min:.2}–{max:.2})")
}

const IN_MEMORY: &str = "
## Rows in memory: Logdrive, and DataFusion as the floor

Each query as a view, in a dataflow of one worker, over Arrow batches that are there before the clock starts; no checkpoints. Every change of the
result is produced, epoch by epoch. \"Over a table\" is DataFusion over all rows at once, which sees them only once: the floor. That results are those
of DataFusion, on 1, 2 and 4 workers, is tested by `cargo test -p logdrive-nexmark`. No peer can be fed like this: compare it with the aims, not with
the tables below.

| query | | events/s | aim | CPU-s per M events | over a table | changes |
|---|---|---:|---|---:|---:|---:|
";

const FROM_FILES: &str = "
## From files, like for like

Each product, in a process of its own, reads the same files of JSON lines, one for each table, with points in time as numbers, and writes its answer, or
every change of it, as JSON lines into a file: Logdrive too, with its own decoder. Reading is part of every product's work; `read` is a query that
does nothing else but count, to be subtracted. What a start of the process takes (of the interpreter, of the JVM, and planning) is measured by the same
job on 2,000 events, in every round; the median of it is taken off CPU time and events/s. The JVM's compiler is in the figures: it is
at work for most of a run of this length, and would weigh less in a longer one. The measured time ends when the answer is written.

Checked: the rows of the answer, after the changes that the product wrote, are those of DataFusion: their number, and a sum over hashes of them.
DataFusion sees all rows at once, and so does Pathway here; Logdrive, Flink, Bytewax and dbsp follow a stream.
";
