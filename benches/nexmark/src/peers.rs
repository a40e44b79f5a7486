//! The products that read the events from files: how each is had, and which queries it is given.

mod dbsp;

use std::path::{Path, PathBuf};
use std::process::Command;

use logdrive_compare::error::Result;
use logdrive_compare::products::python::{BYTEWAX, FLINK, PATHWAY, Package};
use logdrive_compare::products::write;

/// A product and how it is run.
pub struct Product {
    /// A short name.
    pub name: &'static str,
    /// Which version.
    pub version: &'static str,
    /// How it does it.
    pub note: &'static str,
    /// Which queries it is given; all if there are none.
    queries: &'static [&'static str],
    program: Program,
}

enum Program {
    /// This program itself, with a task.
    Ours,
    /// A Python script: the interpreter, its file, its text.
    Python(PathBuf, &'static str, &'static str),
    /// A program that was built.
    Built(PathBuf),
}

/// Where a job reads and writes.
#[derive(Clone, Copy)]
pub struct Task<'a> {
    /// The query's name.
    pub query: &'a str,
    /// The folder of the files.
    pub data: &'a Path,
    /// What takes the answer.
    pub output: &'a Path,
    /// How many events come at once.
    pub per_epoch: usize,
}

impl Product {
    /// Whether it is given a query.
    #[must_use]
    pub fn runs(&self, query: &str) -> bool {
        self.queries.is_empty() || self.queries.contains(&query)
    }

    /// How to start it; what it needs is written into `folder`.
    ///
    /// # Errors
    /// If that cannot be written.
    pub fn command(&self, task: &Task<'_>, folder: &Path) -> Result<Command> {
        match &self.program {
            Program::Ours => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args([
                    "job",
                    self.name,
                    task.query,
                    "--epoch",
                    &task.per_epoch.to_string(),
                    "--data",
                ]);
                command.arg(task.data).arg("--output").arg(task.output);
                Ok(command)
            }
            Program::Python(interpreter, file, text) => {
                let mut command = Command::new(interpreter);
                command.arg(write(folder, file, text)?);
                Ok(task.told_to(command, folder))
            }
            Program::Built(program) => Ok(task.told_to(Command::new(program), folder)),
        }
    }
}

impl Task<'_> {
    /// A job of a peer reads its task from the environment.
    fn told_to(&self, mut command: Command, folder: &Path) -> Command {
        command.current_dir(folder).env("DATA", self.data).env("OUTPUT", self.output);
        command.env("QUERY", self.query).env("EPOCH", self.per_epoch.to_string());
        command
    }
}

/// Logdrive, with views.
pub const LOGDRIVE: Product = Product {
    name: "Logdrive",
    version: env!("CARGO_PKG_VERSION"),
    note: "its JSON decoder and a view on one worker; every change is written; no checkpoints",
    queries: &[],
    program: Program::Ours,
};

/// DataFusion, which sees all rows at once.
pub const DATAFUSION: Product = Product {
    name: "DataFusion",
    version: datafusion::DATAFUSION_VERSION,
    note: "a batch over the files: the floor, and the answer that all others are compared with",
    queries: &[],
    program: Program::Ours,
};

/// The peers, by the names of `--peers`.
pub const PEERS: &[&str] = &["flink", "pathway", "bytewax", "dbsp"];

/// What no peer is given, and why.
pub const LEFT_OUT: &[(&str, &str)] = &[
    ("Flink", "q6: its `OVER` takes no rows that are taken back"),
    (
        "Pathway",
        "q3, q8 and q9, as a column of the answer is called `id`, a name that it keeps for itself; q6, q11, q14, q15, q16, q21 and q22: not \
         written here, as they need functions in Python for each row or more than a few lines",
    ),
    (
        "Bytewax",
        "all with a join (q3, q4, q6, q8, q9, q20), as its `join` keeps one value a side or writes every pair anew; \
         q11, q14, q15, q16 and q21: not written here, as a dataflow in Python says nothing new there",
    ),
    (
        "dbsp",
        "q6, q11, q14, q15, q16 and q21: not written here, as each is a program of more than a few lines",
    ),
];

/// Gets a peer; the error says why it cannot be had.
///
/// # Errors
/// If it cannot be installed.
pub fn peer(name: &str, scratch: &Path) -> Result<Product> {
    let of = |package: Package, file, text| {
        package.environment(scratch).map(|program| Program::Python(program, file, text))
    };
    Ok(match name {
        "flink" => Product {
            name: "Flink",
            version: FLINK.version,
            note: "SQL in streaming mode on the local cluster, parallelism 1; mini-batches of an epoch, split distinct aggregates and reused \
                   objects, as its own Nexmark sets them; no checkpoints",
            queries: FLINK_QUERIES,
            program: of(FLINK, "flink_job.py", include_str!("../jobs/flink_job.py"))?,
        },
        "pathway" => Product {
            name: "Pathway",
            version: PATHWAY.version,
            note: "its table API, one thread; files are read as tables that do not change, as only such a run says when its answer is written: all rows at once, \
                   each row of the answer once; columns that are not used are not read",
            queries: &["read", "q0", "q1", "q2", "q4", "q5", "q7", "q17", "q18", "q19", "q20"],
            program: of(PATHWAY, "pathway_job.py", include_str!("../jobs/pathway_job.py"))?,
        },
        "bytewax" => Product {
            name: "Bytewax",
            version: BYTEWAX.version,
            note: "operators with functions in Python, one worker; batches of an epoch; the rows of a key are written anew once a batch",
            queries: &["read", "q0", "q1", "q2", "q5", "q7", "q17", "q18", "q19", "q22"],
            program: of(BYTEWAX, "bytewax_job.py", include_str!("../jobs/bytewax_job.py"))?,
        },
        "dbsp" => Product {
            name: "dbsp",
            version: dbsp::VERSION,
            note: "a library in Rust: each query a circuit that is compiled for it, one worker; an epoch a transaction, whose changes are written; nothing is stored; \
                   columns that are not used are not kept",
            queries: &[
                "read", "q0", "q1", "q2", "q3", "q4", "q5", "q7", "q8", "q9", "q17", "q18", "q19", "q20",
                "q22",
            ],
            program: Program::Built(dbsp::build(scratch)?),
        },
        other => return Err(format!("no peer is called {other:?}; there are {}", PEERS.join(", ")).into()),
    })
}

/// All but q6.
const FLINK_QUERIES: &[&str] = &[
    "read", "q0", "q1", "q2", "q3", "q4", "q5", "q7", "q8", "q9", "q11", "q14", "q15", "q16", "q17", "q18",
    "q19", "q20", "q21", "q22",
];
