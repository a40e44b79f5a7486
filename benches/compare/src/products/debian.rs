//! Debian packages, unpacked into the scratch folder: nothing is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::run;
use crate::error::Result;

/// Downloads packages and unpacks them into one folder, once; returns the folder.
pub(super) fn unpack(folder: &Path, name: &str, packages: &[&str]) -> Result<PathBuf> {
    let root = folder.join(name);
    if root.exists() {
        return Ok(root);
    }
    let partial = folder.join(format!("{name}.partial"));
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    let archives = partial.join("archives");
    fs::create_dir_all(&archives)?;
    run(Command::new("apt-get").arg("download").args(packages).current_dir(&archives))?;
    for archive in fs::read_dir(&archives)? {
        run(Command::new("dpkg").arg("-x").arg(archive?.path()).arg(&partial))?;
    }
    fs::remove_dir_all(&archives)?;
    fs::rename(&partial, &root)?;
    Ok(root)
}

/// Where the dynamic linker finds the libraries of what was unpacked.
pub(super) fn libraries(root: &Path) -> String {
    let triple = format!("{}-linux-gnu", std::env::consts::ARCH);
    [format!("usr/lib/{triple}"), format!("lib/{triple}"), "usr/lib/syslog-ng".to_owned()]
        .map(|folder| root.join(folder).display().to_string())
        .join(":")
}
