//! Python packages, each set in a virtual environment of its own in the scratch folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::run;
use crate::error::Result;

/// Makes a virtual environment with packages, once; returns its interpreter.
pub(crate) fn environment(folder: &Path, name: &str, packages: &[&str]) -> Result<PathBuf> {
    let root = folder.join(name);
    let program = root.join("bin/python");
    // An environment cannot be renamed like an unpacked archive: a file says that it is complete.
    let complete = root.join("complete");
    let wanted = packages.join(" ");
    if fs::read_to_string(&complete).is_ok_and(|found| found == wanted) {
        return Ok(program);
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&root))?;
    run(Command::new(&program).args(["-m", "pip", "install", "--quiet"]).args(packages))?;
    fs::write(complete, wanted)?;
    Ok(program)
}
