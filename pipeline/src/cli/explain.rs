//! `logdrive explain`: how views are computed, and what holds their windows open.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;

use super::remote::{Api, unreachable_api};
use super::{Outcome, PipelineFiles, load, print, runtime};
use crate::topology::Progress;

#[derive(Args, Debug)]
pub(super) struct Explain {
    /// Pipeline files; several are read as one.
    #[arg(value_name = "FILE", required_unless_present = "watermarks")]
    files: Vec<PathBuf>,
    /// Only this view.
    #[arg(long)]
    view: Option<String>,
    /// Ask a running pipeline how far event time has come in each view, and which partition holds it back.
    #[arg(long)]
    watermarks: bool,
    #[command(flatten)]
    api: Api,
}

pub(super) fn run(command: &Explain) -> Outcome {
    let is_wanted = |name: &str| command.view.as_deref().is_none_or(|view| view == name);
    let mut out = String::new();
    if command.watermarks {
        let progress = runtime()?.block_on(ask(&command.api.api))?;
        for (name, progress) in progress.iter().filter(|(name, _)| is_wanted(name)) {
            line(&mut out, name, progress);
        }
    } else {
        let (_, plan) = load(&PipelineFiles { files: command.files.clone() })?;
        for view in plan.views.iter().filter(|view| is_wanted(&view.name)) {
            writeln!(out, "{}\n\n{}", view.name, view.view.explain())
                .expect("writing to a string cannot fail");
        }
    }
    if out.is_empty() {
        return Err(match &command.view {
            Some(view) => format!("there is no view `{view}`"),
            None => "there are no views".into(),
        });
    }
    print(&out)?;
    Ok(ExitCode::SUCCESS)
}

async fn ask(api: &str) -> Result<BTreeMap<String, Progress>, String> {
    let url = format!("{}/v1/views", api.trim_end_matches('/'));
    let response = reqwest::get(&url).await.map_err(|e| unreachable_api(api, &e))?;
    let body = response.bytes().await.map_err(|e| e.to_string())?;
    serde_json::from_slice(&body).map_err(|e| e.to_string())
}

fn line(out: &mut String, name: &str, progress: &Progress) {
    let at = progress.watermark_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let at = at.map_or_else(|| "not known before the first row".to_owned(), |at| at.to_string());
    let held = match (&progress.source, &progress.partition) {
        (Some(source), Some(partition)) => format!("held back by partition {partition} of `{source}`"),
        _ => "held back by nothing: every partition is idle".to_owned(),
    };
    writeln!(out, "{name}: {at}, {held}").expect("writing to a string cannot fail");
}
