//! Joins whose condition bounds how far the times of both rows are apart: a row is kept until no row that would match it
//! can come any more.

use arrow::datatypes::IntervalMonthDayNanoType;
use datafusion::common::{DFSchema, JoinType, ScalarValue};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator};

use super::super::lower::unaliased;
use super::super::windows::time_type;

/// How far the time of the right row may be ahead of that of the left one, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interval {
    /// Columns of the sides with the times.
    pub(super) left: usize,
    pub(super) right: usize,
    pub(super) least: i64,
    pub(super) most: i64,
}

/// For how long after its time a row of each side is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Keep {
    pub(super) left: i64,
    pub(super) right: i64,
}

impl Interval {
    /// For a join of this kind, whose rows can be read for `retain`; `None` if rows cannot be let go of without new ones
    /// coming about: a row whose partners have left looks as if it had never had one.
    pub(super) fn keep(self, join_type: JoinType, retain: i64) -> Option<Keep> {
        let left = self.most.max(0).saturating_add(retain);
        let right = self.least.saturating_neg().max(0).saturating_add(retain);
        match join_type {
            JoinType::Inner => Some(Keep { left, right }),
            // Those that a row may have for a partner stay as long as the row.
            JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => {
                Some(Keep { left, right: right.max(left.saturating_sub(self.least)) })
            }
            JoinType::Right => Some(Keep { left: left.max(right.saturating_add(self.most)), right }),
            _ => None,
        }
    }
}

/// A column of both sides, and what is added to it.
type Term = (usize, i64);

/// What a condition, and equal columns, say of two times, the first of which is a column of the left side.
pub(super) fn find(condition: &Expr, both: &DFSchema, n_left: usize) -> Option<Interval> {
    // By the columns of a left and a right time: the least and the most that the right one is ahead.
    let mut found: Vec<((usize, usize), (Option<i64>, Option<i64>))> = Vec::new();
    let mut at_most = |earlier: Term, later: Term| {
        // earlier + a <= later + b, so later - earlier >= a - b.
        let ahead = earlier.1.saturating_sub(later.1);
        let (pair, is_right_later) = match (earlier.0 < n_left, later.0 < n_left) {
            (true, false) => ((earlier.0, later.0), true),
            (false, true) => ((later.0, earlier.0), false),
            _ => return,
        };
        let idx = found.iter().position(|(known, _)| *known == pair).unwrap_or_else(|| {
            found.push((pair, (None, None)));
            found.len() - 1
        });
        let (least, most) = &mut found[idx].1;
        if is_right_later {
            *least = Some(least.map_or(ahead, |least| least.max(ahead)));
        } else {
            let most_ahead = ahead.saturating_neg();
            *most = Some(most.map_or(most_ahead, |most| most.min(most_ahead)));
        }
    };
    for (left, op, right) in split_conjunction(condition).into_iter().flat_map(comparisons) {
        let (Some(left), Some(right)) = (term(left, both), term(right, both)) else { continue };
        match op {
            Operator::Lt | Operator::LtEq => at_most(left, right),
            Operator::Gt | Operator::GtEq => at_most(right, left),
            Operator::Eq => {
                at_most(left, right);
                at_most(right, left);
            }
            _ => {}
        }
    }
    found.into_iter().find_map(|((left, right), bounds)| match bounds {
        (Some(least), Some(most)) => Some(Interval { left, right: right - n_left, least, most }),
        _ => None,
    })
}

fn comparisons(condition: &Expr) -> Vec<(&Expr, Operator, &Expr)> {
    match condition {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => vec![(left, *op, right)],
        Expr::Between(between) if !between.negated => vec![
            (&between.expr, Operator::GtEq, &between.low),
            (&between.expr, Operator::LtEq, &between.high),
        ],
        _ => Vec::new(),
    }
}

/// A time column, with or without an interval of a fixed length added.
fn term(expr: &Expr, both: &DFSchema) -> Option<Term> {
    match unaliased(expr) {
        Expr::Column(column) => {
            let idx = both.maybe_index_of_column(column)?;
            (*both.field(idx).data_type() == time_type()).then_some((idx, 0))
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let Expr::Literal(interval, _) = unaliased(right) else { return None };
            let (idx, plus) = term(left, both)?;
            let interval = micros(interval)?;
            match op {
                Operator::Plus => Some((idx, plus.saturating_add(interval))),
                Operator::Minus => Some((idx, plus.saturating_sub(interval))),
                _ => None,
            }
        }
        _ => None,
    }
}

/// How long an interval is, if all such intervals are equally long; rounded to the shorter.
fn micros(interval: &ScalarValue) -> Option<i64> {
    let interval =
        interval.cast_to(&arrow::datatypes::DataType::Interval(arrow::datatypes::IntervalUnit::MonthDayNano));
    let Ok(ScalarValue::IntervalMonthDayNano(Some(interval))) = interval else { return None };
    let (months, days, nanos) = IntervalMonthDayNanoType::to_parts(interval);
    (months == 0).then(|| i64::from(days).saturating_mul(86_400_000_000).saturating_add(nanos / 1_000))
}
