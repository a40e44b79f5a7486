//! `logdrive rejects`: what failed, and sending it again.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Subcommand;
use serde::Deserialize;

use super::{Outcome, print};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Count rejects by source and reason, or show them.
    List {
        /// The file of rejects, or the folder that holds them.
        #[arg(default_value = "data/rejects")]
        path: PathBuf,
        /// Show each reject, not only counts.
        #[arg(long)]
        all: bool,
    },
    /// Send the original messages again: to standard output, or to a listening source.
    Replay {
        /// The file of rejects, or the folder that holds them.
        #[arg(default_value = "data/rejects")]
        path: PathBuf,
        /// Only rejects of this source.
        #[arg(long)]
        source: Option<String>,
        /// Only rejects whose reason starts with this code.
        #[arg(long)]
        code: Option<String>,
        /// A `tcp` source to send them to, such as `127.0.0.1:5044`.
        #[arg(long, value_name = "ADDRESS")]
        to: Option<String>,
    },
}

/// A line of a rejects file.
#[derive(Debug, Deserialize)]
struct Reject {
    reason: String,
    source: String,
    position: String,
    received_at: String,
    original: String,
    original_base64: Option<String>,
}

pub(super) fn run(command: Command) -> Outcome {
    match command {
        Command::List { path, all } => list(&path, all),
        Command::Replay { path, source, code, to } => replay(&path, source, code, to),
    }
}

fn list(path: &Path, all: bool) -> Outcome {
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    let mut out = String::new();
    for_each(path, |reject| {
        if all {
            let Reject { received_at, source, position, reason, original, .. } = &reject;
            // Control characters of a message must not reach the terminal.
            writeln!(out, "{received_at} {source} {position} {reason}\n    {}", original.escape_debug())
                .expect("writing to a string cannot fail");
        }
        let code = reject.reason.split(':').next().unwrap_or_default().to_owned();
        *counts.entry((reject.source, code)).or_default() += 1;
        Ok(())
    })?;
    for ((source, code), n) in &counts {
        writeln!(out, "{n:>10}  {source}  {code}").expect("writing to a string cannot fail");
    }
    if counts.is_empty() {
        out.push_str("no rejects\n");
    }
    print(&out)
}

fn replay(path: &Path, source: Option<String>, code: Option<String>, to: Option<String>) -> Outcome {
    let mut out: Box<dyn std::io::Write> = match &to {
        Some(address) => Box::new(TcpStream::connect(address).map_err(|e| format!("{address}: {e}"))?),
        None => Box::new(std::io::stdout().lock()),
    };
    let mut n = 0;
    for_each(path, |reject| {
        let wanted = source.as_ref().is_none_or(|s| *s == reject.source)
            && code.as_ref().is_none_or(|c| reject.reason.split(':').next() == Some(c));
        if wanted {
            let mut message = match &reject.original_base64 {
                Some(exact) => STANDARD.decode(exact).map_err(|e| e.to_string())?,
                None => reject.original.into_bytes(),
            };
            message.push(b'\n');
            out.write_all(&message).map_err(|e| e.to_string())?;
            n += 1;
        }
        Ok(())
    })?;
    out.flush().map_err(|e| e.to_string())?;
    writeln!(std::io::stderr().lock(), "{n} messages sent").map_err(|e| e.to_string())?;
    Ok(ExitCode::SUCCESS)
}

fn for_each(path: &Path, mut f: impl FnMut(Reject) -> Result<(), String>) -> Result<(), String> {
    let shown = |e: std::io::Error| format!("{}: {e}", path.display());
    let mut files = Vec::new();
    if path.is_dir() {
        for entry in std::fs::read_dir(path).map_err(shown)? {
            let entry = entry.map_err(shown)?.path();
            if entry.extension().is_some_and(|e| e == "ndjson") {
                files.push(entry);
            }
        }
        files.sort();
    } else {
        files.push(path.to_owned());
    }
    for file in files {
        let open = File::open(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        for (idx, line) in BufReader::new(open).split(b'\n').enumerate() {
            let line = line.map_err(|e| format!("{}: {e}", file.display()))?;
            if line.is_empty() {
                continue;
            }
            let reject = serde_json::from_slice(&line)
                .map_err(|e| format!("{}:{}: no reject: {e}", file.display(), idx + 1))?;
            f(reject)?;
        }
    }
    Ok(())
}
