//! Real servers and senders, started by the scripts that are kept beside the repository. Where they are not at hand, or
//! cannot be started, the tests say so and pass.

#![allow(dead_code, reason = "the helpers serve several tests")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A script of `components`, installed.
pub(crate) fn script(name: &str) -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    let shared = std::env::var_os("LOGDRIVE_SHARED").map_or(root, PathBuf::from);
    let script = shared.join("components").join(name);
    if !script.exists() {
        return Err(format!("no {name}"));
    }
    run(&script, &["install"], &[])?;
    Ok(script)
}

/// Runs a script to its end.
pub(crate) fn run(script: &Path, args: &[&str], env: &[(&str, &str)]) -> Result<(), String> {
    let mut command = Command::new(script);
    command.args(args).envs(env.iter().copied());
    let output = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    match output {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{} {args:?}: {status}", script.display())),
        Err(error) => Err(format!("{}: {error}", script.display())),
    }
}

/// A server on a port, stopped when dropped.
pub(crate) struct Component {
    script: PathBuf,
    port: u16,
}

impl Component {
    pub(crate) fn start(name: &str, port: u16, env: &[(&str, &str)]) -> Result<Self, String> {
        let script = script(name)?;
        let port_text = port.to_string();
        run(&script, &["stop", &port_text], &[])?;
        run(&script, &["start", &port_text], env)?;
        Ok(Self { script, port })
    }
}

impl Drop for Component {
    fn drop(&mut self) {
        run(&self.script, &["stop", &self.port.to_string()], &[]).ok();
    }
}
