//! Stateless steps: functions over batches.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use logdrive_schemas::component::{Component, ConfigError, Node};
use logdrive_schemas::{Batch, Layout};

use crate::expression::Compiler;

/// What a step makes of a batch. Every row of the input is in `rows`, in `rejects`, or counted in `n_filtered`.
#[derive(Debug, Default)]
pub struct Emit {
    /// Rows that go on.
    pub rows: Vec<Batch>,
    /// Rows that failed, as batches of the `rejects` stream.
    pub rejects: Vec<Batch>,
    /// Rows removed because the user asked to.
    pub n_filtered: usize,
}

/// A stateless function over batches; one instance per worker.
pub trait Step: Send {
    /// Called once per batch, in any order.
    fn apply(&mut self, batch: Batch, out: &mut Emit);
}

/// What rows look like between two steps.
#[derive(Clone, Debug)]
pub struct Stage {
    /// The columns.
    pub schema: SchemaRef,
    /// How a row leaves as a document.
    pub layout: Arc<Layout>,
}

/// What steps may use while they are planned and built.
#[derive(Clone, Debug)]
pub struct StepContext {
    /// The stream that the step belongs to.
    pub stream: Arc<str>,
    /// Compiles SQL.
    pub compiler: Arc<dyn Compiler>,
    /// The folder that relative paths start at.
    pub working_dir: PathBuf,
}

/// A step that fits its input.
pub struct StepPlan {
    /// What rows look like behind it.
    pub output: Stage,
    /// The columns that it reads.
    pub reads: Vec<String>,
    /// The columns that it makes, which therefore need not come from the source.
    pub writes: Vec<String>,
    /// Columns that it renames: from, to.
    pub renames: Vec<(String, String)>,
    /// Makes an instance for one worker.
    pub build: Box<dyn Fn() -> Box<dyn Step> + Send + Sync>,
    /// Tables on disk that all instances share. The runtime asks each of them every few seconds, on a thread that may
    /// block, to look whether its file has changed.
    pub reloads: Vec<Arc<dyn Reloadable>>,
}

/// Something read from a file that may be replaced while it is in use.
pub trait Reloadable: Send + Sync {
    /// The file's name, for logs and the label of `logdrive_table_reloads_total`.
    fn name(&self) -> &str;

    /// Reads the file again if it has changed. Blocks. `Ok(true)` if there is something new from now on.
    ///
    /// # Errors
    /// If the new file cannot be used; what was read before stays in use, and the same file is not tried again.
    fn reload_if_changed(&self) -> Result<bool, String>;
}

/// The YAML of a step: `- NAME: <configuration>`.
pub trait StepConfig: Component {
    /// Checks the step against its input. `node` is the configuration, for the places of errors (`SQL` in a map is
    /// found by its key). Called twice: with every declared field, then with only those that the pipeline reads.
    /// Opens files (a geo database) so that a missing one is an error before anything runs.
    ///
    /// # Errors
    /// All that is wrong.
    fn plan(self, node: &Node, input: &Stage, cx: &StepContext) -> Result<StepPlan, Vec<ConfigError>>;
}

/// One line of the registry.
pub struct StepEntry {
    /// The key of the step in YAML.
    pub name: &'static str,
    /// A complete fragment of YAML.
    pub example: &'static str,
    /// The JSON Schema of its configuration.
    pub schema: fn() -> schemars::Schema,
    /// Reads the YAML and plans.
    pub plan: fn(&Node, &Stage, &StepContext) -> Result<StepPlan, Vec<ConfigError>>,
}

impl StepEntry {
    /// The entry of a configuration type.
    #[must_use]
    pub const fn of<C: StepConfig>() -> Self {
        Self {
            name: C::NAME,
            example: C::EXAMPLE,
            schema: || schemars::schema_for!(C),
            plan: |node, input, cx| {
                let mut errors = Vec::new();
                let config = logdrive_schemas::component::parse::<C>(node, &mut errors).ok_or(errors)?;
                config.plan(node, input, cx)
            },
        }
    }
}
