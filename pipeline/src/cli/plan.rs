//! `logdrive plan`: what becomes of the state on disk if this configuration is started.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;

use super::checkpoint::{StoreOptions, place_of, title};
use super::{Outcome, PipelineFiles, load, print};
use crate::checkpoint::inspect::{self, Fate, Shelf, Stateful};
use crate::config::{Input, Plan as Pipeline};

#[derive(Args, Debug)]
pub(super) struct Plan {
    #[command(flatten)]
    files: PipelineFiles,
    /// The folder or URL whose checkpoints it is compared with; that of the configuration unless given.
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<String>,
    #[command(flatten)]
    options: StoreOptions,
}

pub(super) fn run(command: &Plan) -> Outcome {
    let (_, plan) = load(&command.files)?;
    let place = match &command.data_dir {
        Some(named) => place_of(named, &command.options),
        None => plan.checkpoints.clone(),
    };
    let manifest = Shelf::open(&place).and_then(|shelf| shelf.newest());
    let manifest = manifest.map_err(|e| format!("{place}: {e}"))?;
    let mut out = match &manifest {
        Some(manifest) => format!("compared with the checkpoint of {}\n", title(manifest.cut)),
        None => format!("{place}: no checkpoint; everything starts empty\n"),
    };
    for fate in inspect::compare(manifest.as_ref(), &stateful(&plan)) {
        writeln!(out, "  {}", line(&fate, &plan)).expect("writing to a string cannot fail");
    }
    print(&out)?;
    Ok(ExitCode::SUCCESS)
}

/// What of a plan has state.
fn stateful(plan: &Pipeline) -> Vec<Stateful> {
    let views = plan.views.iter().map(|view| Stateful {
        kind: "view",
        name: view.name.to_string(),
        operators: view.view.fingerprints().into_iter().collect(),
        others: vec![view.outbox()],
    });
    let detectors = plan.detectors.iter().map(|detector| Stateful {
        kind: "detector",
        name: detector.name.to_string(),
        operators: detector.detector.fingerprints().into_iter().collect(),
        others: Vec::new(),
    });
    views.chain(detectors).filter(|node| !node.operators.is_empty()).collect()
}

/// What a view without state begins with.
fn beginning(view: &str, plan: &Pipeline) -> String {
    let view = plan.views.iter().find(|planned| *planned.name == *view);
    let read = view.into_iter().flat_map(|view| &view.inputs).filter_map(|input| match input.input {
        Input::View(idx) => plan.views.get(idx),
        _ => None,
    });
    let names: Vec<&str> = read.filter(|view| view.view.table().is_some()).map(|view| &*view.name).collect();
    if names.is_empty() {
        return "starts empty".to_owned();
    }
    format!("begins with the rows of `{}`", names.join("`, `"))
}

fn line(fate: &Fate, plan: &Pipeline) -> String {
    let Fate { kind, name, outcome, rows, bytes } = fate;
    let (kind, size) = (kind.unwrap_or("state"), format!("{rows} rows, {bytes} bytes"));
    match outcome {
        inspect::Outcome::Keeps => format!("{kind} {name}: keeps its state ({size})"),
        inspect::Outcome::Rebuilt => {
            let beginning = beginning(name, plan);
            format!(
                "{kind} {name}: REBUILT, since it or a view that it reads is another query; {beginning}; drops its \
                 state ({size})"
            )
        }
        inspect::Outcome::New => format!("{kind} {name}: new, {}", beginning(name, plan)),
        inspect::Outcome::Dropped => {
            format!("{kind} {name}: DROPPED, nothing has this name any more ({size})")
        }
    }
}
