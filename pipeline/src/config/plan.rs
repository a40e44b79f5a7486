//! The checked plan: what a configuration means, with every name resolved and every type known.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::FieldRef;
use logdrive_connectors::buffer::BufferConfig;
use logdrive_connectors::{DecoderEntry, Demand, Guarantee, SinkEntry, SourceEntry};
use logdrive_operators::{Detector, Stage, StepPlan, View};
use logdrive_queries::Functions;
use logdrive_schemas::RowSchema;
use logdrive_schemas::component::{Node, Span};

use super::postgres::PostgresPlan;
use crate::checkpoint::Place;

/// A pipeline that can run.
pub struct Plan {
    /// Buffers, checkpoints, positions, queues.
    pub data_dir: PathBuf,
    /// Where checkpoints lie.
    pub checkpoints: Place,
    /// Timely workers.
    pub workers: usize,
    /// Where the API listens; `None` if it is off.
    pub api: Option<SocketAddr>,
    /// Where clients of PostgreSQL are listened to, if they are.
    pub postgres: Option<PostgresPlan>,
    /// How many bytes of one source may be received and not delivered.
    pub in_flight_max_bytes: u64,
    /// How long a graceful stop may take.
    pub drain_timeout: Duration,
    /// After how long without progress, while there is input, the process ends; zero: never.
    pub stall_timeout: Duration,
    /// Where messages come from.
    pub sources: Vec<SourcePlan>,
    /// Ordered so that each comes after its inputs.
    pub streams: Vec<StreamPlan>,
    /// Stateful operators.
    pub detectors: Vec<DetectorPlan>,
    /// Functions that its SQL may call.
    pub functions: Functions,
    /// Queries that run for ever.
    pub views: Vec<ViewPlan>,
    /// Where rows go. Those that read `rejects` come last.
    pub sinks: Vec<SinkPlan>,
    /// `tests:`.
    pub tests: Vec<TestCase>,
}

/// A source and its decoder.
pub struct SourcePlan {
    /// Its name.
    pub name: Arc<str>,
    /// Its `type:`.
    pub entry: &'static SourceEntry,
    /// Its configuration.
    pub node: Node,
    /// Its decoder.
    pub decoder: &'static DecoderEntry,
    /// The decoder's configuration.
    pub decoder_node: Node,
    /// The declared fields.
    pub schema: RowSchema,
    /// The fields that the pipeline reads.
    pub demand: Demand,
    /// The column of what the source says of each message beside its bytes, if the pipeline reads it.
    pub attributes: Option<FieldRef>,
    /// The write-ahead buffer, if it needs one.
    pub buffer: BufferConfig,
}

/// A node that rows come out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Input {
    /// Findings.
    Detector(usize),
    /// Everything that failed.
    Rejects,
    /// A source's rows.
    Source(usize),
    /// A stream's rows.
    Stream(usize),
    /// A view's rows.
    View(usize),
}

/// Rows of one layout: a path from one source through steps. A stream over two sources has two lanes.
#[derive(Clone, Debug)]
pub struct Lane {
    /// The source, or nothing for findings and rejects.
    pub source: Option<usize>,
    /// What its rows look like.
    pub stage: Stage,
    /// The event-time column.
    pub event_time: String,
    /// How late a row may be.
    pub lateness: Duration,
}

/// A stream: inputs and steps.
pub struct StreamPlan {
    /// Its name; a routed part is `stream.route`.
    pub name: Arc<str>,
    /// Where its rows come from.
    pub inputs: Vec<Input>,
    /// The steps for each lane of each input, in the order of `inputs` and of their lanes.
    pub lanes: Vec<LanePlan>,
}

/// The steps of one lane.
pub struct LanePlan {
    /// The steps, in order.
    pub steps: Vec<StepPlan>,
    /// What comes out.
    pub output: Lane,
}

/// A detector.
pub struct DetectorPlan {
    /// Its name.
    pub name: Arc<str>,
    /// Its `type:`.
    pub kind: &'static str,
    /// Where its rows come from.
    pub inputs: Vec<Input>,
    /// The columns of all inputs joined: every lane is brought to this schema.
    pub input: Stage,
    /// The detector.
    pub detector: Arc<dyn Detector>,
    /// Its findings.
    pub output: Lane,
}

/// A view.
pub struct ViewPlan {
    /// Its name.
    pub name: Arc<str>,
    /// Where its rows come from, in the order in which the query names it.
    pub inputs: Vec<ViewInput>,
    /// The compiled query.
    pub view: Arc<dyn View>,
}

/// What a view reads.
pub struct ViewInput {
    /// Where the rows come from.
    pub input: Input,
    /// The columns of all its lanes: every lane is brought to this schema.
    pub columns: Stage,
}

/// A sink.
pub struct SinkPlan {
    /// Its name.
    pub name: Arc<str>,
    /// Its `type:`.
    pub entry: &'static SinkEntry,
    /// Its configuration.
    pub node: Node,
    /// Where its rows come from.
    pub inputs: Vec<Input>,
    /// `where`, and what is computed for the sink, for each lane of each input.
    pub steps: Vec<Vec<StepPlan>>,
    /// How strong its promise is.
    pub guarantee: Guarantee,
    /// What it may spill to disk.
    pub queue: QueueConfig,
}

/// `queue:` of a sink: what waits on disk while the sink cannot take it.
#[derive(Clone, Debug, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QueueConfig {
    /// How much may wait on disk. Beyond it the sources are slowed. 0 turns the queue off.
    #[serde(
        default = "QueueConfig::max_bytes_default",
        deserialize_with = "logdrive_schemas::component::bytes"
    )]
    #[schemars(with = "String")]
    pub max_bytes: u64,
    /// How much may wait in memory before the queue is used.
    #[serde(
        default = "QueueConfig::memory_bytes_default",
        deserialize_with = "logdrive_schemas::component::bytes"
    )]
    #[schemars(with = "String")]
    pub memory_bytes: u64,
}

impl QueueConfig {
    fn max_bytes_default() -> u64 {
        1 << 30
    }

    fn memory_bytes_default() -> u64 {
        32 << 20
    }
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self { max_bytes: Self::max_bytes_default(), memory_bytes: Self::memory_bytes_default() }
    }
}

/// One entry of `tests:`.
#[derive(Clone, Debug)]
pub struct TestCase {
    /// What it shows.
    pub name: String,
    /// Where it stands.
    pub span: Span,
    /// Messages per source.
    pub input: Vec<(usize, Vec<String>)>,
    /// Expected documents per stream, detector or `rejects`.
    pub expect: Vec<(Input, Vec<serde_json::Value>)>,
}

impl Plan {
    /// The paths of the Parquet files that the pipeline writes, by the names of their sinks, and of the streams that
    /// only one of them stores.
    #[must_use]
    pub fn lakes(&self) -> Vec<(String, String)> {
        let mut lakes = Vec::new();
        for sink in self.sinks.iter().filter(|sink| sink.entry.name == "parquet") {
            let Some(path) = sink.node.get("path").and_then(Node::as_str) else { continue };
            lakes.push((sink.name.to_string(), path.to_owned()));
            // A live view of that name is read as what it is now.
            if let [input @ (Input::Source(_) | Input::Stream(_) | Input::Detector(_))] = sink.inputs[..] {
                lakes.push((self.name(input).to_owned(), path.to_owned()));
            }
        }
        lakes
    }

    /// Whether the changes of a view go to a sink that writes each row once.
    #[must_use]
    pub fn has_outbox(&self, view: usize) -> bool {
        let reads = |sink: &SinkPlan| sink.is_exact() && sink.inputs.contains(&Input::View(view));
        self.views[view].tells_changes() && self.sinks.iter().any(reads)
    }

    /// The name of a node.
    #[must_use]
    pub fn name(&self, input: Input) -> &str {
        match input {
            Input::Detector(idx) => &self.detectors[idx].name,
            Input::Rejects => "rejects",
            Input::Source(idx) => &self.sources[idx].name,
            Input::Stream(idx) => &self.streams[idx].name,
            Input::View(idx) => &self.views[idx].name,
        }
    }
}

impl ViewPlan {
    /// What holds its changes back for sinks that write each row once.
    #[must_use]
    pub fn outbox(&self) -> String {
        format!("{}.outbox", self.name)
    }

    /// Whether it tells changes that are cut otherwise when they are told again. Rows of one that keeps nothing are told
    /// apart by their messages.
    fn tells_changes(&self) -> bool {
        self.view.table().is_some() && self.view.schema() != self.view.rows()
    }
}

impl SinkPlan {
    /// Whether it repeats no row of what it reads.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.guarantee == Guarantee::ExactlyOnce
    }

    /// Whether nobody asked for it: the file that takes the rejects that no sink takes.
    #[must_use]
    pub fn is_implicit(&self) -> bool {
        self.node.span == Span::default()
    }
}
