//! dbsp: a library, so its job is built. It is no part of the workspace, whose lock file should not have what only a peer
//! needs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use logdrive_compare::error::{Result, fail};

/// The newest that Rust 1.95 builds.
pub(super) const VERSION: &str = "0.349.0";

const JOB: &str = include_str!("../../jobs/dbsp_job.rs");

fn manifest() -> String {
    format!(
        "[package]\nname = \"dbsp-job\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n[dependencies]\nanyhow = \"1\"\n\
         dbsp = \"={VERSION}\"\nserde = {{ version = \"1\", features = [\"derive\"] }}\nserde_json = \"1\"\n"
    )
}

/// Builds the job below the scratch folder unless it is there; returns the program.
///
/// # Errors
/// If cargo fails.
pub(super) fn build(scratch: &Path) -> Result<PathBuf> {
    let folder = scratch.join("peers/dbsp");
    fs::create_dir_all(folder.join("src")).map_err(fail(format_args!("cannot make {}", folder.display())))?;
    for (name, text) in [("Cargo.toml", manifest()), ("src/main.rs", JOB.to_owned())] {
        // What is as it was is not built again.
        if fs::read_to_string(folder.join(name)).ok() != Some(text.clone()) {
            fs::write(folder.join(name), text)?;
        }
    }
    let mut cargo = Command::new("cargo");
    cargo
        .args(["build", "--release", "--quiet"])
        .current_dir(&folder)
        .env("CARGO_TARGET_DIR", folder.join("target"));
    let output = cargo.output().map_err(fail(format_args!("cannot run cargo")))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let end: Vec<&str> = text.lines().rev().take(5).collect();
        return Err(format!(
            "dbsp cannot be built: {}",
            end.into_iter().rev().collect::<Vec<_>>().join(" / ")
        )
        .into());
    }
    Ok(folder.join("target/release/dbsp-job"))
}
