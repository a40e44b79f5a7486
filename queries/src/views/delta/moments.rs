//! Aggregates of which a change of the rows is a change of few numbers: no row is kept for them.
//!
//! The numbers are exact, so that they are the same whatever came and went in between; DataFusion's accumulators make the
//! value of them.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, UInt64Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Decimal128Type, Decimal256Type, Float64Type, Int64Type, UInt64Type, i256};
use datafusion::common::{Result, ScalarValue, internal_err};
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;

use super::exact::ExactSum;

/// What is kept of the rows of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// How many rows have no NULL.
    Count,
    /// Their sum.
    Sum,
    /// Count and sum.
    Average,
    /// Count, mean, and the squares' sum about it.
    Variance,
    /// Count, both means, and the products' sum about them.
    Covariance,
    /// Count, and of both columns mean and squares, and the products: in this order or the next.
    Correlation,
    Regression,
    /// How often each bit is set.
    Bits,
}

impl Kind {
    /// What is enough for a function over columns of such types, if anything short of the rows is.
    pub(super) fn of(function: &AggregateFunctionExpr, types: &[DataType]) -> Option<Self> {
        let kind = match function.fun().name() {
            "count" => return Some(Self::Count),
            "sum" => Self::Sum,
            "avg" => Self::Average,
            "var" | "var_pop" | "stddev" | "stddev_pop" => Self::Variance,
            "covar_samp" | "covar_pop" => Self::Covariance,
            "corr" => Self::Correlation,
            name if name.starts_with("regr_") => Self::Regression,
            "bit_and" | "bit_or" | "bit_xor" => Self::Bits,
            _ => return None,
        };
        let fits = match kind {
            Self::Count => true,
            Self::Sum => types.iter().all(is_summed),
            Self::Average => types.iter().all(|data_type| is_summed(data_type) && !data_type.is_integer()),
            Self::Bits => types.iter().all(DataType::is_integer),
            _ => types.iter().all(|data_type| *data_type == DataType::Float64),
        };
        let n_columns = match kind {
            Self::Covariance | Self::Correlation | Self::Regression => 2,
            _ => 1,
        };
        (fits && types.len() == n_columns).then_some(kind)
    }

    /// Of no rows.
    pub(super) fn nothing(self) -> Moments {
        let numbers = match self {
            Self::Count => Numbers::None,
            Self::Sum | Self::Average => Numbers::Sum(i256::ZERO, ExactSum::default()),
            Self::Bits => Numbers::Bits(Box::new([0; 64])),
            _ => Numbers::Powers(Box::default()),
        };
        Moments { n_rows: 0, numbers }
    }
}

fn is_summed(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Int64
            | DataType::UInt64
            | DataType::Float64
            | DataType::Decimal128(..)
            | DataType::Decimal256(..)
    )
}

/// Whether a value is NULL; Arrow's columns of the type NULL do not say so.
pub(super) fn is_null(column: &ArrayRef, row: usize) -> bool {
    *column.data_type() == DataType::Null || column.is_null(row)
}

/// The columns of an aggregate, as [`Moments`] read them.
pub(super) fn readable(kind: Kind, columns: &[ArrayRef]) -> Result<Vec<ArrayRef>> {
    let as_bits = |column: &ArrayRef| match column.data_type() {
        DataType::UInt64 => {
            let bits = column.as_primitive::<UInt64Type>();
            Ok(Arc::new(bits.unary::<_, Int64Type>(u64::cast_signed)) as ArrayRef)
        }
        _ => Ok(cast(column, &DataType::Int64)?),
    };
    match kind {
        Kind::Bits => columns.iter().map(as_bits).collect(),
        _ => Ok(columns.to_vec()),
    }
}

/// What is kept of the rows of a group without a NULL.
#[derive(Debug)]
pub(super) struct Moments {
    n_rows: i64,
    numbers: Numbers,
}

#[derive(Debug)]
enum Numbers {
    None,
    /// Of whole numbers, and of others.
    Sum(i256, ExactSum),
    Powers(Box<Powers>),
    Bits(Box<[i64; 64]>),
}

/// Sums of two columns, their squares and their products.
#[derive(Debug, Default)]
struct Powers {
    x: ExactSum,
    y: ExactSum,
    xx: ExactSum,
    yy: ExactSum,
    xy: ExactSum,
}

impl Moments {
    /// Adds a row as often as `times` says, which may be negative.
    pub(super) fn add(&mut self, columns: &[ArrayRef], row: usize, times: i64) {
        if columns.iter().any(|column| is_null(column, row)) {
            return;
        }
        self.n_rows += times;
        match &mut self.numbers {
            Numbers::None => {}
            Numbers::Sum(whole, exact) => match whole_number(&columns[0], row) {
                Some(number) => {
                    *whole = whole.wrapping_add(number.wrapping_mul(i256::from_i128(times.into())));
                }
                None => exact.add(columns[0].as_primitive::<Float64Type>().value(row), times),
            },
            Numbers::Powers(powers) => {
                let value = |column: &ArrayRef| column.as_primitive::<Float64Type>().value(row);
                let x = value(&columns[0]);
                powers.x.add(x, times);
                powers.xx.add_product(x, x, times);
                if let Some(y) = columns.get(1).map(value) {
                    powers.y.add(y, times);
                    powers.yy.add_product(y, y, times);
                    powers.xy.add_product(x, y, times);
                }
            }
            Numbers::Bits(counts) => {
                let bits = columns[0].as_primitive::<Int64Type>().value(row);
                for (bit, count) in counts.iter_mut().enumerate() {
                    *count += times * (bits >> bit & 1);
                }
            }
        }
    }

    /// The value of the function.
    pub(super) fn value(&self, kind: Kind, function: &AggregateFunctionExpr) -> Result<ScalarValue> {
        let mut accumulator = function.create_accumulator()?;
        if self.n_rows == 0 {
            return accumulator.evaluate();
        }
        if let Numbers::Bits(counts) = &self.numbers {
            accumulator.update_batch(&[self.bits(counts, function)?])?;
            return accumulator.evaluate();
        }
        let states = self.states(kind, function)?;
        let states = states.iter().map(ScalarValue::to_array).collect::<Result<Vec<_>>>()?;
        accumulator.merge_batch(&states)?;
        accumulator.evaluate()
    }

    /// The state of DataFusion's accumulator for the same rows.
    fn states(&self, kind: Kind, function: &AggregateFunctionExpr) -> Result<Vec<ScalarValue>> {
        let count = ScalarValue::from(self.n_rows.cast_unsigned());
        match &self.numbers {
            Numbers::Sum(whole, exact) => {
                let fields = function.state_fields()?;
                let Some(field) = fields.last() else { return internal_err!("a sum without a state") };
                let sum = sum(*whole, exact, field.data_type())?;
                Ok(if kind == Kind::Sum { vec![sum] } else { vec![count, sum] })
            }
            Numbers::Powers(powers) => {
                let (x, y) = (powers.x.value() / self.n(), powers.y.value() / self.n());
                let of = |(first, a), (second, b), products| self.about((first, a), (second, b), products);
                let xx = of((&powers.x, x), (&powers.x, x), &powers.xx);
                let numbers = match kind {
                    Kind::Variance => vec![x, xx],
                    _ => {
                        let yy = of((&powers.y, y), (&powers.y, y), &powers.yy);
                        let xy = of((&powers.x, x), (&powers.y, y), &powers.xy);
                        match kind {
                            Kind::Covariance => vec![x, y, xy],
                            Kind::Correlation => vec![x, xx, y, yy, xy],
                            // The first argument is the dependent one.
                            _ => vec![y, x, yy, xx, xy],
                        }
                    }
                };
                Ok(std::iter::once(count).chain(numbers.into_iter().map(ScalarValue::from)).collect())
            }
            Numbers::None => Ok(vec![ScalarValue::Int64(Some(self.n_rows))]),
            Numbers::Bits(_) => internal_err!("bits have no state"),
        }
    }

    fn n(&self) -> f64 {
        self.n_rows as f64
    }

    /// The sum of `(x - a) * (y - b)` less what `a` and `b`, the rounded means, are off.
    fn about(&self, (x, a): (&ExactSum, f64), (y, b): (&ExactSum, f64), products: &ExactSum) -> f64 {
        if !a.is_finite() || !b.is_finite() {
            return f64::NAN;
        }
        let mut sum = products.clone();
        sum.add_scaled(y, -a);
        sum.add_scaled(x, -b);
        sum.add_product(a, b, self.n_rows);
        let off = |total: &ExactSum, mean: f64| {
            let mut off = total.clone();
            off.add(mean, -self.n_rows);
            off.value()
        };
        sum.value() - off(x, a) * off(y, b) / self.n()
    }

    /// One row that has the same bits as all rows together.
    fn bits(&self, counts: &[i64; 64], function: &AggregateFunctionExpr) -> Result<ArrayRef> {
        let is_set = |count: i64| match function.fun().name() {
            "bit_and" => count == self.n_rows,
            "bit_or" => count > 0,
            _ => count % 2 != 0,
        };
        let bits = counts.iter().enumerate().filter(|(_, count)| is_set(**count));
        let bits = bits.fold(0, |bits, (bit, _)| bits | 1_u64 << bit);
        let data_type = function.field().data_type().clone();
        if data_type == DataType::UInt64 {
            return Ok(Arc::new(UInt64Array::from(vec![bits])));
        }
        Ok(cast(&Int64Array::from(vec![bits.cast_signed()]), &data_type)?)
    }

    /// About how many bytes it takes beside itself.
    pub(super) fn n_bytes(&self) -> usize {
        match &self.numbers {
            Numbers::None => 0,
            Numbers::Sum(_, exact) => exact.n_bytes(),
            Numbers::Powers(powers) => {
                let sums = [&powers.x, &powers.y, &powers.xx, &powers.yy, &powers.xy];
                size_of::<Powers>() + sums.into_iter().map(ExactSum::n_bytes).sum::<usize>()
            }
            Numbers::Bits(counts) => size_of_val(&**counts),
        }
    }
}

/// A number that has no fraction, or one with a fixed number of digits, in units of the last one.
fn whole_number(column: &ArrayRef, row: usize) -> Option<i256> {
    Some(match column.data_type() {
        DataType::Int64 => i256::from_i128(column.as_primitive::<Int64Type>().value(row).into()),
        DataType::UInt64 => i256::from_i128(column.as_primitive::<UInt64Type>().value(row).into()),
        DataType::Decimal128(..) => i256::from_i128(column.as_primitive::<Decimal128Type>().value(row)),
        DataType::Decimal256(..) => column.as_primitive::<Decimal256Type>().value(row),
        _ => return None,
    })
}

/// A sum as a value. A sum that does not fit wraps, as DataFusion's does.
fn sum(whole: i256, exact: &ExactSum, data_type: &DataType) -> Result<ScalarValue> {
    Ok(match data_type {
        DataType::Float64 => ScalarValue::from(exact.value()),
        DataType::Int64 => ScalarValue::from(whole.as_i128() as i64),
        DataType::UInt64 => ScalarValue::from(whole.as_i128() as u64),
        DataType::Decimal128(precision, scale) => {
            ScalarValue::Decimal128(Some(whole.as_i128()), *precision, *scale)
        }
        DataType::Decimal256(precision, scale) => ScalarValue::Decimal256(Some(whole), *precision, *scale),
        other => return internal_err!("a sum of {other}"),
    })
}
