//! `logdrive sql`: queries Parquet by path, also while a pipeline writes it, and the live views of a pipeline that runs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use arrow::ipc::reader::StreamReader;
use clap::{Args, ValueEnum};
use logdrive_queries::postgres::{Command, command as command_of};
use logdrive_queries::{Answer, Options, query, to_csv, to_json, to_table, views};

use super::remote::{Api, unreachable_api};
use super::{Outcome, PipelineFiles, load, print, runtime};

#[derive(Args, Debug)]
pub(super) struct Sql {
    /// The query, such as `SELECT type, count(*) FROM 'data/lake' GROUP BY type`, or `SELECT * FROM` a live view.
    query: String,
    #[command(flatten)]
    api: Api,
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
        options.tables = plan.lakes();
        options.functions = plan.functions;
    }
    let is_path = |table: &String| table.contains(['/', '*', '?', '[']);
    let here = |table: &String| {
        options.tables.iter().any(|(name, _)| name == table) || is_path(table) || Path::new(table).exists()
    };
    let runtime = runtime()?;
    let tables = views::tables(&command.query);
    // A name that is nothing here may be that of a live view; it can be joined with what the pipeline wrote.
    let is_of_view = matches!(command_of(&command.query), Ok(Command::Explain { .. }));
    let answer = if !is_of_view && tables.iter().all(here) || tables.iter().any(is_path) {
        runtime.block_on(query(&command.query, &options)).map_err(|error| {
            let at = error.at.map(|(start, length)| At { start, length });
            let refusal = Refusal { code: error.code.into(), message: error.message, help: error.help, at };
            refusal.for_people(&command.query)
        })?
    } else {
        // Names that are nothing here may be those of a pipeline that runs.
        runtime.block_on(ask(command))?
    };
    let text = match command.format {
        Format::Csv => to_csv(&answer),
        Format::Json => to_json(&answer),
        Format::Table => to_table(&answer),
    }
    .map_err(|e| e.to_string())?;
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Has a running pipeline answer.
async fn ask(command: &Sql) -> Result<Answer, String> {
    let api = &command.api.api;
    let request = reqwest::Client::new()
        .post(format!("{}/v1/sql", api.trim_end_matches('/')))
        .header("accept", "application/vnd.apache.arrow.stream")
        .timeout(command.timeout)
        .body(command.query.clone());
    let response = request.send().await.map_err(|e| match views::tables(&command.query) {
        none if none.is_empty() => unreachable_api(api, &e),
        tables => {
            let tables = tables.join("`, `");
            format!("`{tables}` is no file or folder here, and {}", unreachable_api(api, &e))
        }
    })?;
    let is_answer = response.status().is_success();
    let body = response.bytes().await.map_err(|e| e.to_string())?;
    if !is_answer {
        let refusal = serde_json::from_slice::<Refusal>(&body);
        return Err(refusal.map_or_else(
            |_| String::from_utf8_lossy(&body).into_owned(),
            |refusal| refusal.for_people(&command.query),
        ));
    }
    let reader = StreamReader::try_new(&*body, None).map_err(|e| e.to_string())?;
    let schema = reader.schema();
    let batches = reader.collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    Ok(Answer { schema, batches })
}

/// Why a query is not answered.
#[derive(serde::Deserialize)]
struct Refusal {
    code: String,
    message: String,
    help: Option<String>,
    at: Option<At>,
}

#[derive(serde::Deserialize)]
struct At {
    start: usize,
    length: usize,
}

impl Refusal {
    fn for_people(&self, query: &str) -> String {
        let mut message = format!("{}: {}", self.code, self.message);
        let found = self.at.as_ref().and_then(|at| query.get(at.start..at.start + at.length));
        if let Some(found) = found {
            message.push_str(&format!("\n  at: {found}"));
        }
        if let Some(help) = &self.help {
            message.push_str(&format!("\n  help: {help}"));
        }
        message
    }
}
