//! What a view computes by differential dataflow: a tree of nodes, each with the columns of its rows.

use std::fmt::Write as _;
use std::sync::Arc;

use arrow::compute::SortOptions;
use arrow::datatypes::SchemaRef;
use datafusion::common::JoinType;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::window::WindowExpr;
use datafusion::physical_plan::PhysicalExpr;

use super::super::SqlView;
use super::super::spec::Stage;
use super::groups;
use super::interval::Interval;

/// A part of a query.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) schema: SchemaRef,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// Rows that come from outside.
    Leaf(usize),
    /// What does not look beyond a row.
    Stages(Box<Node>, Arc<Vec<Stage>>),
    /// Rows that match.
    Join(Box<Join>),
    /// Rows, each with the one that was the latest at its time.
    AsOf(Box<AsOf>),
    /// One row for each key.
    Group(Box<Group>),
    /// Every row with the values of window functions over its partition.
    Rank(Box<Rank>),
    /// The first rows in an order.
    First(Box<First>),
    /// The rows of all.
    Union(Vec<Node>),
    /// The rows of `start`, and what `step` makes of them again and again until nothing new comes.
    Fixpoint { start: Box<Node>, step: Box<Node> },
    /// In a `step`: what was found so far.
    Found,
}

/// Two inputs, and which of their rows belong together.
#[derive(Debug)]
pub(super) struct Join {
    pub(super) left: Node,
    pub(super) right: Node,
    /// What must be equal.
    pub(super) left_keys: Vec<Arc<dyn PhysicalExpr>>,
    pub(super) right_keys: Vec<Arc<dyn PhysicalExpr>>,
    /// Whether NULL equals NULL.
    pub(super) nulls_match: bool,
    /// What must be true of both rows, left columns first.
    pub(super) filter: Option<Arc<dyn PhysicalExpr>>,
    /// The columns that the filter sees.
    pub(super) both: SchemaRef,
    pub(super) join_type: JoinType,
    /// How far times of both sides are apart.
    pub(super) interval: Option<Interval>,
}

/// ASOF JOIN.
#[derive(Debug)]
pub(super) struct AsOf {
    pub(super) left: Side,
    pub(super) right: Side,
    /// Whether the row of the right side is the first that comes, not the last that came.
    pub(super) is_next: bool,
    /// Whether it may not be of the same moment.
    pub(super) is_strict: bool,
}

/// An input of [`AsOf`].
#[derive(Debug)]
pub(super) struct Side {
    pub(super) input: Node,
    /// What must be equal to the other's; nothing equals NULL.
    pub(super) keys: Vec<Arc<dyn PhysicalExpr>>,
    pub(super) time: Arc<dyn PhysicalExpr>,
}

/// GROUP BY.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) input: Node,
    pub(super) keys: Vec<Arc<dyn PhysicalExpr>>,
    pub(super) calls: Vec<Call>,
    /// What the aggregates look at, each once.
    pub(super) arguments: Vec<Arc<dyn PhysicalExpr>>,
    pub(super) argument_schema: SchemaRef,
    /// What they give.
    pub(super) values: SchemaRef,
}

/// An aggregate function over some of the arguments.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) function: Arc<AggregateFunctionExpr>,
    /// Its arguments, and those of its ORDER BY.
    pub(super) columns: Vec<usize>,
    /// `FILTER (WHERE …)`.
    pub(super) filter: Option<usize>,
}

/// Window functions.
#[derive(Debug)]
pub(super) struct Rank {
    pub(super) input: Node,
    pub(super) partition: Vec<Arc<dyn PhysicalExpr>>,
    pub(super) order: Vec<Order>,
    pub(super) functions: Vec<Arc<dyn WindowExpr>>,
    /// Only the first rows of each partition are wanted.
    pub(super) limit: Option<usize>,
}

/// ORDER BY … LIMIT.
#[derive(Debug)]
pub(super) struct First {
    pub(super) input: Node,
    pub(super) order: Vec<Order>,
    pub(super) skip: usize,
    pub(super) fetch: usize,
}

/// A column of an order.
#[derive(Clone, Debug)]
pub(super) struct Order {
    pub(super) by: Arc<dyn PhysicalExpr>,
    pub(super) options: SortOptions,
}

/// Rows that come from outside: of a source or stream, of another view, or of windows over a stream.
#[derive(Debug)]
pub(super) struct Leaf {
    /// Which of the inputs.
    pub(super) input: usize,
    /// Its name.
    pub(super) table: String,
    /// The columns that are read of it.
    pub(super) reads: Vec<String>,
    /// Whether its rows say what they change.
    pub(super) changes: bool,
    /// Aggregates the rows before they get here.
    pub(super) pane: Option<Arc<SqlView>>,
    /// What becomes of a row before its time is looked at, and after that.
    pub(super) before: Vec<Stage>,
    pub(super) lifetime: Lifetime,
    /// Which of the clocks its event time is that of, if it has one.
    pub(super) clock: Option<usize>,
    /// For how much longer its rows are kept, in microseconds, so that what is computed of them becomes final.
    pub(super) slack: i64,
    pub(super) after: Vec<Stage>,
    pub(super) schema: SchemaRef,
}

impl Leaf {
    /// Columns of an input, with nothing done to them.
    pub(super) fn new(input: usize, table: &str, reads: Vec<String>, schema: SchemaRef) -> Self {
        Self {
            input,
            table: table.to_owned(),
            reads,
            changes: false,
            pane: None,
            before: Vec::new(),
            lifetime: Lifetime::default(),
            clock: None,
            slack: 0,
            after: Vec::new(),
            schema,
        }
    }
}

/// A column of an input that says how far event time has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Clock {
    pub(super) input: usize,
    pub(super) column: String,
}

/// From when to when a row is in the view, in microseconds since the Unix epoch, by conditions on `now()`.
#[derive(Debug, Default)]
pub(super) struct Lifetime {
    /// It is in from the latest of these on.
    pub(super) from: Vec<Bound>,
    /// Until the earliest of these.
    pub(super) until: Vec<Bound>,
    /// Until the watermark passes this.
    pub(super) behind: Option<Bound>,
}

/// An edge of a [`Lifetime`].
#[derive(Debug)]
pub(super) struct Bound {
    /// A timestamp.
    pub(super) at: Arc<dyn PhysicalExpr>,
    /// Added to it, in microseconds: 1 if the row is still in, or not yet in, at that very moment.
    pub(super) plus: i64,
}

impl Lifetime {
    pub(super) fn is_endless(&self) -> bool {
        self.until.is_empty() && self.behind.is_none()
    }
}

/// What an operator hands on: rows that stay, or also rows that are taken back.
const MODES: [&str; 2] = [" [append]", " [insert, delete]"];

/// Before what is told of operators that are within a leaf.
const WITHIN: &str = "  | ";

/// A query, ready to run.
#[derive(Debug)]
pub(super) struct DeltaSpec {
    pub(super) leaves: Vec<Leaf>,
    pub(super) clocks: Vec<Clock>,
    pub(super) root: Node,
    /// The query's plan, for a reader.
    pub(super) plan: String,
}

impl DeltaSpec {
    /// The operators, for a reader: what each keeps, and what bounds that.
    pub(super) fn explain(&self) -> String {
        let mut text = String::new();
        self.line(&self.root, 0, &mut text);
        text
    }

    /// Whether rows that leave a node may be taken back later.
    fn takes_back(&self, node: &Node) -> bool {
        match &node.kind {
            Kind::Leaf(idx) => {
                let leaf = &self.leaves[*idx];
                leaf.changes || leaf.pane.is_some() || !leaf.lifetime.is_endless()
            }
            Kind::Stages(input, _) => self.takes_back(input),
            Kind::Join(join) => {
                join.join_type != JoinType::Inner
                    || self.takes_back(&join.left)
                    || self.takes_back(&join.right)
            }
            Kind::Group(group) => !group.calls.is_empty() || self.takes_back(&group.input),
            Kind::AsOf(_) | Kind::Rank(_) | Kind::First(_) => true,
            Kind::Union(inputs) => inputs.iter().any(|input| self.takes_back(input)),
            Kind::Fixpoint { start, step } => self.takes_back(start) || self.takes_back(step),
            Kind::Found => false,
        }
    }

    fn line(&self, node: &Node, depth: usize, text: &mut String) {
        // Lines of what is within a leaf say it themselves.
        let mode = if self.takes_back(node) { MODES[1] } else { MODES[0] };
        let mut line = |what: String| {
            let mode = if what.starts_with(WITHIN) { "" } else { mode };
            writeln!(text, "{:indent$}{what}{mode}", "", indent = 2 * depth)
                .expect("writing to a string cannot fail");
        };
        match &node.kind {
            Kind::Leaf(idx) => {
                let leaf = &self.leaves[*idx];
                let kind = if leaf.changes || leaf.pane.is_some() { "changes" } else { "rows" };
                let bound = match (&leaf.pane, &leaf.lifetime.behind) {
                    (Some(pane), _) if pane.retained().is_some() => {
                        "for `retain` after the end of their window".into()
                    }
                    (_, Some(behind)) => {
                        let seconds = behind.plus as f64 / 1e6;
                        format!("until the watermark is {seconds} s behind {}", behind.at)
                    }
                    _ if !leaf.lifetime.is_endless() => "until `now()` passes them".into(),
                    _ => String::from("for ever"),
                };
                line(format!("{kind} of `{}`, kept {bound}", leaf.table));
                if let Some(pane) = &leaf.pane {
                    for part in logdrive_operators::View::explain(&**pane).lines().filter(|l| !l.is_empty()) {
                        line(format!("{WITHIN}{part}"));
                    }
                }
            }
            Kind::Stages(input, stages) => {
                line(format!("{} stages on each row", stages.len()));
                self.line(input, depth + 1, text);
            }
            Kind::Join(join) => {
                let keys = if join.left_keys.is_empty() { "without a key, on one worker" } else { "by key" };
                line(format!("{} join {keys}: both sides are arranged", join.join_type));
                self.line(&join.left, depth + 1, text);
                self.line(&join.right, depth + 1, text);
            }
            Kind::AsOf(join) => {
                let which = if join.is_next { "next" } else { "latest" };
                line(format!(
                    "each row with the {which} one of the other side: both are kept in order of time"
                ));
                self.line(&join.left.input, depth + 1, text);
                self.line(&join.right.input, depth + 1, text);
            }
            Kind::Group(group) => {
                line(format!("group: {}", groups::explain(group)));
                self.line(&group.input, depth + 1, text);
            }
            Kind::Rank(rank) => {
                let names: Vec<&str> = rank.functions.iter().map(|f| f.name()).collect();
                let limit =
                    rank.limit.map_or_else(String::new, |k| format!(", the first {k} of each partition"));
                line(format!("window functions: {}{limit}", names.join(", ")));
                self.line(&rank.input, depth + 1, text);
            }
            Kind::First(first) => {
                line(format!("the first {} rows after {}", first.fetch, first.skip));
                self.line(&first.input, depth + 1, text);
            }
            Kind::Union(inputs) => {
                line("all rows of".into());
                inputs.iter().for_each(|input| self.line(input, depth + 1, text));
            }
            Kind::Fixpoint { start, step } => {
                line("until nothing new comes".into());
                self.line(start, depth + 1, text);
                self.line(step, depth + 1, text);
            }
            Kind::Found => line("what was found so far".into()),
        }
    }
}
