//! The sender of this folder: the Fluentd project's own client for Node.js. Needs Node.js, and its package at hand.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// The folder with the program and its package, or why there is none.
pub(crate) fn program() -> Result<PathBuf, String> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fluent");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../connectors/tests/fluent");
    std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    for name in ["package.json", "send.js"] {
        std::fs::copy(source.join(name), folder.join(name)).map_err(|e| e.to_string())?;
    }
    if folder.join("node_modules/@fluent-org/logger/package.json").exists() {
        return Ok(folder);
    }
    let mut npm = Command::new("npm");
    let installed =
        npm.args(["install", "--no-audit", "--no-fund", "--silent"]).current_dir(&folder).output();
    match installed {
        Ok(output) if output.status.success() => Ok(folder),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("no npm: {error}")),
    }
}

/// Sends `n` numbered events (0: without end) in a mode; `options` are the client's, in JSON.
pub(crate) fn command(folder: &Path, port: u16, mode: &str, n: usize, options: &str) -> Command {
    let mut command = Command::new("node");
    command.arg(folder.join("send.js")).args([&port.to_string(), mode, &n.to_string(), options]);
    command
}

/// The numbers that the program says were acknowledged, a line each.
pub(crate) fn acked(said: &str) -> Vec<u64> {
    let lines = said.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    lines.map(|line| line.parse().unwrap()).collect()
}
