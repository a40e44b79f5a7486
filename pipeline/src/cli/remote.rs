//! Commands that talk to a running pipeline.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use futures::StreamExt as _;

use super::{Outcome, runtime};

/// Where the pipeline's API is.
#[derive(Args, Clone, Debug)]
pub(super) struct Api {
    /// Address of the API of the running pipeline.
    #[arg(long, env = "LOGDRIVE_API", default_value = "http://127.0.0.1:8686")]
    pub(super) api: String,
}

#[derive(Args, Debug)]
pub(super) struct Tap {
    /// A source, stream, detector, or `rejects`.
    name: String,
    #[command(flatten)]
    api: Api,
    /// Stop after this many rows.
    #[arg(long, short = 'n')]
    limit: Option<usize>,
    /// Stop after this long.
    #[arg(long = "for", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
}

pub(super) fn tap(command: &Tap) -> Outcome {
    runtime()?.block_on(async {
        let url = format!("{}/v1/tap/{}", command.api.api.trim_end_matches('/'), command.name);
        let response = reqwest::get(&url).await.map_err(|e| unreachable_api(&command.api.api, &e))?;
        if !response.status().is_success() {
            return Err(response.text().await.unwrap_or_default());
        }
        let deadline = command.duration.map(|d| Instant::now() + d);
        let mut body = response.bytes_stream();
        let mut left = command.limit.unwrap_or(usize::MAX);
        while left > 0 {
            let next = async { body.next().await };
            let chunk = match deadline {
                Some(at) => {
                    match tokio::time::timeout(at.saturating_duration_since(Instant::now()), next).await {
                        Ok(chunk) => chunk,
                        Err(_) => break,
                    }
                }
                None => next.await,
            };
            let Some(chunk) = chunk else { break };
            let chunk = chunk.map_err(|e| e.to_string())?;
            let mut stdout = std::io::stdout().lock();
            for line in chunk.split_inclusive(|b| *b == b'\n').take(left) {
                stdout.write_all(line).map_err(|e| e.to_string())?;
                left -= usize::from(line.ends_with(b"\n"));
            }
            stdout.flush().map_err(|e| e.to_string())?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

pub(super) fn unreachable_api(api: &str, error: &reqwest::Error) -> String {
    format!("no pipeline answers at {api}: {error}\nis it running, and is `api:` on? set --api otherwise")
}
