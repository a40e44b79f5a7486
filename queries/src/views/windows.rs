//! Windows of event time, and the SQL functions that name them.
//!
//! A hopping window is made of panes, the largest slices of time that no window's edge cuts: each row goes into one
//! pane, and each pane into the windows that it is part of (Li et al., "No pane, no gain", SIGMOD Record 34/1, 2005).

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StructArray, TimestampMicrosecondArray};
use arrow::datatypes::{
    DataType, Field, FieldRef, Fields, IntervalMonthDayNano, IntervalUnit, TimeUnit, TimestampMicrosecondType,
};
use datafusion::common::{Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

/// The function that says what time it is: the time of the epoch.
pub(super) const NOW: &str = "now";

/// The field of a window that says when it starts.
pub(super) const START: &str = "start";
/// The field of a window that says when it ends; that moment is outside.
pub(super) const END: &str = "end";

/// Windows of one length, all times in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Windows {
    /// How long each one is.
    pub(super) size: i64,
    /// From the start of one to the start of the next; at most the size.
    pub(super) slide: i64,
    /// A start of one of them.
    pub(super) offset: i64,
}

impl Windows {
    /// The length of a pane.
    pub(super) fn pane(self) -> i64 {
        let (mut a, mut b) = (self.size, self.slide);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    }

    /// The start of the pane that a moment is in.
    pub(super) fn pane_of(self, at: i64) -> i64 {
        self.floor(at, self.pane())
    }

    /// The end of the last window that a moment is in.
    pub(super) fn last_end(self, at: i64) -> i64 {
        self.floor(at, self.slide).saturating_add(self.size)
    }

    /// The starts of the windows that a pane is part of, the last one first.
    pub(super) fn of_pane(self, pane: i64) -> impl Iterator<Item = i64> {
        let last = self.floor(pane, self.slide);
        let starts = std::iter::successors(Some(last), move |start| start.checked_sub(self.slide));
        starts.take_while(move |start| start.saturating_add(self.size) > pane)
    }

    fn floor(self, at: i64, step: i64) -> i64 {
        let since = at.saturating_sub(self.offset);
        since.saturating_sub(since.rem_euclid(step)).saturating_add(self.offset)
    }
}

/// How rows are put into windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Windowing {
    /// Windows that do not depend on the rows.
    Fixed(Windows),
    /// Windows that last as long as a key's rows follow each other within `gap` microseconds. A window ends that much
    /// after its last row.
    Session {
        /// The longest pause in a session; a row exactly so much later still belongs to it.
        gap: i64,
    },
}

impl Windowing {
    /// The slice of time whose rows are aggregated together at first.
    pub(super) fn pane_of(self, at: i64) -> i64 {
        match self {
            Self::Fixed(windows) => windows.pane_of(at),
            Self::Session { .. } => at,
        }
    }

    /// Whether a row of `at` can be in no window that is open at `watermark`: since when.
    pub(super) fn closed_before(self, at: i64, watermark: i64) -> Option<i64> {
        match self {
            Self::Fixed(windows) => Some(windows.last_end(at)).filter(|end| *end <= watermark),
            Self::Session { gap } => Some(at.saturating_add(gap)).filter(|end| *end < watermark),
        }
    }
}

/// The functions whose value is a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// `tumble(time, size [, offset])`: one after the other.
    Tumble,
    /// `hop(time, slide, size [, offset])`: a new one of `size` every `slide`.
    Hop,
    /// `session(time, gap)`: as long as rows follow each other within `gap`.
    Session,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Tumble, Self::Hop, Self::Session];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tumble => "tumble",
            Self::Hop => "hop",
            Self::Session => "session",
        }
    }

    pub(super) fn signature(self) -> &'static str {
        match self {
            Self::Tumble => "tumble(time, size [, offset])",
            Self::Hop => "hop(time, slide, size [, offset])",
            Self::Session => "session(time, gap)",
        }
    }

    /// The windows that constant arguments behind the time ask for.
    pub(super) fn windowing(self, intervals: &[Option<&ScalarValue>]) -> Result<Windowing, String> {
        let mut lengths = Vec::with_capacity(intervals.len());
        for interval in intervals {
            lengths.push(microseconds(*interval)?);
        }
        let (slide, size, offset) = match (self, lengths.as_slice()) {
            (Self::Session, [gap]) if *gap > 0 => return Ok(Windowing::Session { gap: *gap }),
            (Self::Session, [_]) => return Err("the pause that ends a session is longer than nothing".into()),
            (Self::Tumble, [size]) => (*size, *size, 0),
            (Self::Tumble, [size, offset]) => (*size, *size, *offset),
            (Self::Hop, [slide, size]) => (*slide, *size, 0),
            (Self::Hop, [slide, size, offset]) => (*slide, *size, *offset),
            _ => return Err(format!("arguments are missing: {}", self.signature())),
        };
        if slide <= 0 || size <= 0 {
            return Err("a window is longer than nothing".into());
        }
        if slide > size {
            return Err("windows that start less often than they are long would leave rows out".into());
        }
        let windows = Windows { size, slide, offset };
        if size / windows.pane() > MAX_PANES {
            return Err(format!(
                "a window is made of {} panes, and {MAX_PANES} is the most: choose a longer slide, or one that \
                 divides the size",
                size / windows.pane()
            ));
        }
        Ok(Windowing::Fixed(windows))
    }
}

/// What a window costs grows with its panes.
const MAX_PANES: i64 = 10_000;

fn microseconds(interval: Option<&ScalarValue>) -> Result<i64, String> {
    match interval {
        Some(ScalarValue::IntervalMonthDayNano(Some(IntervalMonthDayNano {
            months: 0,
            days,
            nanoseconds,
        }))) => {
            if nanoseconds % 1_000 != 0 {
                return Err("windows are measured in whole microseconds".into());
            }
            Ok(i64::from(*days) * 86_400_000_000 + nanoseconds / 1_000)
        }
        Some(ScalarValue::IntervalMonthDayNano(Some(_))) => {
            Err("months differ in length: give the window in days or less".into())
        }
        Some(_) => Err("a window needs lengths such as INTERVAL '1 minute'".into()),
        None => Err("the lengths of a window are constants, such as INTERVAL '1 minute'".into()),
    }
}

pub(super) fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

fn window_fields() -> Fields {
    Fields::from(vec![Field::new(START, time_type(), true), Field::new(END, time_type(), true)])
}

/// Moments as a column.
pub(super) fn times(times: &[i64]) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from(times.to_vec()).with_timezone("UTC"))
}

/// Windows as a column of structs.
pub(super) fn column(starts: &[i64], ends: &[i64]) -> StructArray {
    StructArray::new(window_fields(), vec![times(starts), times(ends)], None)
}

/// A [`Kind`] as DataFusion wants it.
#[derive(Debug)]
struct WindowFunction {
    kind: Kind,
    signature: Signature,
}

impl PartialEq for WindowFunction {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind
    }
}

impl Eq for WindowFunction {}

impl Hash for WindowFunction {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.kind.hash(state);
    }
}

pub(super) fn udfs() -> impl Iterator<Item = ScalarUDF> {
    Kind::ALL.into_iter().map(|kind| {
        let signature = Signature::user_defined(Volatility::Immutable);
        ScalarUDF::new_from_impl(WindowFunction { kind, signature })
    })
}

impl ScalarUDFImpl for WindowFunction {
    fn name(&self) -> &str {
        self.kind.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Struct(window_fields()))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        if let Err(reason) = self.kind.windowing(args.scalar_arguments.get(1..).unwrap_or_default()) {
            return plan_err!("{}: {reason}", self.kind.name());
        }
        Ok(Arc::new(Field::new(self.kind.name(), DataType::Struct(window_fields()), true)))
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let Some(DataType::Timestamp(..) | DataType::Date32 | DataType::Date64) = types.first() else {
            return plan_err!("the first argument is the time of a row: {}", self.kind.signature());
        };
        let interval = DataType::Interval(IntervalUnit::MonthDayNano);
        Ok(std::iter::once(time_type()).chain(types[1..].iter().map(|_| interval.clone())).collect())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let intervals: Vec<Option<&ScalarValue>> = args.args[1..]
            .iter()
            .map(|value| match value {
                ColumnarValue::Scalar(value) => Some(value),
                ColumnarValue::Array(_) => None,
            })
            .collect();
        let windows = match self.kind.windowing(&intervals) {
            Ok(Windowing::Fixed(windows)) if windows.slide == windows.size => windows,
            Ok(_) => return exec_err!("such windows are made by GROUP BY {}(…) in a view", self.kind.name()),
            Err(reason) => return exec_err!("{}: {reason}", self.kind.name()),
        };
        let times = args.args[0].to_array(args.number_rows)?;
        let times = times.as_primitive::<TimestampMicrosecondType>();
        let starts: Vec<i64> = times.values().iter().map(|at| windows.pane_of(*at)).collect();
        let ends: Vec<i64> = starts.iter().map(|start| start.saturating_add(windows.size)).collect();
        let (fields, columns, _) = column(&starts, &ends).into_parts();
        Ok(ColumnarValue::Array(Arc::new(StructArray::new(fields, columns, times.nulls().cloned()))))
    }
}

/// `now()`: what is left of it when a query is lowered is refused, so it is never computed.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Now {
    signature: Signature,
    aliases: Vec<String>,
}

/// The function [`NOW`]. Volatile, so that nothing folds it to the moment of planning.
pub(super) fn now() -> ScalarUDF {
    let signature = Signature::nullary(Volatility::Volatile);
    ScalarUDF::new_from_impl(Now { signature, aliases: vec!["current_timestamp".into()] })
}

impl ScalarUDFImpl for Now {
    fn name(&self) -> &str {
        NOW
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(time_type())
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        exec_err!("`{NOW}` is compared with a time in WHERE")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panes_make_up_windows() {
        let hop = Windows { size: 60, slide: 25, offset: 0 };
        assert_eq!(hop.pane(), 5);
        for at in -200..200 {
            let mut starts: Vec<i64> = hop.of_pane(hop.pane_of(at)).collect();
            starts.reverse();
            let expected: Vec<i64> =
                (-20..20).map(|n| n * 25).filter(|start| *start <= at && at < start + 60).collect();
            assert_eq!(starts, expected, "{at}");
            assert_eq!(hop.last_end(at), expected.last().unwrap() + 60);
        }
        let tumble = Windows { size: 60, slide: 60, offset: 7 };
        assert_eq!(tumble.of_pane(tumble.pane_of(66)).collect::<Vec<_>>(), [7]);
        assert_eq!(tumble.of_pane(tumble.pane_of(67)).collect::<Vec<_>>(), [67]);
    }
}
