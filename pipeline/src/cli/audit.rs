//! `logdrive audit`: verifies, proves and exports an audit log. Needs no running pipeline.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use logdrive_audit::{Proof, export, prove, verify};

use super::{Outcome, print};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Recompute the chain and the tree of the whole log. Exits with 1 at the first fault, naming the entry.
    Verify {
        /// The log's folder, such as `data/audit`.
        dir: PathBuf,
    },
    /// Write the proof that an entry is in the log, or check one.
    Prove {
        /// The log's folder; with `--check` a file that holds a proof.
        path: PathBuf,
        /// The number of the entry.
        #[arg(required_unless_present = "check")]
        index: Option<u64>,
        /// Check a proof instead of making one; the log is not needed.
        #[arg(long, conflicts_with = "index")]
        check: bool,
    },
    /// Write entries as JSON lines to standard output.
    Export {
        /// The log's folder, such as `data/audit`.
        dir: PathBuf,
        /// The first entry.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// The entry behind the last; without it all.
        #[arg(long)]
        to: Option<u64>,
    },
}

pub(super) fn run(command: Command) -> Outcome {
    match command {
        Command::Verify { dir } => {
            let report = verify(&dir).map_err(|fault| format!("the log is NOT intact: {fault}"))?;
            let mut out = format!("the log is intact: {} entries of {}\n", report.size, report.origin);
            writeln!(out, "root {}", report.root).expect("writing to a string cannot fail");
            if report.uncommitted_bytes > 0 {
                writeln!(
                    out,
                    "{} bytes behind the checkpoint are not part of it yet",
                    report.uncommitted_bytes
                )
                .expect("writing to a string cannot fail");
            }
            for stray in &report.strays {
                writeln!(out, "does not belong here: {}", stray.display())
                    .expect("writing to a string cannot fail");
            }
            print(&out)
        }
        Command::Prove { path, check: true, .. } => {
            let text = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            let proof: Proof =
                serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", path.display()))?;
            if proof.verify() {
                let (index, size) = (proof.index, proof.size);
                print(&format!("the proof holds: entry {index} is in the tree of {size} entries\n"))
            } else {
                Err("the proof does NOT hold".into())
            }
        }
        Command::Prove { path, index, .. } => {
            let proof = prove(&path, index.unwrap_or(0)).map_err(|fault| fault.to_string())?;
            let text = serde_json::to_string_pretty(&proof).map_err(|e| e.to_string())?;
            print(&format!("{text}\n"))
        }
        Command::Export { dir, from, to } => {
            let to = match to {
                Some(to) => to,
                None => verify(&dir).map_err(|fault| fault.to_string())?.size,
            };
            let mut stdout = std::io::stdout().lock();
            export(&dir, from..to, &mut stdout).map_err(|fault| fault.to_string())?;
            stdout.flush().map_err(|e| e.to_string())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
