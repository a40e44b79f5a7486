//! How each product is told to do W8.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::events::LATENESS;
use crate::error::Result;
use crate::process::Launch;
use crate::products::python::{BYTEWAX, FLINK, PATHWAY, Package};
use crate::products::{Logdrive, Product, SCHEMA, run, write};

/// The peers of W8, by the names of `--peers`.
pub const PEERS: &[&str] = &["bytewax", "pathway", "flink"];

const FLINK_KAFKA: &str = "flink-sql-connector-kafka";
const FLINK_KAFKA_VERSION: &str = "5.0.0-2.2";

/// Where a run reads and writes.
pub(super) struct Task<'a> {
    /// An empty folder of its own.
    pub(super) folder: &'a Path,
    /// The broker.
    pub(super) broker: &'a str,
    /// The topic that is full.
    pub(super) input: &'a str,
    /// The topic for the rows. Also the name of the consumer group, which is therefore new.
    pub(super) output: &'a str,
}

/// A product that can do it.
pub(super) trait Job {
    fn name(&self) -> &str;
    fn version(&self) -> &str;
    /// How it does it.
    fn note(&self) -> &str;
    fn launch(&self, task: &Task<'_>) -> Result<Launch>;
}

/// Logdrive: a view with `emit: final`.
pub(super) struct Ours<'a>(pub(super) &'a Logdrive);

impl Job for Ours<'_> {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn version(&self) -> &str {
        self.0.version()
    }

    fn note(&self) -> &'static str {
        "a view in SQL; all 15 fields are decoded"
    }

    fn launch(&self, task: &Task<'_>) -> Result<Launch> {
        self.0.launch_text(&pipeline(task), task.folder)
    }
}

fn pipeline(task: &Task<'_>) -> String {
    let Task { broker, input, output, .. } = task;
    format!(
        "api: off\n\
         sources:\n  events: {{ type: kafka, endpoint: [\"{broker}\"], topics: [\"{input}\"], group: \"{output}\", start: earliest, \
         decoder: json, schema: {SCHEMA} }}\n\
         views:\n  counted:\n    emit: final\n    lateness: {LATENESS}s\n    sql: >\n      \
         SELECT tenant, tumble_start(\"@timestamp\", INTERVAL '1 minute') AS \"window\", count(*) AS events, sum(amount) AS amount\n      \
         FROM events GROUP BY tenant, tumble(\"@timestamp\", INTERVAL '1 minute')\n\
         sinks:\n  out: {{ type: kafka, from: [counted], endpoint: [\"{broker}\"], topic: \"{output}\", key: \"{{tenant}}\" }}\n"
    )
}

/// A peer that is a Python package and a job for it.
struct Python {
    package: Package,
    note: &'static str,
    program: PathBuf,
    /// What the interpreter is given.
    arguments: &'static [&'static str],
    /// The name of the job's file, and its text.
    job: (&'static str, &'static str),
    /// What the job finds in the environment besides the topics.
    environment: Vec<(&'static str, PathBuf)>,
}

impl Job for Python {
    fn name(&self) -> &str {
        self.package.name
    }

    fn version(&self) -> &str {
        self.package.version
    }

    fn note(&self) -> &str {
        self.note
    }

    fn launch(&self, task: &Task<'_>) -> Result<Launch> {
        write(task.folder, self.job.0, self.job.1)?;
        let mut command = Command::new(&self.program);
        command.args(self.arguments).current_dir(task.folder);
        command.env("BROKER", task.broker).env("INPUT", task.input).env("OUTPUT", task.output);
        command
            .env("LATENESS", LATENESS.to_string())
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        Ok(Launch { command, log: task.folder.join("log") })
    }
}

/// Gets a peer; the error says why it cannot be had.
pub(super) fn peer(name: &str, scratch: &Path) -> Result<Box<dyn Job>> {
    let job = match name {
        "bytewax" => Python {
            package: BYTEWAX,
            note: "a fold over windows, one worker, batches of 10,000 as the default of 1,000 costs more; no recovery store",
            program: BYTEWAX.environment(scratch)?,
            arguments: &["-m", "bytewax.run", "bytewax_job:flow"],
            job: ("bytewax_job.py", include_str!("../../../jobs/bytewax_job.py")),
            environment: Vec::new(),
        },
        "pathway" => Python {
            package: PATHWAY,
            note: "`windowby` with `exactly_once_behavior`, one thread; no persistence; 3 fields are decoded",
            program: PATHWAY.environment(scratch)?,
            arguments: &["pathway_job.py"],
            job: ("pathway_job.py", include_str!("../../../jobs/pathway_job.py")),
            environment: Vec::new(),
        },
        "flink" => Python {
            package: FLINK,
            note: "`TUMBLE` in SQL on the local cluster, parallelism 1; no checkpoints; 3 fields are decoded",
            program: FLINK.environment(scratch)?,
            arguments: &["flink_job.py"],
            job: ("flink_job.py", include_str!("../../../jobs/flink_job.py")),
            environment: vec![("CONNECTOR", connector(&scratch.join("peers"))?)],
        },
        other => {
            return Err(format!("no peer of W8 is called {other:?}; there are {}", PEERS.join(", ")).into());
        }
    };
    Ok(Box::new(job))
}

/// Flink's connector for Kafka, which its package does not have.
fn connector(folder: &Path) -> Result<PathBuf> {
    let file = folder.join(format!("{FLINK_KAFKA}-{FLINK_KAFKA_VERSION}.jar"));
    if !file.exists() {
        let artifact = format!("-Dartifact=org.apache.flink:{FLINK_KAFKA}:{FLINK_KAFKA_VERSION}");
        let into = format!("-DoutputDirectory={}", folder.display());
        run(Command::new("mvn").args(["-q", "-B", "dependency:copy", &artifact, &into]).current_dir(folder))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pipeline_names_what_the_run_was_given() {
        let task = Task { folder: Path::new("unused"), broker: "127.0.0.1:9", input: "full", output: "rows" };
        let text = pipeline(&task);
        for part in
            ["topics: [\"full\"], group: \"rows\"", "topic: \"rows\", key: \"{tenant}\"", "lateness: 120s"]
        {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_job_reads_what_it_is_told_from_the_environment() {
        for text in [
            include_str!("../../../jobs/bytewax_job.py"),
            include_str!("../../../jobs/pathway_job.py"),
            include_str!("../../../jobs/flink_job.py"),
        ] {
            for name in ["BROKER", "INPUT", "OUTPUT", "LATENESS"] {
                assert!(
                    text.contains(&format!("\"{name}\"")) || text.contains(&format!("'{name}'")),
                    "{name}: {text}"
                );
            }
        }
        assert!(peer("nobody", &std::env::temp_dir().join("compare-jobs")).is_err());
    }
}
