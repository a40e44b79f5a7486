//! Views whose rows may be taken back: joins, first rows, recursion, views over views. By differential dataflow, on rows
//! as bytes; expressions, accumulators and window functions are DataFusion's.
//!
//! ```text
//! batches ─ leaf ─┬─ exchange by row ─ keeper ─► stages, joins, groups, … (arranged by key) ─ result ─► changes
//!                 └► rejects
//! ```
//!
//! Only what keepers have is written into checkpoints, as it changes: the rows that came in and are still in. All else
//! follows from them: after a crash they come again at time zero, and what the view is then was told before.

mod arranged;
mod asof;
mod bag;
mod codec;
mod exact;
mod failed;
mod finality;
mod fold;
mod groups;
mod interval;
mod keeper;
mod kept;
mod last;
mod leaf;
mod lifetime;
mod lower;
mod moments;
mod plan;
mod ranks;
mod render;
mod result;

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arrow::datatypes::SchemaRef;
use datafusion::common::Result;
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use logdrive_operators::{BatchStream, Beginning, CompileError, View, ViewInput, ViewOutput, WorkerContext};
use timely::dataflow::operators::generic::operator::empty;
use timely::dataflow::operators::{Concat, Concatenate};
use xxhash_rust::xxh3::xxh3_64;

use self::codec::Codec;
use self::keeper::Keeper;
use self::last::Final;
use self::leaf::Entrance;
use self::plan::{Clock, Leaf, Node};
use self::render::Renderer;
use super::health::Health;
use super::output::{Shape, with_change};
use super::past::Past;
use super::watermark::Watermark;
use super::{Emit, Table, ViewOptions, flow, times};

/// A view by differential dataflow.
#[derive(Debug)]
pub(super) struct DeltaView {
    options: ViewOptions,
    leaves: Arc<Vec<Leaf>>,
    clocks: Vec<Clock>,
    root: Node,
    plan: String,
    n_inputs: usize,
    operators: String,
    /// Columns with times and what is added to them: when the watermark has come there, a row is final. `None` if changes
    /// are told.
    until: Option<Vec<(usize, i64)>>,
    fingerprint: u64,
    stopped: Arc<AtomicBool>,
}

impl DeltaView {
    /// The view that computes an optimised plan over `tables`.
    ///
    /// # Errors
    /// If the plan has what views cannot do, would keep rows for ever without being told so, or no row of it is ever
    /// final though that is asked for.
    pub(super) fn new(
        plan: &LogicalPlan,
        state: &SessionState,
        tables: &[Table],
        options: ViewOptions,
    ) -> Result<Self, CompileError> {
        let spec = lower::lower(plan, state, tables, &options)?;
        let refuse = |message: String, help: &str| CompileError {
            code: "sql::unbounded",
            message,
            help: Some(help.into()),
            at: None,
        };
        let until = finality::of(&spec.root, &spec.leaves).filter(|_| options.emit == Emit::Final);
        if options.emit == Emit::Final && until.is_none() {
            return Err(refuse(
                "no row of this query is ever final".into(),
                "a row is final when the watermark has passed a time that is in a column of it: the start or end of a window over a stream, which is also among what is grouped, joined or partitioned by; or, of a join of streams whose times are at most so far apart, their times. Or leave `emit: final` out",
            ));
        }
        let endless = spec.leaves.iter().find(|leaf| !options.unbounded && !leaf.is_bounded());
        if let Some(leaf) = endless {
            return Err(refuse(
                format!("the rows of `{}` are kept for ever", leaf.table),
                "add WHERE \"@timestamp\" > now() - INTERVAL '1 hour', or the like, to what is read of it, or group it by tumble(…) first, or join it ON … AND b.\"@timestamp\" BETWEEN a.\"@timestamp\" AND a.\"@timestamp\" + INTERVAL '10 minutes'; or say `unbounded: true` if it stays small",
            ));
        }
        let operators = spec.explain();
        let read: Vec<u64> = tables.iter().map(|table| table.fingerprint).collect();
        let fingerprint = xxh3_64(format!("{}\n{operators}\n{read:?}{until:?}", spec.plan).as_bytes());
        let mut leaves = spec.leaves;
        if until.is_some() {
            let slack = finality::slack(&spec.root, &leaves);
            leaves.iter_mut().for_each(|leaf| leaf.slack = slack);
        }
        for pane in leaves.iter_mut().filter_map(|leaf| leaf.pane.as_mut()) {
            // Its state is that of the view: it tells changes of rows that the view has.
            Arc::make_mut(pane).fingerprint ^= fingerprint;
        }
        Ok(Self {
            options,
            leaves: Arc::new(leaves),
            clocks: spec.clocks,
            root: spec.root,
            plan: spec.plan,
            n_inputs: tables.len(),
            operators,
            until,
            fingerprint,
            stopped: Arc::default(),
        })
    }

    /// What is called so of a leaf.
    fn operator(&self, part: &str, leaf: usize) -> String {
        format!("{}.{part}{leaf}", self.options.name)
    }

    /// What the checkpoint has of it.
    fn past(&self, cx: &WorkerContext) -> Past {
        let keepers = self.leaves.iter().enumerate().flat_map(|(idx, leaf)| {
            let pane = leaf.pane.as_ref().map(|pane| (pane.operator("keep"), pane.fingerprint));
            pane.into_iter().chain([(self.operator("leaf", idx), self.fingerprint)])
        });
        Past::of(keepers, self.options.max_bytes, cx)
    }

    fn clock<'scope>(
        &self,
        idx: usize,
        input: &BatchStream<'scope>,
        health: &Health,
    ) -> times::Timed<'scope> {
        let ViewOptions { lateness, idle_timeout, .. } = self.options;
        let clock = times::Clock {
            operator: self.operator("times", idx),
            column: self.clocks[idx].column.clone(),
            watermark: Watermark::new(lateness, idle_timeout, health.cx.peers),
            fingerprint: self.fingerprint,
        };
        times::attach(clock, input.clone(), health)
    }

    fn build<'scope>(&self, inputs: &[ViewInput<'scope>], health: &Health) -> Result<ViewOutput<'scope>> {
        let scope = inputs[0].rows.scope();
        let (mut leaves, mut rejects) = (Vec::new(), Vec::new());
        let past = self.past(&health.cx);
        past.stop_again(health);
        // The rows of a view that begins anew are others than those that are kept here.
        let is_outdated = inputs.iter().filter_map(|input| input.beginning.as_ref()).any(Beginning::is_new);
        let goes_on = past == Past::Rows && !is_outdated;
        let rows_of = |input: &ViewInput<'scope>| match &input.beginning {
            Some(beginning) if !goes_on => input.rows.clone().concat(beginning.rows()),
            _ => input.rows.clone(),
        };
        let inputs: Vec<_> = inputs.iter().map(rows_of).collect();
        let clocks = self.clocks.iter().enumerate();
        let clocks: Vec<_> =
            clocks.map(|(idx, clock)| self.clock(idx, &inputs[clock.input], health)).collect();
        // A row leaves one side when the other can have no partner for it: when both have come so far.
        let mut all_bars: Vec<_> = clocks.iter().map(|timed| timed.bars.clone()).collect();
        let least = times::least(all_bars.clone());
        for (idx, leaf) in self.leaves.iter().enumerate() {
            let input = inputs[leaf.input].clone();
            let (input, bars) = match (&leaf.pane, leaf.clock, &least) {
                (Some(pane), ..) => {
                    let (output, bars) = flow::attach(pane, input, health, goes_on);
                    rejects.push(output.rejects);
                    all_bars.push(bars.clone());
                    (output.rows, bars)
                }
                (None, Some(clock), Some(least)) => (clocks[clock].rows.clone(), least.clone()),
                _ => (input, empty(scope)),
            };
            let (rows, refused) = leaf::attach(Entrance::new(self, idx, health)?, input);
            leaves.push(keeper::attach(Keeper::new(self, idx, goes_on, health)?, rows, bars));
            rejects.push(refused);
        }
        rejects.extend(clocks.into_iter().map(|timed| timed.rejects));
        let mut renderer = Renderer { scope, leaves, found: None, rejects: Vec::new(), health };
        let rows = renderer.node(&self.root)?;
        rejects.append(&mut renderer.rejects);
        let shape = Shape::new(&self.options.name, &self.root.schema, self.until.is_none());
        let codec = Codec::new(&self.root.schema)?;
        let (rows, beginning) = match (&self.until, times::least(all_bars)) {
            (Some(until), Some(bars)) => {
                let (operator, until, fingerprint) =
                    (self.operator("final", 0), until.clone(), self.fingerprint);
                let end = Final { operator, until, codec, shape, fingerprint, goes_on };
                last::attach(end, rows, bars, health)
            }
            _ => result::attach(rows, codec, shape, goes_on, health),
        };
        Ok(ViewOutput { rows, rejects: scope.concatenate(rejects), beginning: Some(beginning) })
    }
}

impl View for DeltaView {
    fn reads(&self) -> Vec<Vec<String>> {
        let mut reads = vec![Vec::new(); self.n_inputs];
        for leaf in self.leaves.iter() {
            for column in &leaf.reads {
                if !reads[leaf.input].contains(column) {
                    reads[leaf.input].push(column.clone());
                }
            }
        }
        reads
    }

    fn schema(&self) -> SchemaRef {
        match self.until {
            Some(_) => Arc::clone(&self.root.schema),
            None => with_change(&self.root.schema),
        }
    }

    fn rows(&self) -> SchemaRef {
        Arc::clone(&self.root.schema)
    }

    fn table(&self) -> Option<SchemaRef> {
        Some(Arc::clone(&self.root.schema))
    }

    fn event_time(&self) -> Option<&str> {
        super::time_of(&self.root.schema)
    }

    fn operators(&self) -> Vec<String> {
        self.fingerprints().into_iter().map(|(operator, _)| operator).collect()
    }

    fn fingerprints(&self) -> Vec<(String, u64)> {
        let of_leaf = |(idx, leaf): (usize, &Leaf)| {
            let mut fingerprints = leaf.pane.as_ref().map_or_else(Vec::new, |pane| pane.fingerprints());
            fingerprints.extend(["in", "leaf"].map(|part| (self.operator(part, idx), self.fingerprint)));
            fingerprints
        };
        let clocks = (0..self.clocks.len()).map(|idx| self.operator("times", idx));
        let others = clocks.chain(self.until.iter().map(|_| self.operator("final", 0)));
        let others = others.map(|operator| (operator, self.fingerprint));
        self.leaves.iter().enumerate().flat_map(of_leaf).chain(others).collect()
    }

    fn explain(&self) -> String {
        let mut text = format!("{}\n\noperators:\n", self.plan);
        for line in self.operators.lines() {
            writeln!(text, "  {line}").expect("writing to a string cannot fail");
        }
        text.push_str(match self.until {
            Some(_) => "emits: each row once, when the watermark says that it cannot change\n",
            None => "emits: every change (`_change`, `_epoch`)\n",
        });
        let bound = super::bound(self.options.max_bytes);
        writeln!(text, "bound: {bound}").expect("writing to a string cannot fail");
        text
    }

    fn attach<'scope>(&self, inputs: Vec<ViewInput<'scope>>, cx: &WorkerContext) -> ViewOutput<'scope> {
        let options = &self.options;
        let health = Health::new(&options.name, &self.stopped, options.max_bytes, cx);
        self.build(&inputs, &health).unwrap_or_else(|error| {
            health.stop(&crate::compiler::readable(&error));
            let scope = inputs[0].rows.scope();
            ViewOutput { rows: empty(scope), rejects: empty(scope), beginning: None }
        })
    }
}

impl Leaf {
    /// Whether its rows leave some day.
    fn is_bounded(&self) -> bool {
        let has_windows = self.pane.as_ref().is_some_and(|pane| pane.retained().is_some());
        let is_one_row = self.pane.as_ref().is_some_and(|pane| pane.has_one_group());
        has_windows || is_one_row || !self.lifetime.is_endless()
    }
}
