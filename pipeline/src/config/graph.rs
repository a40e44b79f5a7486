//! The plan as a picture: Mermaid and Graphviz DOT.

use std::fmt::Write as _;

use super::plan::{Input, Plan};

/// How to draw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Graphviz.
    Dot,
    /// Mermaid, as Markdown viewers draw it.
    #[default]
    Mermaid,
}

/// Draws sources, streams, detectors, views, sinks and the edges between them.
#[must_use]
pub fn draw(plan: &Plan, format: Format) -> String {
    let mut nodes: Vec<(String, String, &str)> = Vec::new();
    let mut edges: Vec<(String, String)> = Vec::new();
    for source in &plan.sources {
        nodes.push((source.name.to_string(), source.entry.name.into(), "source"));
    }
    for stream in &plan.streams {
        let n_steps = stream.lanes.first().map_or(0, |lane| lane.steps.len());
        nodes.push((stream.name.to_string(), format!("{n_steps} steps"), "stream"));
        edges.extend(stream.inputs.iter().map(|i| (plan.name(*i).to_owned(), stream.name.to_string())));
    }
    for detector in &plan.detectors {
        nodes.push((detector.name.to_string(), detector.kind.into(), "detector"));
        edges.extend(detector.inputs.iter().map(|i| (plan.name(*i).to_owned(), detector.name.to_string())));
    }
    for view in &plan.views {
        nodes.push((view.name.to_string(), "view".into(), "view"));
        edges.extend(view.inputs.iter().map(|i| (plan.name(i.input).to_owned(), view.name.to_string())));
    }
    if plan.sinks.iter().any(|sink| sink.inputs.contains(&Input::Rejects)) {
        nodes.push(("rejects".into(), "everything that failed".into(), "stream"));
    }
    for sink in &plan.sinks {
        nodes.push((sink.name.to_string(), sink.entry.name.into(), "sink"));
        edges.extend(sink.inputs.iter().map(|i| (plan.name(*i).to_owned(), sink.name.to_string())));
    }
    match format {
        Format::Dot => dot(&nodes, &edges),
        Format::Mermaid => mermaid(&nodes, &edges),
    }
}

fn mermaid(nodes: &[(String, String, &str)], edges: &[(String, String)]) -> String {
    // Mermaid has reserved words (`end`), so nodes have numbers and their names are labels.
    let id = |name: &str| nodes.iter().position(|(n, ..)| n == name).map_or(0, |at| at);
    let mut out = String::from("flowchart LR\n");
    for (name, label, kind) in nodes {
        let (open, close) = match *kind {
            "source" => ("([", "])"),
            "detector" => ("{{", "}}"),
            "view" => ("[/", "/]"),
            "sink" => ("[(", ")]"),
            _ => ("[", "]"),
        };
        writeln!(out, "    n{}{open}\"{name}<br/><small>{label}</small>\"{close}", id(name))
            .expect("a string");
    }
    for (from, to) in edges {
        writeln!(out, "    n{} --> n{}", id(from), id(to)).expect("a string");
    }
    out
}

fn dot(nodes: &[(String, String, &str)], edges: &[(String, String)]) -> String {
    let mut out = String::from("digraph pipeline {\n    rankdir=LR;\n    node [fontname=\"sans-serif\"];\n");
    for (name, label, kind) in nodes {
        let shape = match *kind {
            "source" => "oval",
            "detector" => "hexagon",
            "view" => "parallelogram",
            "sink" => "cylinder",
            _ => "box",
        };
        writeln!(out, "    \"{name}\" [shape={shape}, label=\"{name}\\n{label}\"];").expect("a string");
    }
    for (from, to) in edges {
        writeln!(out, "    \"{from}\" -> \"{to}\";").expect("a string");
    }
    out.push_str("}\n");
    out
}
