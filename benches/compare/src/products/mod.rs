//! The products that are compared: how each is had, and how each is told what to do.

mod debian;
mod logdrive;
mod otel;
pub mod python;
mod rsyslog;
mod syslogng;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Result, fail};
use crate::process::Launch;
use crate::workload::{Way, Workload};

pub use logdrive::{Buffer, Logdrive, SCHEMA};

/// What a run gives a product.
pub struct Site<'a> {
    /// An empty folder of its own.
    pub folder: &'a Path,
    /// The port to listen on.
    pub input: u16,
    /// Where its output goes, if it has one.
    pub output: SocketAddr,
    /// The file that W6 reads.
    pub file: &'a Path,
    /// The geo database of W3.
    pub places: &'a Path,
    /// A port for the product's own figures.
    pub api: u16,
    /// How many connections will be open at a time.
    pub connections: u32,
}

/// A product at hand.
pub trait Product {
    /// A short name, as for `--peers`.
    fn name(&self) -> &str;

    /// What it says of itself.
    fn version(&self) -> &str;

    /// Whether it is the one that all others are compared with.
    fn is_ours(&self) -> bool {
        false
    }

    /// How it does a workload, `None` if it cannot.
    fn way(&self, workload: Workload) -> Option<Way>;

    /// How many lines it says it has discarded in W1, if it can tell.
    fn received(&self, _workload: Workload, _api: u16) -> Option<u64> {
        None
    }

    /// Writes its configuration and says how to start it.
    fn launch(&self, workload: Workload, site: &Site<'_>) -> Result<Launch>;
}

/// The peers of all but W8 that can be had, by the names of `--peers`.
pub const PEERS: &[&str] = &["rsyslog", "syslogng", "otel"];

/// Gets a peer; the error says why it cannot be had.
pub fn peer(name: &str, scratch: &Path) -> Result<Box<dyn Product>> {
    let folder = scratch.join("peers");
    fs::create_dir_all(&folder).map_err(fail(format_args!("cannot make {}", folder.display())))?;
    match name {
        "rsyslog" => Ok(Box::new(rsyslog::Rsyslog::get(&folder)?)),
        "syslogng" => Ok(Box::new(syslogng::SyslogNg::get(&folder)?)),
        "otel" => Ok(Box::new(otel::Collector::get(&folder)?)),
        other => Err(format!("no peer is called {other:?}; there are {}", PEERS.join(", ")).into()),
    }
}

/// Writes a configuration into the run's folder.
///
/// # Errors
/// If it cannot be written.
pub fn write(folder: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    fs::write(&path, text).map_err(fail(format_args!("cannot write {}", path.display())))?;
    Ok(path)
}

/// Runs a program to its end; the error has the end of what it printed.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(fail(format_args!("cannot run {name}")))?;
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        return Ok(text);
    }
    let end: Vec<&str> = text.lines().rev().take(3).collect();
    Err(format!("{name} failed: {}", end.into_iter().rev().collect::<Vec<_>>().join(" / ")).into())
}
