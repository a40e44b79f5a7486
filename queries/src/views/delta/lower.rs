//! A logical plan to a tree of [`Node`]s.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{Column, DFSchema, JoinType, NullEquality, ScalarValue};
use datafusion::execution::SessionState;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::utils::{conjunction, split_conjunction};
use datafusion::logical_expr::{
    Aggregate as LogicalAggregate, BinaryExpr, Expr, FetchType, Join as LogicalJoin, Limit, LogicalPlan,
    Operator, RecursiveQuery, SkipType, TableScan, Window, WindowFunctionDefinition,
};
use datafusion::physical_expr::expressions::{Column as PhysicalColumn, Literal};
use datafusion::physical_expr::{PhysicalExpr, PhysicalSortExpr, create_physical_sort_expr};
use datafusion::physical_planner::create_window_expr;
use logdrive_operators::CompileError;

use super::super::asof;
use super::super::lower::{
    failed, lower_functions, lower_raw, nullable, physical, refuse, unaliased, unsupported, window_of,
};
use super::super::spec::{Aggregate, Stage};
use super::super::sql::{internal, mentions_now, plan_mentions_now};
use super::super::{Emit, SqlView, Table, ViewOptions};
use super::codec::Codec;
use super::interval::{self, Interval};
use super::lifetime;
use super::plan::{
    AsOf, Bound, Call, Clock, DeltaSpec, First, Group, Join, Kind, Leaf, Lifetime, Node, Order, Rank, Side,
};

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
        let leaf = Leaf {
            input,
            table: name.to_owned(),
            reads: schema.fields().iter().map(|field| field.name().clone()).collect(),
            changes: table.changes,
            pane: None,
            before: Vec::new(),
            lifetime: Lifetime::default(),
            clock: None,
            slack: 0,
            after: Vec::new(),
            schema,
        };
        Ok(self.leaf(leaf))
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
        let leaf = Leaf {
            input,
            table: scan.table_name.table().to_owned(),
            reads,
            changes: false,
            pane: Some(Arc::new(SqlView::new(spec, options))),
            before: Vec::new(),
            lifetime: Lifetime::default(),
            clock: None,
            slack: 0,
            after: Vec::new(),
            schema,
        };
        Ok(Some(self.leaf(leaf)))
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

    fn join(&mut self, join: &LogicalJoin) -> Result<Node, CompileError> {
        if join.null_aware {
            return Err(refuse(
                "NOT IN over a subquery, which no row passes once it has a NULL",
                "write NOT EXISTS (SELECT … WHERE …)",
            ));
        }
        if matches!(join.join_type, JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark) {
            return self.join(&swapped(join));
        }
        let (left_schema, right_schema) = (join.left.schema(), join.right.schema());
        let as_of = join.filter.as_ref().and_then(|condition| asof::find(condition, left_schema));
        let (left, right) = (self.node(&join.left)?, self.node(&join.right)?);
        let keys = |side: fn(&(Expr, Expr)) -> &Expr, schema: &DFSchema| {
            join.on.iter().map(|pair| physical(side(pair), schema, self.state)).collect::<Result<Vec<_>, _>>()
        };
        let left_keys = keys(|pair| &pair.0, left_schema)?;
        let right_keys = keys(|pair| &pair.1, right_schema)?;
        if let Some(as_of) = as_of {
            let left =
                Side { input: left, keys: left_keys, time: physical(&as_of.left, left_schema, self.state)? };
            let time = physical(&as_of.right, right_schema, self.state)?;
            return self.as_of(join, left, Side { input: right, keys: right_keys, time }, &as_of);
        }
        let both = left_schema.join(right_schema).map_err(|error| failed(&error))?;
        let interval = self.interval(join, &both, left.schema.fields().len());
        self.let_go(join.join_type, interval, [&left, &right]);
        let filter = join.filter.as_ref().map(|expr| physical(expr, &both, self.state)).transpose()?;
        Ok(Node {
            schema: nullable(join.schema.as_arrow()),
            kind: Kind::Join(Box::new(Join {
                left,
                right,
                left_keys,
                right_keys,
                nulls_match: join.null_equality == NullEquality::NullEqualsNull,
                filter,
                both: nullable(both.as_arrow()),
                join_type: join.join_type,
                interval,
            })),
        })
    }

    /// How far apart times of both sides are, if the condition bounds it.
    fn interval(&self, join: &LogicalJoin, both: &DFSchema, n_left: usize) -> Option<Interval> {
        let equal = join.on.iter().map(|(left, right)| left.clone().eq(right.clone()));
        let above = self.conditions.iter().filter(|(node, _)| *node == address(join));
        let above = above.map(|(_, condition)| condition.clone());
        interval::find(&conjunction(equal.chain(join.filter.clone()).chain(above))?, both, n_left)
    }

    /// Has the rows of two streams leave once none can come that would match them.
    fn let_go(&mut self, join_type: JoinType, interval: Option<Interval>, sides: [&Node; 2]) {
        let retain = i64::try_from(self.options.retain.as_micros()).unwrap_or(i64::MAX);
        let Some(interval) = interval else { return };
        let Some(keep) = interval.keep(join_type, retain) else { return };
        let columns = [(interval.left, keep.left), (interval.right, keep.right)];
        let times = [0, 1].map(|side| self.time_of(sides[side], columns[side].0));
        let [Some(left), Some(right)] = times else { return };
        for ((leaf, clock), (column, keep)) in [left, right].into_iter().zip(columns) {
            let clock = self.clocks.iter().position(|known| *known == clock).unwrap_or_else(|| {
                self.clocks.push(clock);
                self.clocks.len() - 1
            });
            let leaf = &mut self.leaves[leaf];
            let at = PhysicalColumn::new(leaf.schema.field(column).name(), column);
            leaf.clock = Some(clock);
            leaf.lifetime.behind = Some(Bound { at: Arc::new(at), plus: keep.saturating_add(1) });
        }
    }

    /// The leaf that a node is, and which column of its input a column of it is; if it is rows of a stream that never
    /// leave.
    fn time_of(&self, node: &Node, column: usize) -> Option<(usize, Clock)> {
        let Kind::Leaf(idx) = node.kind else { return None };
        let leaf = &self.leaves[idx];
        if leaf.pane.is_some() || leaf.changes || !leaf.lifetime.is_none() {
            return None;
        }
        let column = leaf.before.iter().rev().try_fold(column, |column, stage| match stage {
            Stage::Filter(_) => Some(column),
            Stage::Project(columns, _) => Some(columns[column].downcast_ref::<PhysicalColumn>()?.index()),
        })?;
        Some((idx, Clock { input: leaf.input, column: leaf.reads[column].clone() }))
    }

    fn as_of(
        &self,
        join: &LogicalJoin,
        left: Side,
        right: Side,
        as_of: &asof::Match,
    ) -> Result<Node, CompileError> {
        if !as_of.is_all {
            return Err(refuse(
                "an ASOF JOIN with other conditions than equalities",
                "put conditions on one side into a subquery: ASOF JOIN (SELECT … WHERE …)",
            ));
        }
        if self.found.is_some() {
            return Err(refuse("an ASOF JOIN in a recursion", "write a view for it, and read that here"));
        }
        let type_of = |side: &Side| side.time.data_type(&side.input.schema).map_err(|error| failed(&error));
        let (of_left, of_right) = (type_of(&left)?, type_of(&right)?);
        let is_time = matches!(of_left, DataType::Timestamp(..) | DataType::Int64);
        if of_left != of_right || !is_time {
            let message = format!("MATCH_CONDITION with {of_left} and {of_right}");
            return Err(refuse(message, "compare two timestamps, or two integers"));
        }
        Ok(Node {
            schema: nullable(join.schema.as_arrow()),
            kind: Kind::AsOf(Box::new(AsOf {
                left,
                right,
                is_next: matches!(as_of.op, Operator::LtEq | Operator::Lt),
                is_strict: matches!(as_of.op, Operator::Gt | Operator::Lt),
            })),
        })
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

    fn window(&mut self, window: &Window) -> Result<Node, CompileError> {
        let limit = self.limits.iter().find(|(node, _)| *node == address(window)).map(|(_, limit)| *limit);
        let input = self.node(&window.input)?;
        let functions = window.window_expr.iter().map(|expr| {
            create_window_expr(
                expr,
                window.input.schema(),
                self.state.execution_props(),
                &PhysicalPlanningContext::default(),
            )
        });
        let functions: Vec<_> = functions.collect::<Result<_, _>>().map_err(|error| failed(&error))?;
        let Some(first) = functions.first() else { return Err(internal("no window function".into())) };
        let (partition, order) = (first.partition_by().to_vec(), orders(first.order_by()));
        Ok(Node {
            schema: nullable(window.schema.as_arrow()),
            kind: Kind::Rank(Box::new(Rank { input, partition, order, functions, limit })),
        })
    }

    /// Whether a condition wants only the first rows of each partition: `row_number() … <= k`.
    fn find_limit(&mut self, predicate: &Expr, input: &LogicalPlan) {
        for condition in split_conjunction(predicate) {
            let Expr::BinaryExpr(BinaryExpr { left, op, right }) = condition else { continue };
            let (Expr::Column(column), Expr::Literal(value, _)) = (&**left, &**right) else { continue };
            let limit = match op {
                Operator::LtEq | Operator::Eq => count(value),
                Operator::Lt => count(value).and_then(|count| count.checked_sub(1)),
                _ => None,
            };
            if let (Some(limit), Some(window)) = (limit, row_number(column, input)) {
                self.limits.push((address(window), limit));
            }
        }
    }

    /// Keeps what is asked of the rows of a join, if it is right below: the optimiser may have put it there.
    fn find_condition(&mut self, predicate: &Expr, mut input: &LogicalPlan) {
        while let LogicalPlan::Projection(projection) = input
            && projection.expr.iter().all(|expr| matches!(expr, Expr::Column(_)))
        {
            input = &projection.input;
        }
        if let LogicalPlan::Join(join) = input
            && join.join_type == JoinType::Inner
        {
            self.conditions.push((address(join), predicate.clone()));
        }
    }

    fn limit(&mut self, limit: &Limit) -> Result<Node, CompileError> {
        let (fetch, skip) = (limit.get_fetch_type(), limit.get_skip_type());
        let (Ok(FetchType::Literal(fetch)), Ok(SkipType::Literal(skip))) = (fetch, skip) else {
            return Err(refuse("LIMIT and OFFSET that are no numbers", "write them as numbers"));
        };
        match fetch {
            Some(fetch) => self.first(&limit.input, skip, fetch),
            None => Err(refuse("OFFSET without LIMIT", "an endless stream has no rest; add LIMIT")),
        }
    }

    fn first(&mut self, plan: &LogicalPlan, skip: usize, fetch: usize) -> Result<Node, CompileError> {
        let (input, order) = match plan {
            LogicalPlan::SubqueryAlias(alias) => return self.first(&alias.input, skip, fetch),
            LogicalPlan::Projection(projection) => {
                let input = self.first(&projection.input, skip, fetch)?;
                return self.project(input, projection);
            }
            LogicalPlan::Sort(sort) => {
                let schema = sort.input.schema();
                let order = sort.expr.iter().map(|expr| {
                    create_physical_sort_expr(
                        expr,
                        schema,
                        self.state.execution_props(),
                        &PhysicalPlanningContext::default(),
                    )
                });
                let order: Vec<_> = order.collect::<Result<_, _>>().map_err(|error| failed(&error))?;
                (self.node(&sort.input)?, orders(&order))
            }
            other => (self.node(other)?, Vec::new()),
        };
        let schema = Arc::clone(&input.schema);
        Ok(Node { schema, kind: Kind::First(Box::new(First { input, order, skip, fetch })) })
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

/// The same join, said from the other side.
fn swapped(join: &LogicalJoin) -> LogicalJoin {
    LogicalJoin {
        left: Arc::clone(&join.right),
        right: Arc::clone(&join.left),
        on: join.on.iter().map(|(left, right)| (right.clone(), left.clone())).collect(),
        join_type: join.join_type.swap(),
        ..join.clone()
    }
}

fn orders(order: &[PhysicalSortExpr]) -> Vec<Order> {
    order.iter().map(|order| Order { by: Arc::clone(&order.expr), options: order.options }).collect()
}

fn address<T>(node: &T) -> usize {
    std::ptr::from_ref(node).addr()
}

/// The number that a literal is, if it is one to count with.
fn count(literal: &ScalarValue) -> Option<usize> {
    match literal.cast_to(&DataType::Int64) {
        Ok(ScalarValue::Int64(Some(count))) => usize::try_from(count).ok(),
        _ => None,
    }
}

/// The window whose `row_number()` a column is.
fn row_number<'p>(column: &Column, mut plan: &'p LogicalPlan) -> Option<&'p Window> {
    let mut column = column.clone();
    loop {
        let idx = plan.schema().index_of_column(&column).ok()?;
        plan = match plan {
            LogicalPlan::SubqueryAlias(alias) => {
                column = Column::from(alias.input.schema().qualified_field(idx));
                &alias.input
            }
            LogicalPlan::Projection(projection) => {
                let Expr::Column(inner) = unaliased(&projection.expr[idx]) else { return None };
                column = inner.clone();
                &projection.input
            }
            LogicalPlan::Window(window) => {
                let n_before = window.input.schema().fields().len();
                let function = window.window_expr.get(idx.checked_sub(n_before)?)?;
                let Expr::WindowFunction(function) = unaliased(function) else { return None };
                let WindowFunctionDefinition::WindowUDF(udf) = &function.fun else { return None };
                let only = window.window_expr.len() == 1;
                return (udf.name() == "row_number" && only).then_some(window);
            }
            _ => return None,
        };
    }
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
