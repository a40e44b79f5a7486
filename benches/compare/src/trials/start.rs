//! W13: from the start of the process to the open port.

use std::fmt::Write;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::Cast;
use crate::error::Result;
use crate::products::Product;
use crate::report::Spread;
use crate::run::Journal;
use crate::say;
use crate::stage::Setting;
use crate::workload::Workload;

const TIMES: usize = 10;

#[derive(Serialize)]
struct Found<'a> {
    name: &'static str,
    product: &'a str,
    listening_ms: Vec<f64>,
    ready_ms: Vec<f64>,
}

/// Runs it.
pub(super) fn run(cast: &Cast<'_>, journal: &mut Journal) -> Result<String> {
    let mut out = format!(
        "## W13: from start to ready\n\n{TIMES} starts with the pipeline of W2, in milliseconds until the port is open \
         (Logdrive: also until it says `ready`).\n\n| product | median | min | max | said ready, median |\n|---|---:|---:|---:|---:|\n"
    );
    for product in cast.all.iter().filter(|product| product.way(Workload::W2).is_some()) {
        let product = product.as_ref();
        let (mut listening, mut ready) = (Vec::new(), Vec::new());
        let mut problem = None;
        for _ in 0..TIMES {
            match once(cast, product) {
                Ok((port, said)) => {
                    listening.push(port);
                    ready.extend(said);
                }
                Err(error) => problem = Some(error.to_string()),
            }
        }
        let name = product.name();
        if let Some(problem) = problem {
            writeln!(out, "| {name} | **{problem}** | | | |")?;
            continue;
        }
        let spread = Spread::of(listening.iter().copied()).ok_or("no start")?;
        let said = Spread::of(ready.iter().copied())
            .map_or("–".to_owned(), |spread| format!("{:.0}", spread.median));
        writeln!(out, "| {name} | {:.0} | {:.0} | {:.0} | {said} |", spread.median, spread.min, spread.max)?;
        say(&format!("W13  {name:<16} {:.0} ms", spread.median));
        journal.add(&Found { name: "W13", product: name, listening_ms: listening, ready_ms: ready })?;
    }
    Ok(out)
}

fn once(cast: &Cast<'_>, product: &dyn Product) -> Result<(f64, Option<f64>)> {
    let mut stage = cast.bench.stage(&Setting {
        product,
        workload: Workload::W2,
        name: "W13",
        lines: 1,
        from_file: false,
        connections: 1,
        remember_ids: false,
    })?;
    stage.wait_listening()?;
    let listening = stage.process.started.elapsed().as_secs_f64() * 1000.0;
    let mut said = None;
    let deadline = Instant::now() + Duration::from_secs(20);
    while product.is_ours() && said.is_none() && Instant::now() < deadline {
        if stage.process.log().lines().any(|line| line == "ready") {
            said = Some(stage.process.started.elapsed().as_secs_f64() * 1000.0);
        } else {
            sleep(Duration::from_millis(1));
        }
    }
    stage.end();
    Ok((listening, said))
}
