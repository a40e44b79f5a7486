//! Views: SQL over streams that never end, computed as rows come.
//!
//! DataFusion parses, analyses and optimises; what becomes of the plan has one of two engines. An aggregation over the
//! rows of one stream: `lower` makes stages and an aggregation of it; `flow` runs them on Arrow batches in a timely
//! dataflow, with DataFusion's expressions and accumulators. Windows are those of event time: a window closes when the
//! watermark passes its end. Everything else is left to `delta`, where rows may be taken back; it has the aggregations
//! right above a stream done by the first.

mod accumulators;
mod asof;
mod closed;
mod container;
mod delta;
mod flow;
mod grouping;
mod health;
mod keep;
mod log;
mod lower;
mod narrow;
mod output;
mod past;
mod saved;
mod scatter;
mod sessions;
mod spec;
mod sql;
mod table;
#[cfg(test)]
mod tests;
mod times;
mod watermark;
mod windows;

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use arrow::datatypes::{DataType, Field, SchemaRef};
use logdrive_operators::{CompileError, View, ViewInput, ViewOutput, WorkerContext};
use xxhash_rust::xxh3::xxh3_64;

use self::delta::DeltaView;
use self::health::Health;
pub use self::narrow::Narrow;
pub use self::output::{CHANGE, EPOCH, with_change};
use self::past::Past;
use self::spec::{Spec, Stage};
pub use self::sql::Table;
use self::watermark::Watermark;
use self::windows::Windowing;
use crate::compiler::on_large_stack;
use crate::functions::Functions;

/// What leaves a view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Emit {
    /// Every change of a row, with `_change` (`insert` or `delete`) and `_epoch`.
    #[default]
    Changes,
    /// Each row once, when its window closes.
    Final,
}

/// How a view runs.
#[derive(Clone, Debug)]
pub struct ViewOptions {
    /// Its name in the pipeline.
    pub name: Arc<str>,
    /// What leaves it.
    pub emit: Emit,
    /// How late a row may be.
    pub lateness: Duration,
    /// After how long without rows a partition of a source no longer holds back the others.
    pub idle_timeout: Duration,
    /// How many bytes its state may take on all workers together, about.
    pub max_bytes: u64,
    /// For how long after its end a window can still be read.
    pub retain: Duration,
    /// Whether its state may have a group for every key that ever comes.
    pub unbounded: bool,
    /// Functions that users define.
    pub functions: Functions,
}

/// Compiles a query over `inputs`: the tables that it names, in the order of [`tables`].
///
/// # Errors
/// If the query does not parse, names what does not exist, does not fit its types, uses what views cannot do, or would
/// keep state for ever without being told so.
pub fn plan(sql: &str, inputs: &[Table], options: ViewOptions) -> Result<Arc<dyn View>, CompileError> {
    on_large_stack(|| {
        let planned = sql::plan(sql, inputs, &options.functions)?;
        if planned.is_plain(inputs) {
            let (plan, state) = planned.plain()?;
            let spec = lower::lower(&plan, &state)?;
            check_bound(&spec, &options)?;
            return Ok(Arc::new(SqlView::new(spec, options)) as _);
        }
        let (plan, state) = planned.any()?;
        Ok(Arc::new(DeltaView::new(&plan, &state, inputs, options)?) as _)
    })
}

/// The names of the tables that a query reads, as written; empty if it does not parse.
#[must_use]
pub fn tables(sql: &str) -> Vec<String> {
    sql::tables(sql)
}

/// Whether a function of this name means something of its own in a view.
pub(crate) fn is_reserved(function: &str) -> bool {
    let of_windows = || {
        let edge = function.strip_suffix("_start").or_else(|| function.strip_suffix("_end"));
        windows::Kind::ALL.into_iter().any(|kind| kind.name() == edge.unwrap_or(function))
    };
    [windows::NOW, asof::AS_OF].contains(&function) || of_windows()
}

fn check_bound(spec: &Spec, options: &ViewOptions) -> Result<(), CompileError> {
    let Some(aggregation) = &spec.aggregation else { return Ok(()) };
    if aggregation.windows.is_some() {
        return Ok(());
    }
    if options.emit == Emit::Final {
        return Err(CompileError {
            code: "sql::unbounded",
            message: "without windows no group is ever final".into(),
            help: Some("group by tumble(…), hop(…) or session(…), or leave `emit: final` out".into()),
            at: None,
        });
    }
    if aggregation.keys.is_empty() || options.unbounded {
        return Ok(());
    }
    Err(CompileError {
        code: "sql::unbounded",
        message: "the state grows with every new key, and never shrinks".into(),
        help: Some(
            "group by tumble(…), hop(…) or session(…) as well, so that groups end; or say `unbounded: true` if the keys are few"
                .into(),
        ),
        at: None,
    })
}

/// What bounds the state of a view in any case, for a reader.
fn bound(max_bytes: u64) -> String {
    format!("all state together takes at most {max_bytes} bytes (`max_bytes`); beyond that the view stops")
}

/// Changes when old state does not fit any more.
fn fingerprint(spec: &Spec, options: &ViewOptions) -> u64 {
    let mut text = spec.plan.clone();
    let schema = spec.aggregation.as_ref().map(|aggregation| &aggregation.part_schema);
    write!(text, "{:?} {schema:?}", options.emit).expect("writing to a string cannot fail");
    xxh3_64(text.as_bytes())
}

/// A compiled view.
#[derive(Clone, Debug)]
struct SqlView {
    name: Arc<str>,
    spec: Arc<Spec>,
    options: ViewOptions,
    fingerprint: u64,
    /// Whether it has stopped, on all workers.
    stopped: Arc<AtomicBool>,
}

impl SqlView {
    fn new(spec: Spec, options: ViewOptions) -> Self {
        let fingerprint = fingerprint(&spec, &options);
        let (name, stopped) = (Arc::clone(&options.name), Arc::default());
        Self { name, spec: Arc::new(spec), options, fingerprint, stopped }
    }

    fn health(&self, cx: &WorkerContext) -> Health {
        Health::new(&self.name, &self.stopped, self.options.max_bytes, cx)
    }

    fn windowing(&self) -> Option<Windowing> {
        self.spec.aggregation.as_ref().and_then(|aggregation| aggregation.windows).map(|(windows, _)| windows)
    }

    /// For how long after its start a window is kept by those who read the view, in microseconds; `None` if it has no
    /// windows of a fixed size.
    fn retained(&self) -> Option<i64> {
        let Some(Windowing::Fixed(windows)) = self.windowing() else { return None };
        let retain = i64::try_from(self.options.retain.as_micros()).unwrap_or(i64::MAX);
        Some(windows.size.saturating_add(retain))
    }

    /// Whether all rows are in one group, for ever.
    fn has_one_group(&self) -> bool {
        self.windowing().is_none()
            && self.spec.aggregation.as_ref().is_some_and(|aggregation| aggregation.keys.is_empty())
    }

    fn operator(&self, part: &str) -> String {
        format!("{}.{part}", self.name)
    }

    fn watermark(&self, cx: &WorkerContext) -> Watermark {
        Watermark::new(self.options.lateness, self.options.idle_timeout, cx.peers)
    }
}

impl View for SqlView {
    fn reads(&self) -> Vec<Vec<String>> {
        vec![self.spec.reads.clone()]
    }

    fn schema(&self) -> SchemaRef {
        match self.options.emit {
            Emit::Changes => with_change(&self.spec.schema),
            Emit::Final => Arc::clone(&self.spec.schema),
        }
    }

    fn rows(&self) -> SchemaRef {
        Arc::clone(&self.spec.schema)
    }

    fn table(&self) -> Option<SchemaRef> {
        self.spec.aggregation.as_ref().map(|_| Arc::clone(&self.spec.schema))
    }

    fn event_time(&self) -> Option<&str> {
        time_of(&self.spec.schema)
    }

    fn operators(&self) -> Vec<String> {
        match self.spec.aggregation {
            Some(_) => vec![self.operator("gather"), self.operator("keep")],
            None => Vec::new(),
        }
    }

    fn fingerprints(&self) -> Vec<(String, u64)> {
        self.operators().into_iter().map(|operator| (operator, self.fingerprint)).collect()
    }

    fn explain(&self) -> String {
        let mut text = format!("{}\n\n", self.spec.plan);
        let stages = |stages: &[Stage]| {
            let names = stages.iter().map(|stage| match stage {
                Stage::Filter(condition) => format!("filter {condition}"),
                Stage::Project(expressions, _) => format!("project {} columns", expressions.len()),
            });
            names.collect::<Vec<_>>().join(" → ")
        };
        let mut line = |what: &str, value: &str| {
            if !value.is_empty() {
                writeln!(text, "{what}: {value}").expect("writing to a string cannot fail");
            }
        };
        line("reads", &self.spec.reads.join(", "));
        line("stages", &stages(&self.spec.before));
        if let Some(aggregation) = &self.spec.aggregation {
            let aggregates: Vec<&str> = aggregation.aggregates.iter().map(|a| a.function.name()).collect();
            line("aggregates", &aggregates.join(", "));
            match aggregation.windows {
                Some((Windowing::Session { gap }, time)) => {
                    let (time, gap) = (&self.spec.reads[time], gap as f64 / 1e6);
                    line("windows", &format!("sessions of `{time}` that end after a pause of {gap} s"));
                    line("state", "one row per open session");
                }
                Some((Windowing::Fixed(windows), time)) => {
                    line(
                        "windows",
                        &format!(
                            "{} s every {} s of `{}`, in panes of {} s",
                            windows.size as f64 / 1e6,
                            windows.slide as f64 / 1e6,
                            self.spec.reads[time],
                            windows.pane() as f64 / 1e6,
                        ),
                    );
                    line("state", "one row per open window and key");
                }
                None => line("state", "one row per key, for ever"),
            }
        }
        line("stages behind", &stages(&self.spec.after));
        line(
            "emits",
            match self.options.emit {
                Emit::Changes if self.spec.aggregation.is_none() => "every row, once [append]",
                Emit::Changes => "every change (`_change`, `_epoch`) [insert, delete]",
                Emit::Final => "each row once, when its window closes [append]",
            },
        );
        if self.spec.aggregation.is_some() {
            line("bound", &bound(self.options.max_bytes));
        }
        text
    }

    fn attach<'scope>(&self, mut inputs: Vec<ViewInput<'scope>>, cx: &WorkerContext) -> ViewOutput<'scope> {
        let (view, health) = (Arc::new(self.clone()), self.health(cx));
        // What keeps its result is read by the other engine.
        let input = inputs.swap_remove(0).rows;
        if self.spec.aggregation.is_none() {
            let (rows, rejects) = flow::attach_pass(&view, input, health);
            return ViewOutput { rows, rejects, beginning: None };
        }
        let past = Past::of([(self.operator("keep"), self.fingerprint)], self.options.max_bytes, cx);
        past.stop_again(&health);
        flow::attach(&view, input, &health, past == Past::Rows).0
    }
}

/// The column that says when a row happened, if there is one.
fn time_of(schema: &SchemaRef) -> Option<&str> {
    let is_time = |field: &&Arc<Field>| matches!(field.data_type(), DataType::Timestamp(..));
    let named = schema.fields().iter().filter(is_time).find(|field| field.name() == "@timestamp");
    named.or_else(|| schema.fields().iter().find(is_time)).map(|field| field.name().as_str())
}
