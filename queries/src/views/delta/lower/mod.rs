//! A logical plan to a tree of [`Node`]s.

mod first;
mod joins;

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::DFSchema;
use datafusion::common::tree_node::TreeNode;
use datafusion::execution::SessionState;
use datafusion::logical_expr::utils::{conjunction, split_conjunction};
use datafusion::logical_expr::{Aggregate as LogicalAggregate, Expr, LogicalPlan, RecursiveQuery, TableScan};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{Column as PhysicalColumn, Literal};
use logdrive_operators::CompileError;

use super::super::lower::{
    failed, lower_functions, lower_raw, nullable, physical, refuse, unsupported, window_of,
};
use super::super::spec::{Aggregate, Stage};
use super::super::sql::{internal, mentions_now, plan_mentions_now};
use super::super::{Emit, SqlView, Table, ViewOptions};
use super::codec::Codec;
use super::lifetime;
use super::plan::{Call, Clock, DeltaSpec, Group, Kind, Leaf, Node};

/// Makes the plan ready to run.
pub(super) fn lower(
    plan: &LogicalPlan,
    state: &SessionState,
    tables: &[Table],
    options: &ViewOptions,
) -> Result<DeltaSpec, CompileError> {
    let mut lowering = Lowering {
        state,
        tables,
        options,
        leaves: Vec::new(),
        clocks: Vec::new(),
        limits: Vec::new(),
        conditions: Vec::new(),
        found: None,
    };
    let mut root = lowering.node(plan)?;
    if let Some(stage) = super::super::lower::normalised(&root.schema) {
        root = lowering.staged(root, stage);
    }
    super::super::lower::check_names(&root.schema)?;
    Ok(DeltaSpec {
        leaves: lowering.leaves,
        clocks: lowering.clocks,
        root,
        plan: plan.display_indent().to_string(),
    })
}

struct Lowering<'a> {
    state: &'a SessionState,
    tables: &'a [Table],
    options: &'a ViewOptions,
    leaves: Vec<Leaf>,
    clocks: Vec<Clock>,
    /// Of which window functions only the first rows are wanted, by the address of the node.
    limits: Vec<(usize, usize)>,
    /// What is asked of the rows of inner joins right above them, by the address of the node.
    conditions: Vec<(usize, Expr)>,
    /// The name of the recursive query that is lowered.
    found: Option<(String, SchemaRef)>,
}

impl Lowering<'_> {
    fn node(&mut self, plan: &LogicalPlan) -> Result<Node, CompileError> {
        let node = match plan {
            LogicalPlan::SubqueryAlias(alias) => self.node(&alias.input),
            LogicalPlan::TableScan(scan) => self.scan(scan),
            LogicalPlan::Filter(filter) => {
                self.find_limit(&filter.predicate, &filter.input);
                self.find_condition(&filter.predicate, &filter.input);
                let input = self.node(&filter.input)?;
                self.filter(input, &filter.predicate, filter.input.schema())
            }
            LogicalPlan::Projection(projection) => {
                let input = self.node(&projection.input)?;
                self.project(input, projection)
            }
            LogicalPlan::Join(join) => self.join(join),
            LogicalPlan::Aggregate(aggregate) => match self.pane(plan)? {
                Some(node) => Ok(node),
                None => self.aggregate(aggregate),
            },
            LogicalPlan::Window(window) => self.window(window),
            LogicalPlan::Limit(limit) => self.limit(limit),
            LogicalPlan::Union(union) => {
                let schema = nullable(union.schema.as_arrow());
                let inputs = union.inputs.iter().map(|input| self.node(input));
                let inputs: Vec<Node> = inputs.collect::<Result<_, _>>()?;
                inputs.iter().try_for_each(|input| same_types(&input.schema, &schema))?;
                Ok(Node { schema, kind: Kind::Union(inputs) })
            }
            LogicalPlan::RecursiveQuery(query) => self.recursive(query),
            other => Err(unsupported(other)),
        }?;
        if Codec::supports(&node.schema) {
            return Ok(node);
        }
        Err(refuse(
            "a view cannot keep rows with a map or a dictionary",
            "select the values of the map that you need; CAST a dictionary to what it is of",
        ))
    }

    fn scan(&mut self, scan: &TableScan) -> Result<Node, CompileError> {
        let name = scan.table_name.table();
        if let Some((found, schema)) = &self.found
            && found == name
        {
            let reads: Vec<&str> = scan.projected_schema.fields().iter().map(|f| f.name().as_str()).collect();
            let node = Node { schema: Arc::clone(schema), kind: Kind::Found };
            if reads.iter().eq(schema.fields().iter().map(|field| field.name())) {
                return Ok(node);
            }
            let columns = reads.iter().map(|name| {
                let idx = schema.index_of(name).map_err(|error| internal(error.to_string()))?;
                Ok(Arc::new(PhysicalColumn::new(name, idx)) as _)
            });
            let projected = nullable(scan.projected_schema.as_arrow());
            let stage = Stage::Project(columns.collect::<Result<_, CompileError>>()?, projected);
            return Ok(self.staged(node, stage));
        }
        let (input, table) = self.table(name)?;
        let schema = nullable(scan.projected_schema.as_arrow());
        let reads = schema.fields().iter().map(|field| field.name().clone()).collect();
        let leaf = Leaf::new(input, name, reads, schema);
        Ok(self.leaf(Leaf { changes: table.changes, ..leaf }))
    }

    fn table(&self, name: &str) -> Result<(usize, &Table), CompileError> {
        let found = self.tables.iter().enumerate().find(|(_, table)| table.name == name);
        found.ok_or_else(|| internal(format!("the plan names `{name}`, which the query does not")))
    }

    fn leaf(&mut self, leaf: Leaf) -> Node {
        let schema = Arc::clone(&leaf.schema);
        self.leaves.push(leaf);
        Node { schema, kind: Kind::Leaf(self.leaves.len() - 1) }
    }

    /// An aggregation right above a stream is left to the operators that keep panes.
    fn pane(&mut self, plan: &LogicalPlan) -> Result<Option<Node>, CompileError> {
        let Some(scan) = super::super::lower::scan_below(plan) else { return Ok(None) };
        if self.found.as_ref().is_some_and(|(found, _)| found == scan.table_name.table()) {
            return Ok(None);
        }
        let (input, table) = self.table(scan.table_name.table())?;
        if table.changes || plan_mentions_now(plan) {
            return Ok(None);
        }
        let spec = lower_raw(plan, self.state)?;
        let name = format!("{}.{}", self.options.name, self.leaves.len());
        let options = ViewOptions { name: name.as_str().into(), emit: Emit::Changes, ..self.options.clone() };
        let (schema, reads) = (Arc::clone(&spec.schema), spec.reads.clone());
        let leaf = Leaf::new(input, scan.table_name.table(), reads, schema);
        Ok(Some(self.leaf(Leaf { pane: Some(Arc::new(SqlView::new(spec, options))), ..leaf })))
    }

    /// Puts a stage behind a node.
    fn staged(&mut self, mut node: Node, stage: Stage) -> Node {
        let schema = match &stage {
            Stage::Filter(_) => Arc::clone(&node.schema),
            Stage::Project(_, schema) => Arc::clone(schema),
        };
        match &mut node.kind {
            Kind::Leaf(idx) => {
                let leaf = &mut self.leaves[*idx];
                let has_lifetime = !leaf.lifetime.is_none();
                let stages = if has_lifetime { &mut leaf.after } else { &mut leaf.before };
                stages.push(stage);
                leaf.schema = Arc::clone(&schema);
                return Node { schema, kind: node.kind };
            }
            Kind::Stages(_, stages) => {
                if let Some(stages) = Arc::get_mut(stages) {
                    stages.push(stage);
                    return Node { schema, kind: node.kind };
                }
            }
            _ => {}
        }
        Node { schema, kind: Kind::Stages(Box::new(node), Arc::new(vec![stage])) }
    }

    fn filter(&mut self, mut input: Node, predicate: &Expr, schema: &DFSchema) -> Result<Node, CompileError> {
        let (of_time, others): (Vec<&Expr>, Vec<&Expr>) =
            split_conjunction(predicate).into_iter().partition(|expr| mentions_now(expr));
        if let Some(others) = conjunction(others.into_iter().cloned()) {
            let stage = Stage::Filter(physical(&others, schema, self.state)?);
            input = self.staged(input, stage);
        }
        if of_time.is_empty() {
            return Ok(input);
        }
        let Kind::Leaf(idx) = input.kind else {
            return Err(refuse(
                "a condition on `now()` above a join or an aggregation",
                "put it into the WHERE of a subquery that reads one table",
            ));
        };
        let leaf = &mut self.leaves[idx];
        if !leaf.after.is_empty() {
            return Err(refuse("two conditions on `now()` one above the other", "join them with AND"));
        }
        for condition in of_time {
            lifetime::bound(condition, schema, self.state, &mut leaf.lifetime)?;
        }
        Ok(input)
    }

    fn project(
        &mut self,
        input: Node,
        projection: &datafusion::logical_expr::Projection,
    ) -> Result<Node, CompileError> {
        let schema = projection.input.schema();
        let expressions = projection.expr.iter().map(|expr| physical(expr, schema, self.state));
        let stage =
            Stage::Project(expressions.collect::<Result<_, _>>()?, nullable(projection.schema.as_arrow()));
        Ok(self.staged(input, stage))
    }

    fn aggregate(&mut self, aggregate: &LogicalAggregate) -> Result<Node, CompileError> {
        let schema = aggregate.input.schema();
        let mut keys = Vec::with_capacity(aggregate.group_expr.len());
        for expr in &aggregate.group_expr {
            if let Expr::GroupingSet(_) = expr {
                return Err(refuse(
                    "a view cannot use GROUPING SETS, CUBE or ROLLUP yet",
                    "write a view for each set",
                ));
            }
            if window_of(expr)?.is_some() && !is_tumble(expr) {
                return Err(refuse(
                    "windows that overlap or depend on their rows, above what is no stream",
                    "use them in a view over the stream, and read that view here",
                ));
            }
            keys.push(physical(expr, schema, self.state)?);
        }
        let functions = lower_functions(&aggregate.aggr_expr, schema, self.state)?;
        let mut arguments = Vec::new();
        let calls: Vec<Call> =
            functions.into_iter().map(|(aggregate, _)| call(aggregate, &mut arguments)).collect();
        let fields = arguments.iter().enumerate().map(|(idx, argument)| {
            let data_type = argument.data_type(schema.as_arrow()).map_err(|error| failed(&error))?;
            Ok(Field::new(format!("a{idx}"), data_type, true))
        });
        let argument_schema = Arc::new(Schema::new(fields.collect::<Result<Vec<_>, CompileError>>()?));
        let values = calls.iter().map(|call| {
            let field = call.function.field();
            Field::new(field.name(), field.data_type().clone(), true)
        });
        let values = Arc::new(Schema::new(values.collect::<Vec<_>>()));
        let input = self.node(&aggregate.input)?;
        Ok(Node {
            schema: nullable(aggregate.schema.as_arrow()),
            kind: Kind::Group(Box::new(Group { input, keys, calls, arguments, argument_schema, values })),
        })
    }

    fn recursive(&mut self, query: &RecursiveQuery) -> Result<Node, CompileError> {
        if !query.is_distinct {
            return Err(refuse(
                "a recursion with UNION ALL, which may never end",
                "write UNION, so that it ends when nothing new comes",
            ));
        }
        if self.found.is_some() {
            return Err(refuse("a recursion within a recursion", "write a view for the inner one"));
        }
        let schema = nullable(query.schema.as_arrow());
        let start = self.node(&query.static_term)?;
        self.found = Some((query.name.clone(), Arc::clone(&schema)));
        let step = self.node(&query.recursive_term);
        self.found = None;
        let step = step?;
        same_types(&start.schema, &schema)?;
        same_types(&step.schema, &schema)?;
        Ok(Node { schema, kind: Kind::Fixpoint { start: Box::new(start), step: Box::new(step) } })
    }
}

/// An aggregate over `arguments`, to which is added what it needs.
fn call(aggregate: Aggregate, arguments: &mut Vec<Arc<dyn PhysicalExpr>>) -> Call {
    let Aggregate { function, arguments: own, filter, .. } = aggregate;
    let mut column = |expr: Arc<dyn PhysicalExpr>| {
        let known = arguments.iter().position(|argument| argument.eq(&expr));
        known.unwrap_or_else(|| {
            arguments.push(expr);
            arguments.len() - 1
        })
    };
    // `count(*)` counts a literal, which no row needs to have.
    let is_constant = |expr: &Arc<dyn PhysicalExpr>| {
        expr.downcast_ref::<Literal>().is_some_and(|literal| !literal.value().is_null())
    };
    let only_counts = function.fun().name() == "count" && !function.is_distinct();
    let own = own.into_iter().filter(|expr| !only_counts || !is_constant(expr));
    Call { columns: own.map(&mut column).collect(), filter: filter.map(column), function }
}

fn address<T>(node: &T) -> usize {
    std::ptr::from_ref(node).addr()
}

fn is_tumble(expr: &Expr) -> bool {
    let overlaps =
        |node: &Expr| matches!(node, Expr::ScalarFunction(f) if matches!(f.func.name(), "hop" | "session"));
    matches!(expr.exists(|node| Ok(overlaps(node))), Ok(false))
}

fn same_types(found: &Schema, wanted: &Schema) -> Result<(), CompileError> {
    let types = |schema: &Schema| -> Vec<DataType> {
        schema.fields().iter().map(|field| field.data_type().clone()).collect()
    };
    if types(found) == types(wanted) {
        return Ok(());
    }
    let message = format!("{:?} where {:?} is wanted", types(found), types(wanted));
    Err(refuse(message, "CAST the columns of both sides to the same types"))
}
