//! A logical plan to a [`Spec`]: what is below the aggregation, the aggregation, what is above it.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, Schema, SchemaRef, TimeUnit};
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{Column, DFSchema, DataFusionError, Result, ScalarValue};
use datafusion::execution::SessionState;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{Cast, Expr, LogicalPlan, TableScan, TryCast};
use datafusion::physical_expr::aggregate::{AggregateFunctionExpr, LoweredAggregateBuilder};
use datafusion::physical_expr::expressions::{CastExpr, Column as PhysicalColumn};
use datafusion::physical_plan::PhysicalExpr;
use logdrive_operators::CompileError;

use super::grouping::Grouping;
use super::spec::{Aggregate, Aggregation, Output, Spec, Stage};
use super::sql::{internal, mentions_now};
use super::table::TableLayout;
use super::windows::{END, Kind, START, Windowing, time_type};
use crate::compiler::readable;

/// Makes the plan ready to run.
pub(super) fn lower(plan: &LogicalPlan, state: &SessionState) -> Result<Spec, CompileError> {
    let mut spec = lower_raw(plan, state)?;
    let stages = if spec.aggregation.is_none() { &mut spec.before } else { &mut spec.after };
    if let Some(stage) = normalised(&spec.schema) {
        if let Stage::Project(_, schema) = &stage {
            spec.schema = Arc::clone(schema);
        }
        stages.push(stage);
    }
    check_names(&spec.schema)?;
    Ok(spec)
}

/// The same, with whatever types and names the query gives its columns.
pub(super) fn lower_raw(plan: &LogicalPlan, state: &SessionState) -> Result<Spec, CompileError> {
    let mut after = Vec::new();
    let top = peel(plan, state, &mut after)?;
    let (aggregation, mut before, scan) = match top {
        LogicalPlan::TableScan(scan) => (None, std::mem::take(&mut after), scan),
        LogicalPlan::Aggregate(aggregate) => {
            let mut before = Vec::new();
            let bottom = peel(&aggregate.input, state, &mut before)?;
            let LogicalPlan::TableScan(scan) = bottom else { return Err(unsupported(bottom)) };
            (Some(lower_aggregate(aggregate, scan, state)?), before, scan)
        }
        other => return Err(unsupported(other)),
    };
    // What is peeled first runs last.
    before.reverse();
    after.reverse();
    Ok(Spec {
        reads: scan.projected_schema.fields().iter().map(|field| field.name().clone()).collect(),
        before,
        aggregation,
        after,
        schema: nullable(plan.schema().as_arrow()),
        plan: plan.display_indent().to_string(),
    })
}

/// The table that an aggregation, or what does not look beyond a row, is right above.
pub(super) fn scan_below(mut plan: &LogicalPlan) -> Option<&TableScan> {
    let mut aggregations = 0;
    loop {
        plan = match plan {
            LogicalPlan::TableScan(scan) => return Some(scan),
            LogicalPlan::SubqueryAlias(alias) => &alias.input,
            LogicalPlan::Filter(filter) => &filter.input,
            LogicalPlan::Projection(projection) => &projection.input,
            LogicalPlan::Aggregate(aggregate) if aggregations == 0 => {
                aggregations += 1;
                &aggregate.input
            }
            _ => return None,
        };
    }
}

/// Takes the stateless nodes off the top of a plan, the topmost first.
fn peel<'p>(
    mut plan: &'p LogicalPlan,
    state: &SessionState,
    stages: &mut Vec<Stage>,
) -> Result<&'p LogicalPlan, CompileError> {
    loop {
        plan = match plan {
            LogicalPlan::SubqueryAlias(alias) => &alias.input,
            LogicalPlan::Filter(filter) => {
                stages.push(Stage::Filter(physical(&filter.predicate, filter.input.schema(), state)?));
                &filter.input
            }
            LogicalPlan::Projection(projection) => {
                let expressions =
                    projection.expr.iter().map(|e| physical(e, projection.input.schema(), state));
                let schema = Arc::new(projection.schema.as_arrow().clone());
                stages.push(Stage::Project(expressions.collect::<Result<_, _>>()?, nullable(&schema)));
                &projection.input
            }
            other => return Ok(other),
        };
    }
}

/// Whether a column may be null is not known as well at run time as when planning.
pub(super) fn nullable(schema: &Schema) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| Arc::new(field.as_ref().clone().with_nullable(true)));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

pub(super) fn physical(
    expr: &Expr,
    schema: &DFSchema,
    state: &SessionState,
) -> Result<Arc<dyn PhysicalExpr>, CompileError> {
    refuse_windows(expr)?;
    if mentions_now(expr) {
        return Err(refuse(
            "`now()` outside of a comparison in WHERE",
            "compare a time with `now()` in WHERE; in the columns use the time in the row",
        ));
    }
    refuse_subqueries(expr)?;
    refuse_casts(expr)?;
    state.create_physical_expr(expr.clone(), schema).map_err(|error| failed(&error))
}

pub(super) fn failed(error: &DataFusionError) -> CompileError {
    CompileError { code: "sql::type", message: readable(error), help: None, at: None }
}

pub(super) fn refuse(message: impl Into<String>, help: impl Into<String>) -> CompileError {
    CompileError { code: "sql::unsupported", message: message.into(), help: Some(help.into()), at: None }
}

/// Casts that Arrow does wrong for some of the rows of a batch.
fn refuse_casts(expr: &Expr) -> Result<(), CompileError> {
    let is_wrong = |node: &Expr| match node {
        Expr::Cast(Cast { field, .. }) | Expr::TryCast(TryCast { field, .. }) => {
            matches!(field.data_type(), DataType::FixedSizeList(..))
        }
        _ => false,
    };
    match expr.exists(|node| Ok(is_wrong(node))) {
        Ok(false) => Ok(()),
        _ => Err(refuse("a cast to a list of fixed size", "leave the list as it is")),
    }
}

/// Subqueries of which no rule made a join.
fn refuse_subqueries(expr: &Expr) -> Result<(), CompileError> {
    let has = |is_one: fn(&Expr) -> bool| !matches!(expr.exists(|node| Ok(is_one(node))), Ok(false));
    if has(|node| matches!(node, Expr::SetComparison(_))) {
        return Err(refuse(
            "ANY and ALL over a subquery",
            "write EXISTS (SELECT … WHERE …), or compare with min(…) or max(…) of the subquery",
        ));
    }
    if has(|node| matches!(node, Expr::ScalarSubquery(_) | Expr::Exists(_) | Expr::InSubquery(_))) {
        return Err(of_subquery());
    }
    Ok(())
}

fn of_subquery() -> CompileError {
    refuse(
        "a view cannot use a subquery in this place",
        "join with what it selects, grouped by the columns that it is compared by",
    )
}

/// Windows that are no function of one row.
fn refuse_windows(expr: &Expr) -> Result<(), CompileError> {
    for kind in [Kind::Hop, Kind::Session] {
        let is_one = |node: &Expr| matches!(node, Expr::ScalarFunction(f) if f.func.name() == kind.name());
        if !matches!(expr.exists(|node| Ok(is_one(node))), Ok(false)) {
            let help = format!("write GROUP BY {}", kind.signature());
            return Err(refuse(format!("`{}` outside of GROUP BY", kind.name()), help));
        }
    }
    Ok(())
}

pub(super) fn unsupported(plan: &LogicalPlan) -> CompileError {
    match plan {
        LogicalPlan::Sort(_) => refuse(
            "a view has no order",
            "leave ORDER BY out, or add LIMIT; order the rows when you read the view",
        ),
        LogicalPlan::EmptyRelation(_) => {
            refuse("the query reads no stream", "add FROM and the name of a source or stream")
        }
        LogicalPlan::Values(_) => refuse(
            "a view cannot use rows that are written into it",
            "write CASE for few; have a `lookup` step add the columns of many",
        ),
        LogicalPlan::Unnest(_) => refuse(
            "a view cannot make several rows of one",
            "keep the list as a column, and unnest it where the view is read",
        ),
        LogicalPlan::Subquery(_) => of_subquery(),
        other => refuse(
            format!("a view cannot use {} yet", other.display()),
            "compute this part where the view is read, in `logdrive sql` or by the PostgreSQL protocol",
        ),
    }
}

fn lower_aggregate(
    aggregate: &datafusion::logical_expr::Aggregate,
    scan: &TableScan,
    state: &SessionState,
) -> Result<Aggregation, CompileError> {
    let input = aggregate.input.schema();
    let mut windows: Option<(Windowing, usize)> = None;
    let (mut keys, mut key_fields, mut outputs) = (Vec::new(), Vec::new(), Vec::new());
    for (idx, expr) in aggregate.group_expr.iter().enumerate() {
        if let Expr::GroupingSet(_) = expr {
            return Err(refuse(
                "a view cannot use GROUPING SETS, CUBE or ROLLUP yet",
                "write a view for each set",
            ));
        }
        match window_of(expr)? {
            Some((found, time, output)) => {
                let time = time_column(&time, &aggregate.input, scan)?;
                if windows.is_some_and(|known| known != (found, time)) {
                    return Err(refuse("a view has one kind of windows", "write a view for each"));
                }
                windows = Some((found, time));
                outputs.push(output);
            }
            None => {
                outputs.push(Output::Key(keys.len()));
                keys.push(physical(expr, input, state)?);
                key_fields.push(aggregate.schema.field(idx).data_type().clone());
            }
        }
    }
    if !TableLayout::supports(key_fields.iter().cloned()) {
        return Err(refuse("rows cannot be grouped by a map", "group by one of its values"));
    }
    let mut part_fields = vec![Field::new("pane", DataType::Int64, false)];
    part_fields
        .extend(key_fields.iter().enumerate().map(|(n, t)| Field::new(format!("key{n}"), t.clone(), true)));
    let mut aggregates = Vec::with_capacity(aggregate.aggr_expr.len());
    for (n, (function, states)) in
        lower_functions(&aggregate.aggr_expr, input, state)?.into_iter().enumerate()
    {
        outputs.push(Output::Aggregate(n));
        let states = states.iter().enumerate();
        part_fields.extend(
            states.map(|(m, field)| Field::new(format!("state{n}.{m}"), field.data_type().clone(), true)),
        );
        aggregates.push(function);
    }
    let aggregation = Aggregation {
        windows,
        keys,
        aggregates,
        outputs,
        schema: nullable(aggregate.schema.as_arrow()),
        part_schema: Arc::new(Schema::new(part_fields)),
    };
    // An aggregate that cannot be computed over such columns says so only when it is built.
    Grouping::new(&aggregation)
        .and_then(|_| TableLayout::new(&aggregation))
        .map_err(|error| failed(&error))?;
    Ok(aggregation)
}

/// Aggregate functions over rows of `input`, each with the columns of its state.
pub(super) fn lower_functions(
    expressions: &[Expr],
    input: &DFSchema,
    state: &SessionState,
) -> Result<Vec<(Aggregate, Vec<FieldRef>)>, CompileError> {
    let lower = |expr: &Expr| {
        let lowered = LoweredAggregateBuilder::new(
            expr,
            input,
            input.as_arrow(),
            state.execution_props(),
            &PhysicalPlanningContext::default(),
        )
        .build()?;
        let function = lowered.aggregate;
        let states = function.state_fields()?;
        let ordering = function.order_bys().iter().map(|order| Arc::clone(&order.expr));
        let arguments: Vec<_> = function.expressions().into_iter().chain(ordering).collect();
        let types = arguments.iter().map(|argument| argument.data_type(input.as_arrow()));
        let types = types.collect::<Result<_, _>>()?;
        let n_states = states.len();
        Ok((Aggregate { function, arguments, types, filter: lowered.filter, n_states }, states))
    };
    let checked = |expr: &Expr| {
        let (aggregate, states) = lower(expr).map_err(|error| failed(&error))?;
        refuse_casts(expr)?;
        check_begins(&aggregate.function)?;
        Ok((aggregate, states))
    };
    expressions.iter().map(checked).collect()
}

/// Some functions say only when they begin that they are not for such arguments.
fn check_begins(function: &AggregateFunctionExpr) -> Result<(), CompileError> {
    let Err(error) = function.create_accumulator() else { return Ok(()) };
    let help = function.is_distinct().then(|| "aggregate a subquery with SELECT DISTINCT instead".to_owned());
    Err(CompileError { help, ..failed(&error) })
}

/// Whether an expression of GROUP BY is a window or an edge of one: which windows, of which time.
pub(super) fn window_of(expr: &Expr) -> Result<Option<(Windowing, Expr, Output)>, CompileError> {
    let expr = unaliased(expr);
    let Expr::ScalarFunction(function) = expr else { return Ok(None) };
    if function.func.name() == "get_field"
        && let [inner, Expr::Literal(field, _)] = function.args.as_slice()
        && let Some((windows, time, Output::Window)) = window_of(inner)?
    {
        let output = match field.try_as_str().flatten() {
            Some(START) => Output::Start,
            Some(END) => Output::End,
            _ => return Ok(None),
        };
        return Ok(Some((windows, time, output)));
    }
    let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.name() == function.func.name()) else {
        return Ok(None);
    };
    let intervals: Vec<Option<&ScalarValue>> = function.args[1..]
        .iter()
        .map(|argument| match argument {
            Expr::Literal(value, _) => Some(value),
            _ => None,
        })
        .collect();
    let windows = kind.windowing(&intervals).map_err(|reason| CompileError {
        code: "sql::type",
        message: format!("{}: {reason}", kind.name()),
        help: Some(format!("write {}", kind.signature())),
        at: None,
    })?;
    Ok(Some((windows, function.args[0].clone(), Output::Window)))
}

pub(super) fn unaliased(expr: &Expr) -> &Expr {
    match expr {
        Expr::Alias(alias) => unaliased(&alias.expr),
        other => other,
    }
}

/// Which column of the input is the time of a window: rows that a condition removes tell the time, too.
fn time_column(time: &Expr, input: &LogicalPlan, scan: &TableScan) -> Result<usize, CompileError> {
    let not_a_column = || {
        refuse(
            format!("the time of a window must be a column, not `{time}`"),
            "compute it in a `set` step of the stream, and name the column here",
        )
    };
    let mut expr = time.clone();
    let mut plan = input;
    loop {
        let column = match unaliased(&expr) {
            Expr::Column(column) => column.clone(),
            Expr::Cast(cast) => match (cast.field.data_type(), unaliased(&cast.expr)) {
                (DataType::Timestamp(TimeUnit::Microsecond, _), Expr::Column(column)) => column.clone(),
                _ => return Err(not_a_column()),
            },
            _ => return Err(not_a_column()),
        };
        plan = match plan {
            LogicalPlan::TableScan(_) => {
                let found = scan.projected_schema.index_of_column(&column);
                return found.map_err(|error| failed(&error));
            }
            LogicalPlan::Filter(filter) => {
                expr = Expr::Column(column);
                &filter.input
            }
            LogicalPlan::SubqueryAlias(alias) => {
                let idx = alias.schema.index_of_column(&column).map_err(|error| failed(&error))?;
                expr = Expr::Column(Column::from(alias.input.schema().qualified_field(idx)));
                &alias.input
            }
            LogicalPlan::Projection(projection) => {
                let idx = projection.schema.index_of_column(&column).map_err(|error| failed(&error))?;
                expr = projection.expr[idx].clone();
                &projection.input
            }
            _ => return Err(not_a_column()),
        };
    }
}

/// The stage that brings columns to the types that rows of a pipeline have.
pub(super) fn normalised(schema: &Schema) -> Option<Stage> {
    let types: Vec<DataType> = schema.fields().iter().map(|field| normal_type(field.data_type())).collect();
    if types.iter().zip(schema.fields()).all(|(normal, field)| normal == field.data_type()) {
        return None;
    }
    let columns = types.iter().zip(schema.fields()).enumerate().map(|(idx, (normal, field))| {
        let column: Arc<dyn PhysicalExpr> = Arc::new(PhysicalColumn::new(field.name(), idx));
        if normal == field.data_type() {
            return column;
        }
        let cast = |column, to: DataType| {
            let target = Arc::new(Field::new(field.name(), to, true));
            Arc::new(CastExpr::new_with_target_field(column, target, None)) as Arc<dyn PhysicalExpr>
        };
        // The direct way does not see when a date is out of reach.
        let column = match field.data_type() {
            DataType::Date32 => cast(column, DataType::Timestamp(TimeUnit::Second, None)),
            DataType::Date64 => cast(column, DataType::Timestamp(TimeUnit::Millisecond, None)),
            _ => column,
        };
        cast(column, normal.clone())
    });
    let fields: Vec<Field> = types
        .iter()
        .zip(schema.fields())
        .map(|(normal, field)| Field::new(field.name(), normal.clone(), true))
        .collect();
    Some(Stage::Project(columns.collect(), Arc::new(Schema::new(fields))))
}

fn normal_type(found: &DataType) -> DataType {
    match found {
        DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32
        | DataType::UInt64 => <Int64Type as arrow::datatypes::ArrowPrimitiveType>::DATA_TYPE,
        DataType::Float16 | DataType::Float32 => DataType::Float64,
        DataType::Utf8 | DataType::LargeUtf8 => DataType::Utf8View,
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => time_type(),
        DataType::List(item) => {
            DataType::List(Arc::new(item.as_ref().clone().with_data_type(normal_type(item.data_type()))))
        }
        other => other.clone(),
    }
}

/// Documents have each name once.
pub(super) fn check_names(schema: &Schema) -> Result<(), CompileError> {
    if schema.fields().is_empty() {
        return Err(internal("the query has no columns".into()));
    }
    for (idx, field) in schema.fields().iter().enumerate() {
        if schema.fields()[..idx].iter().any(|other| other.name() == field.name()) {
            let message = format!("two columns are called `{}`", field.name());
            return Err(refuse(message, "name them with AS"));
        }
    }
    Ok(())
}
