//! What a run needs around it: a folder, a receiver, a free port, and the product that has started.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::data;
use crate::elastic::Elastic;
use crate::error::Result;
use crate::expect::Expectation;
use crate::ledger::Ledger;
use crate::process::{Process, empty_folder, free_port};
use crate::products::{Product, Site};
use crate::receive::Receiver;
use crate::workload::{Output, Workload};

/// How long a product may take to listen.
const START: Duration = Duration::from_secs(60);
/// How long a product must be quiet to count as idle.
pub const QUIET: Duration = Duration::from_millis(400);

/// What all runs share.
pub struct Bench {
    /// Where data, folders of runs and results lie.
    pub scratch: PathBuf,
    /// The geo database.
    pub places: PathBuf,
    /// How long one run may take.
    pub timeout: Duration,
}

/// What takes a product's output.
pub enum Far {
    /// There is none.
    Nowhere,
    /// Lines over TCP.
    Lines(Receiver),
    /// Requests.
    Http(Elastic),
}

impl Far {
    fn address(&self) -> SocketAddr {
        match self {
            Self::Nowhere => SocketAddr::from(([127, 0, 0, 1], 9)),
            Self::Lines(receiver) => receiver.address,
            Self::Http(elastic) => elastic.address,
        }
    }
}

/// What is to be staged.
pub struct Setting<'a> {
    /// Which product.
    pub product: &'a dyn Product,
    /// Which pipeline.
    pub workload: Workload,
    /// The name of the run.
    pub name: &'a str,
    /// How many lines there will be.
    pub lines: u64,
    /// Whether the lines come from a file, which is made if it is not there.
    pub from_file: bool,
    /// Over how many connections.
    pub connections: u32,
    /// Whether the stand-in for Elasticsearch knows ids.
    pub remember_ids: bool,
}

/// A product that has started, and what is around it.
pub struct Stage {
    /// The run's own folder.
    pub folder: PathBuf,
    /// The file of the lines, if they come from one.
    pub file: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// What arrived.
    pub ledger: Arc<Ledger>,
    /// What takes the output.
    pub far: Far,
    /// The product.
    pub process: Process,
    /// Where the product shows its own figures, if it does.
    pub api: u16,
    port: u16,
}

impl Bench {
    /// An empty folder for a run.
    pub fn folder(&self, product: &str, name: &str) -> Result<PathBuf> {
        let folder = self.scratch.join("runs").join(format!("{product}-{name}"));
        empty_folder(&folder)?;
        Ok(folder.canonicalize()?)
    }

    /// Starts a product and its receiver.
    pub fn stage(&self, setting: &Setting<'_>) -> Result<Stage> {
        let workload = setting.workload;
        let way = setting.product.way(workload).ok_or("it has no way to do this")?;
        let folder = self.folder(setting.product.name(), setting.name)?;
        let (file, bytes) = match setting.from_file {
            true => data::file(&self.scratch, workload.format(), setting.lines)?,
            false => (PathBuf::new(), 0),
        };
        let shape = workload.shape(&way);
        let ledger =
            Arc::new(Ledger::new(Expectation { format: workload.format(), shape, lines: setting.lines }));
        let far = match way.output {
            Output::None => Far::Nowhere,
            Output::Tcp => Far::Lines(Receiver::start(Arc::clone(&ledger), None)?),
            Output::Http => Far::Http(Elastic::start(Arc::clone(&ledger), setting.remember_ids)?),
        };
        let (port, api) = (free_port()?, free_port()?);
        let site = Site {
            folder: &folder,
            input: port,
            output: far.address(),
            file: &file,
            places: &self.places,
            api,
            connections: setting.connections,
        };
        let process = Process::start(setting.product.launch(workload, &site)?)?;
        Ok(Stage { folder, file, bytes, ledger, far, process, api, port })
    }
}

impl Stage {
    /// Where the product listens.
    pub fn input(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Waits until the product listens.
    pub fn wait_listening(&mut self) -> Result<()> {
        self.process.wait_listening(self.port, START)
    }

    /// Waits until the product listens and has done what it does at its start; returns the CPU seconds of that.
    pub fn settle(&mut self) -> Result<f64> {
        self.wait_listening()?;
        self.process.wait_quiet(QUIET, Instant::now() + Duration::from_secs(10))?;
        Ok(self.process.cpu())
    }

    /// Stops the product and removes what it left, except its configuration and log.
    pub fn end(mut self) {
        self.process.stop(Duration::from_secs(10));
        clean(&self.folder);
    }
}

/// Buffers and spools of a run can be large; its configuration and log are kept.
fn clean(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            // What stays is overwritten by the next run.
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}

/// The first figure of `/proc/loadavg`.
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}
