//! The table of one workload, and who is ahead in it.

use std::fmt::Write;

use super::{REFERENCE_TAPE, Spread};
use crate::limits::Limits;
use crate::measure::{Delays, Outcome};
use crate::products::Product;
use crate::workload::Workload;

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

    /// The median of the CPU seconds per million events.
    fn cpu(&self) -> Option<f64> {
        Some(self.spread(Outcome::cpu_per_million)?.median)
    }

    /// The highest resident memory of all runs, in megabytes.
    fn memory(&self) -> Option<f64> {
        Some(self.spread(|run| run.memory as f64 / 1e6)?.max)
    }

    /// The latencies at half load.
    fn delays(&self) -> Option<Delays> {
        self.half_load.as_ref().filter(|run| run.is_right())?.delays
    }

    fn p99(&self) -> Option<f64> {
        Some(self.delays()?.p99)
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

    pub(super) fn write(&self, out: &mut String) -> std::fmt::Result {
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
            let memory = line.memory().unwrap_or(0.0);
            let delays = line.delays();
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

    /// A row of the summary for each kind of buffer.
    pub(super) fn summarise(&self, out: &mut String) -> std::fmt::Result {
        for line in self.lines.iter().filter(|line| line.ours) {
            let Some(own) = line.cpu() else {
                writeln!(
                    out,
                    "| {} | {} | **not complete and right** | | |",
                    self.workload.name(),
                    line.product
                )?;
                continue;
            };
            let cell = |best: Option<(&str, f64)>| match best {
                None => "–".to_owned(),
                Some((name, figure)) if own <= figure => format!("1/{:.1} of {name}", figure / own.max(1e-9)),
                Some((name, figure)) => format!("**{:.1} times {name}: it is ahead**", own / figure),
            };
            let (measured, reference) = (cell(best(&self.measured())), cell(best(&self.reference())));
            writeln!(
                out,
                "| {} | {} | {own:.2} | {measured} | {reference} |",
                self.workload.name(),
                line.product
            )?;
        }
        Ok(())
    }

    /// The CPU of the peers that ran.
    fn measured(&self) -> Vec<(&str, f64)> {
        let peers = self.lines.iter().filter(|line| !line.ours);
        peers.filter_map(|line| Some((line.product.as_str(), line.cpu()?))).collect()
    }

    fn judge(&self, out: &mut String) -> std::fmt::Result {
        let rate = |line: &Line| line.spread(Outcome::events_per_second).map(|spread| spread.median);
        let measured = self.measured();
        let fastest = self
            .lines
            .iter()
            .filter(|line| !line.ours)
            .filter_map(|line| Some((line.product.as_str(), rate(line)?)));
        let fastest = fastest.max_by(|a, b| a.1.total_cmp(&b.1));
        for line in self.lines.iter().filter(|line| line.ours) {
            let (Some(own), Some(speed)) = (line.cpu(), rate(line)) else { continue };
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
            write!(out, ".")?;
            for (what, figure) in [
                ("peak RSS", Line::memory as fn(&Line) -> Option<f64>),
                ("p99 at half of its own load", Line::p99),
            ] {
                let Some(own) = figure(line) else { continue };
                let peers = self.lines.iter().filter(|line| !line.ours);
                let ahead: Vec<&str> = peers
                    .filter(|peer| figure(peer).is_some_and(|of| of < own))
                    .map(|peer| peer.product.as_str())
                    .collect();
                if !ahead.is_empty() {
                    write!(out, " Ahead of it in {what}: **{}**.", ahead.join(", "))?;
                }
            }
            writeln!(out)?;
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

/// `1234567` as `1235 k`.
fn thousands(figure: f64) -> String {
    format!("{:.0} k", figure / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_ahead_is_said() {
        assert!(compared(1.0, "x", 5.0, "measured").starts_with("1/5.0 "));
        assert!(compared(5.0, "x", 2.0, "measured").contains("**x is ahead**"));
    }
}
