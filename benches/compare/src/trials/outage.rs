//! W9: W5, and Elasticsearch is away for a while.

use std::fmt::Write;
use std::time::Duration;

use super::Cast;
use crate::error::Result;
use crate::measure::{Outage, Request};
use crate::run::{Journal, tell};
use crate::workload::Workload;

/// Runs it.
pub(super) fn run(cast: &Cast<'_>, journal: &mut Journal) -> Result<String> {
    let mut out = format!(
        "## W9: Elasticsearch is away for {} s in the middle of W5\n\n\
         Connections are refused and open ones broken, some after their documents were stored and before the answer. Every document must be \
         stored, exactly once; one that is created again under its id is a conflict, not a second document.\n\n\
         | product | stored | missing | stored twice | sent again and recognised | seconds | CPU-s per M | peak RSS MB | exactly once |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---|\n",
        cast.outage
    );
    for product in cast.all.iter().filter(|product| product.way(Workload::W5).is_some()) {
        let outcome = cast.bench.run(&Request {
            product: product.as_ref(),
            workload: Workload::W5,
            name: "W9",
            lines: cast.lines,
            round: 1,
            rate: None,
            outage: Some(Outage { after: cast.lines / 3, lasts: Duration::from_secs(cast.outage) }),
        });
        tell(&outcome);
        journal.add(&outcome)?;
        let verdict = outcome.verdict.clone().unwrap_or_default();
        writeln!(
            out,
            "| {} | {} | {} | {} | {} | {:.1} | {:.2} | {:.0} | {} |",
            outcome.product,
            verdict.arrived,
            verdict.wanted.saturating_sub(verdict.arrived),
            verdict.repeated,
            outcome.conflicts,
            outcome.seconds,
            outcome.cpu_per_million(),
            outcome.memory as f64 / 1e6,
            if outcome.is_right() { "yes".to_owned() } else { format!("**no**: {}", outcome.faults()) },
        )?;
    }
    Ok(out)
}
