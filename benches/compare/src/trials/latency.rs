//! W14: from the moment an event is meant to be sent until Elasticsearch has its request, at half of what W5 can take.

use std::fmt::Write;

use super::Cast;
use crate::error::Result;
use crate::measure::Request;
use crate::run::{Journal, tell};
use crate::workload::Workload;

const SECONDS: f64 = 30.0;

/// Runs it.
pub(super) fn run(cast: &Cast<'_>, journal: &mut Journal) -> Result<String> {
    let mut out = format!(
        "## W14: latency from the socket to Elasticsearch\n\nW5 for {SECONDS:.0} s at half of the events/s that the product takes at most, \
         in milliseconds from the moment an event was meant to be sent (its id tells when) until the stand-in has read the request that \
         holds it.\n\n| product | events/s | p50 | p99 | p99.9 | max | complete and right |\n|---|---:|---:|---:|---:|---:|---|\n"
    );
    let table = cast.tables.iter().find(|table| table.workload() == Workload::W5);
    for product in cast.all.iter().filter(|product| product.way(Workload::W5).is_some()) {
        let product = product.as_ref();
        let request = Request {
            product,
            workload: Workload::W5,
            name: "W14",
            lines: cast.lines,
            round: 1,
            rate: None,
            outage: None,
        };
        let most = match table.and_then(|table| table.median_rate(product.name())) {
            Some(most) => most,
            None => cast.bench.run(&request).events_per_second(),
        };
        let rate = most / 2.0;
        let outcome =
            cast.bench.run(&Request { lines: (rate * SECONDS) as u64, rate: Some(rate), ..request });
        tell(&outcome);
        journal.add(&outcome)?;
        let right =
            if outcome.is_right() { "yes".to_owned() } else { format!("**no**: {}", outcome.faults()) };
        let figures = outcome.delays.map_or("– | – | – | –".to_owned(), |delays| {
            format!("{:.1} | {:.1} | {:.1} | {:.1}", delays.p50, delays.p99, delays.p999, delays.max)
        });
        writeln!(out, "| {} | {rate:.0} | {figures} | {right} |", outcome.product)?;
    }
    Ok(out)
}
