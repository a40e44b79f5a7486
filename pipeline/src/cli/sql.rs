//! `logdrive sql`: queries Parquet by path, also while a pipeline writes it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use logdrive_queries::{Options, query, to_csv, to_json, to_table};

use super::{Outcome, PipelineFiles, load, print, runtime};

#[derive(Args, Debug)]
pub(super) struct Sql {
    /// The query, such as `SELECT type, count(*) FROM 'data/lake' GROUP BY type`.
    query: String,
    /// A pipeline file whose Parquet sinks can be named in the query.
    #[arg(long, value_name = "FILE")]
    pipeline: Option<PathBuf>,
    /// How the answer is printed.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// How long the query may take.
    #[arg(long, default_value = "5m", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Comma-separated, with a header.
    Csv,
    /// One JSON object a line.
    Json,
    /// For people.
    #[default]
    Table,
}

pub(super) fn run(command: &Sql) -> Outcome {
    let mut options = Options { timeout: command.timeout, ..Options::default() };
    if let Some(file) = &command.pipeline {
        let (_, plan) = load(&PipelineFiles { files: vec![file.clone()] })?;
        for sink in plan.sinks.iter().filter(|sink| sink.entry.name == "parquet") {
            let Some(path) = sink.node.get("path").and_then(|node| node.as_str()) else { continue };
            options.tables.push((sink.name.to_string(), path.to_owned()));
            // A stream that only this sink stores can be asked for by its own name, too.
            if let [input] = sink.inputs[..] {
                options.tables.push((plan.name(input).to_owned(), path.to_owned()));
            }
        }
    }
    let answer = runtime()?.block_on(query(&command.query, &options)).map_err(|error| {
        let mut message = format!("{}: {error}", error.code);
        if let Some((start, len)) = error.at
            && let Some(found) = command.query.get(start..start + len)
        {
            message.push_str(&format!("\n  at: {found}"));
        }
        if let Some(help) = error.help {
            message.push_str(&format!("\n  help: {help}"));
        }
        message
    })?;
    let text = match command.format {
        Format::Csv => to_csv(&answer),
        Format::Json => to_json(&answer),
        Format::Table => to_table(&answer),
    }
    .map_err(|e| e.to_string())?;
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}
