//! W11: what a product costs when nothing happens, and when a little does.

use std::fmt::Write;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::Cast;
use crate::error::Result;
use crate::ledger::Pace;
use crate::products::Product;
use crate::run::Journal;
use crate::say;
use crate::send::Sender;
use crate::stage::Setting;
use crate::workload::Workload;

const RATE: f64 = 1000.0;
const SECONDS: f64 = 30.0;

#[derive(Serialize)]
struct Found<'a> {
    name: &'static str,
    product: &'a str,
    /// CPU seconds a minute.
    idle_cpu: f64,
    idle_memory: u64,
    /// CPU seconds a minute.
    busy_cpu: f64,
    busy_memory: u64,
    faults: String,
}

/// Runs it.
pub(super) fn run(cast: &Cast<'_>, journal: &mut Journal) -> Result<String> {
    let mut out = format!(
        "## W11: idle, and with {RATE:.0} events/s\n\nThe pipeline of W2, {} s without events, then {SECONDS:.0} s with {RATE:.0} events/s.\n\n\
         | product | idle: CPU-s per minute | idle: RSS MB | {RATE:.0}/s: CPU-s per minute | {RATE:.0}/s: RSS MB | complete and right |\n\
         |---|---:|---:|---:|---:|---|\n",
        cast.idle
    );
    for product in cast.all.iter().filter(|product| product.way(Workload::W2).is_some()) {
        match once(cast, product.as_ref()) {
            Ok(found) => {
                let right = if found.faults.is_empty() {
                    "yes".to_owned()
                } else {
                    format!("**no**: {}", found.faults)
                };
                writeln!(
                    out,
                    "| {} | {:.2} | {:.0} | {:.2} | {:.0} | {right} |",
                    found.product,
                    found.idle_cpu,
                    found.idle_memory as f64 / 1e6,
                    found.busy_cpu,
                    found.busy_memory as f64 / 1e6,
                )?;
                say(&format!(
                    "W11  {:<16} idle {:.2}, busy {:.2} CPU-s per minute",
                    found.product, found.idle_cpu, found.busy_cpu
                ));
                journal.add(&found)?;
            }
            Err(problem) => writeln!(out, "| {} | **{problem}** | | | | |", product.name())?,
        }
    }
    Ok(out)
}

fn once<'a>(cast: &Cast<'_>, product: &'a dyn Product) -> Result<Found<'a>> {
    let lines = (RATE * SECONDS) as u64;
    let mut stage = cast.bench.stage(&Setting {
        product,
        workload: Workload::W2,
        name: "W11",
        lines,
        from_file: false,
        connections: 1,
        remember_ids: false,
    })?;
    let before = stage.settle()?;
    let start = Instant::now();
    sleep(Duration::from_secs(cast.idle));
    stage.process.check()?;
    let idle_cpu = (stage.process.cpu() - before) / start.elapsed().as_secs_f64() * 60.0;
    let idle_memory = stage.process.resident_memory();

    let (before, start) = (stage.process.cpu(), Instant::now());
    let sender = Sender::paced(Workload::W2.format(), lines, Pace { start, rate: RATE }, stage.input());
    let limit = Duration::from_secs_f64(SECONDS + 30.0);
    while !(sender.is_done() && stage.ledger.is_complete()) && start.elapsed() < limit {
        stage.process.check()?;
        sleep(Duration::from_millis(20));
    }
    let busy_cpu = (stage.process.cpu() - before) / start.elapsed().as_secs_f64() * 60.0;
    let busy_memory = stage.process.resident_memory();
    let faults = stage.ledger.verdict().faults();
    stage.end();
    Ok(Found { name: "W11", product: product.name(), idle_cpu, idle_memory, busy_cpu, busy_memory, faults })
}
