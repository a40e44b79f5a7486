//! `logdrive check` and `logdrive graph`.

use std::fmt::Write as _;
use std::process::ExitCode;

use logdrive_connectors::Guarantee;

use super::{Outcome, PipelineFiles, load, print};
use crate::config::{Plan, graph};

/// A longer list of fields tells a reader nothing.
const FIELDS_SHOWN: usize = 12;

pub(super) fn run(files: &PipelineFiles) -> Outcome {
    let (_, plan) = load(files)?;
    print(&summary(&plan))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn graph(files: &PipelineFiles, format: graph::Format) -> Outcome {
    let (_, plan) = load(files)?;
    print(&graph::draw(&plan, format))
}

/// What the pipeline will do, in a few lines.
fn summary(plan: &Plan) -> String {
    let mut out = String::from("the configuration is valid\n");
    for source in &plan.sources {
        let fields: Vec<_> = source.demand.schema.fields.iter().map(|(name, _)| name.as_str()).collect();
        let declared = source.schema.fields.len();
        writeln!(
            out,
            "  source {}: reads {} of {declared} declared fields{}{}",
            source.name,
            fields.len(),
            if fields.is_empty() || FIELDS_SHOWN < fields.len() { "" } else { ": " },
            if fields.len() <= FIELDS_SHOWN { fields.join(", ") } else { String::new() }
        )
        .expect("writing to a string cannot fail");
        if let Some(field) = &source.attributes {
            out.truncate(out.trim_end().len());
            writeln!(out, ", and `{}` of what it knows of each", field.name())
                .expect("writing to a string cannot fail");
        }
    }
    for sink in plan.sinks.iter().filter(|sink| !sink.is_implicit()) {
        let promise = match sink.guarantee {
            Guarantee::AtLeastOnce => "loses nothing, may repeat after a crash",
            Guarantee::BestEffort => "the far end confirms nothing",
            Guarantee::ExactlyOnce => "loses nothing, repeats nothing",
        };
        writeln!(out, "  sink {}: {promise}", sink.name).expect("writing to a string cannot fail");
    }
    out
}
