//! Python packages, each set in a virtual environment of its own in the scratch folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::run;
use crate::error::{Result, fail};

/// A peer that is a Python package.
#[derive(Clone, Copy, Debug)]
pub struct Package {
    /// A short name, as for `--peers`.
    pub name: &'static str,
    /// Which version.
    pub version: &'static str,
    /// What `pip` is asked for.
    requirements: &'static [&'static str],
}

/// Bytewax, with what it needs for Kafka.
pub const BYTEWAX: Package = Package {
    name: "bytewax",
    version: "0.21.1",
    requirements: &["bytewax==0.21.1", "confluent-kafka==2.16.1"],
};

/// Pathway.
pub const PATHWAY: Package =
    Package { name: "pathway", version: "0.33.0", requirements: &["pathway==0.33.0"] };

/// Apache Flink with its local cluster.
pub const FLINK: Package =
    Package { name: "flink", version: "2.3.0", requirements: &["apache-flink==2.3.0"] };

impl Package {
    /// Makes its virtual environment below the scratch folder, once; returns the interpreter.
    ///
    /// # Errors
    /// If `python3` or `pip` fails.
    pub fn environment(&self, scratch: &Path) -> Result<PathBuf> {
        let folder = scratch.join("peers");
        fs::create_dir_all(&folder).map_err(fail(format_args!("cannot make {}", folder.display())))?;
        let root = folder.join(self.name);
        let program = root.join("bin/python");
        // An environment cannot be renamed like an unpacked archive: a file says that it is complete.
        let complete = root.join("complete");
        let wanted = self.requirements.join(" ");
        if fs::read_to_string(&complete).is_ok_and(|found| found == wanted) {
            return Ok(program);
        }
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&root))?;
        run(Command::new(&program).args(["-m", "pip", "install", "--quiet"]).args(self.requirements))?;
        fs::write(complete, wanted)?;
        Ok(program)
    }
}
