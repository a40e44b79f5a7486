//! Conditions on `now()`: from when to when a row is in a view.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::TimestampMicrosecondType;
use datafusion::common::{DFSchema, Result};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator};
use logdrive_operators::CompileError;
use logdrive_schemas::Epoch;

use super::super::lower::{physical, refuse, unaliased};
use super::super::sql::mentions_now;
use super::super::windows::{NOW, time_type};
use super::plan::{Bound, Lifetime};

/// A second in microseconds.
const SECOND_US: i64 = 1_000_000;

/// Adds what `condition` says: a comparison of `now()`, with or without an interval added, with something else.
pub(super) fn bound(
    condition: &Expr,
    schema: &DFSchema,
    state: &SessionState,
    lifetime: &mut Lifetime,
) -> Result<(), CompileError> {
    let not_so = || {
        refuse(
            format!("this condition on `now()`: {condition}"),
            "compare a time with `now()`, `now() - INTERVAL '…'` or `now() + INTERVAL '…'`",
        )
    };
    let (left, op, right) = match condition {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => (&**left, *op, &**right),
        Expr::Between(between) if !between.negated => {
            for (op, edge) in [(Operator::GtEq, &between.low), (Operator::LtEq, &between.high)] {
                let half = Expr::BinaryExpr(BinaryExpr::new(between.expr.clone(), op, edge.clone()));
                if mentions_now(&half) {
                    bound(&half, schema, state, lifetime)?;
                } else {
                    return Err(not_so());
                }
            }
            return Ok(());
        }
        _ => return Err(not_so()),
    };
    // The side with `now()` to the left.
    let (time, op, other) = match (mentions_now(left), mentions_now(right)) {
        (true, false) => (left, op, right),
        (false, true) => (right, op.swap().ok_or_else(not_so)?, left),
        _ => return Err(not_so()),
    };
    // `now() - interval < other` is `now() < other + interval`.
    let other = match unaliased(time) {
        time if is_now(time) => other.clone(),
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if is_now(left) && !mentions_now(right) => {
            let inverse = match op {
                Operator::Minus => Operator::Plus,
                Operator::Plus => Operator::Minus,
                _ => return Err(not_so()),
            };
            Expr::BinaryExpr(BinaryExpr::new(Box::new(other.clone()), inverse, right.clone()))
        }
        _ => return Err(not_so()),
    };
    let at = physical(&other, schema, state)?;
    let data_type = at.data_type(schema.as_arrow()).map_err(|_| not_so())?;
    if !data_type.is_temporal() {
        return Err(not_so());
    }
    match op {
        Operator::Lt => lifetime.until.push(Bound { at, plus: 0 }),
        Operator::LtEq => lifetime.until.push(Bound { at, plus: 1 }),
        Operator::GtEq => lifetime.from.push(Bound { at, plus: 0 }),
        Operator::Gt => lifetime.from.push(Bound { at, plus: 1 }),
        _ => return Err(not_so()),
    }
    Ok(())
}

fn is_now(expr: &Expr) -> bool {
    matches!(unaliased(expr), Expr::ScalarFunction(function) if function.func.name() == NOW)
}

impl Lifetime {
    /// Whether there is no condition.
    pub(super) fn is_none(&self) -> bool {
        self.from.is_empty() && self.until.is_empty() && self.behind.is_none()
    }

    /// Which watermark makes each row leave, if one does. In whole seconds, so that many rows leave together.
    pub(super) fn ends(&self, rows: &RecordBatch) -> Result<Option<Vec<i64>>> {
        let Some(bound) = &self.behind else { return Ok(None) };
        let at = cast(&bound.at.evaluate(rows)?.into_array(rows.num_rows())?, &time_type())?;
        let ends = at.as_primitive::<TimestampMicrosecondType>().values().iter().map(|at| {
            let end = at.saturating_add(bound.plus);
            end.div_euclid(SECOND_US).saturating_add(1).saturating_mul(SECOND_US)
        });
        Ok(Some(ends.collect()))
    }

    /// From which epoch on each row is in the view, and from which on it is not; `None` for rows that never are.
    pub(super) fn of(&self, rows: &RecordBatch) -> Result<Vec<Option<(u64, u64)>>> {
        let mut spans = vec![Some((0, u64::MAX)); rows.num_rows()];
        let edges = self.from.iter().map(|bound| (bound, true));
        for (bound, is_start) in edges.chain(self.until.iter().map(|bound| (bound, false))) {
            let at = cast(&bound.at.evaluate(rows)?.into_array(rows.num_rows())?, &time_type())?;
            let at = at.as_primitive::<TimestampMicrosecondType>();
            for (row, span) in spans.iter_mut().enumerate() {
                let Some((from, until)) = span else { continue };
                if at.is_null(row) {
                    *span = None;
                    continue;
                }
                let epoch = epoch_at(at.value(row).saturating_add(bound.plus));
                if is_start {
                    *from = epoch.max(*from);
                } else {
                    *until = epoch.min(*until);
                }
            }
        }
        spans.iter_mut().for_each(|span| *span = span.filter(|(from, until)| from < until));
        Ok(spans)
    }
}

/// The first epoch whose time is not before `micros`.
fn epoch_at(micros: i64) -> u64 {
    let unit = Epoch::UNIT_US;
    u64::try_from(micros.div_euclid(unit) + i64::from(micros.rem_euclid(unit) != 0)).unwrap_or(0)
}
