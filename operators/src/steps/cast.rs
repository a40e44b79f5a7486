//! `cast`: other types for fields.

use std::net::IpAddr;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, StringViewArray, new_null_array};
use arrow::compute::{CastOptions, can_cast_types, cast_with_options};
use arrow::datatypes::{DataType, SchemaRef, TimestampMicrosecondType};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use logdrive_schemas::component::{Component, ConfigError, Node, nearest};
use logdrive_schemas::schema::TYPE_NAMES;
use logdrive_schemas::{Batch, FieldType, Layout, Reject, reject};
use schemars::JsonSchema;
use serde::Deserialize;

use super::edit::{Entries, entry, put, put_column, unknown_field};
use crate::step::{Emit, Stage, Step, StepConfig, StepContext, StepPlan};

/// Changes the types of declared fields. A row with a value that does not fit is a reject; a null stays one.
/// Text becomes a `timestamp` if it is RFC 3339, a whole number if it counts microseconds since the Unix epoch.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct Cast(
    /// Field name to type: `boolean`, `decimal(p,s)`, `float64`, `geo_point`, `int64`, `ip`, `list<T>`, `string` or
    /// `timestamp`.
    pub Entries<String>,
);

impl Component for Cast {
    const NAME: &'static str = "cast";
    const EXAMPLE: &'static str = "cast: { status: int64 }";
}

impl StepConfig for Cast {
    fn plan(self, node: &Node, input: &Stage, _: &StepContext) -> Result<StepPlan, Vec<ConfigError>> {
        let mut stage = input.clone();
        let mut casts = Vec::new();
        let mut errors = Vec::new();
        let mut names = Vec::new();
        for (name, type_name) in self.0.0 {
            let place = entry(node, &name);
            let Some(field_type) = FieldType::parse(&type_name) else {
                errors.push(unknown_type(&type_name, place));
                continue;
            };
            let Ok(field) = stage.schema.field_with_name(&name) else {
                errors.push(unknown_field(&name, place.span, &stage.schema));
                continue;
            };
            let (from, to) = (field.data_type(), field_type.arrow());
            if !can_cast_types(from, &to) {
                let message = format!("`{name}` of type {from} cannot become {type_name}");
                errors.push(ConfigError::new("config::wrong_type", place.span, message));
                continue;
            }
            let (next, idx) = put(&stage, field_type.field(&name));
            stage = next;
            let (is_ip, schema) = (field_type == FieldType::Ip, Arc::clone(&stage.schema));
            casts.push(Conversion { name: name.clone(), type_name, to, is_ip, idx, schema });
            names.push(name);
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let layout = Arc::clone(&stage.layout);
        Ok(StepPlan {
            output: stage,
            reads: names.clone(),
            writes: names,
            renames: Vec::new(),
            reloads: Vec::new(),
            build: Box::new(move || Box::new(Convert { casts: casts.clone(), layout: Arc::clone(&layout) })),
        })
    }
}

/// `name` is no type.
pub(super) fn unknown_type(name: &str, place: &Node) -> ConfigError {
    ConfigError::new("config::unknown_type", place.span, format!("unknown type `{name}`")).with_help(
        match nearest(name, TYPE_NAMES) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("types: {}", TYPE_NAMES.join(", ")),
        },
    )
}

#[derive(Clone, Debug)]
struct Conversion {
    name: String,
    type_name: String,
    to: DataType,
    /// Whether the text must be an address.
    is_ip: bool,
    idx: usize,
    /// The columns behind this conversion.
    schema: SchemaRef,
}

impl Conversion {
    fn values(&self, column: &ArrayRef) -> ArrayRef {
        converted(column, &self.to, self.is_ip)
    }

    fn reject(&self, idx: usize, column: &ArrayRef) -> Reject {
        cast_failed(&self.name, &self.type_name, idx, column)
    }
}

/// The values of `column` as `to`, addresses if `is_ip`; null where that is impossible.
pub(super) fn converted(column: &ArrayRef, to: &DataType, is_ip: bool) -> ArrayRef {
    let options = CastOptions { safe: true, ..CastOptions::default() };
    // Some conversions fail as a whole although told not to; then no value fits.
    let values = cast_with_options(column, &offset_zero(to), &options)
        .unwrap_or_else(|_| new_null_array(to, column.len()));
    if !is_ip {
        return in_zone(values, "UTC");
    }
    let addresses = values.as_string_view().iter();
    let valid = addresses.map(|text| text.filter(|text| text.parse::<IpAddr>().is_ok()));
    Arc::new(valid.collect::<StringViewArray>())
}

/// The reject for a value of `column` that [`converted`] made null.
pub(super) fn cast_failed(name: &str, type_name: &str, idx: usize, column: &ArrayRef) -> Reject {
    let options = FormatOptions::default().with_display_error(true);
    let text = ArrayFormatter::try_new(column, &options)
        .map_or_else(|_| "value".into(), |formatter| formatter.value(idx).to_string());
    let text: String = text.chars().take(80).collect();
    Reject { idx, reason: format!("cast_failed: `{name}` is no {type_name}: {text}") }
}

/// Arrow reads and writes text of times in UTC only if the zone is called by its offset.
const OFFSET_ZERO: &str = "+00:00";

fn offset_zero(to: &DataType) -> DataType {
    match to {
        DataType::Timestamp(unit, Some(_)) => DataType::Timestamp(*unit, Some(OFFSET_ZERO.into())),
        other => other.clone(),
    }
}

/// The same points in time with UTC called `zone`.
fn in_zone(column: ArrayRef, zone: &str) -> ArrayRef {
    match column.as_primitive_opt::<TimestampMicrosecondType>() {
        Some(times) => Arc::new(times.clone().with_timezone(zone)),
        None => column,
    }
}

#[derive(Debug)]
struct Convert {
    casts: Vec<Conversion>,
    layout: Arc<Layout>,
}

impl Step for Convert {
    fn apply(&mut self, mut batch: Batch, out: &mut Emit) {
        for cast in &self.casts {
            let column = in_zone(Arc::clone(batch.rows().column(cast.idx)), OFFSET_ZERO);
            let values = cast.values(&column);
            let failed: Vec<usize> =
                (0..column.len()).filter(|idx| column.is_valid(*idx) && values.is_null(*idx)).collect();
            let rows = put_column(batch.rows(), cast.idx, values, &cast.schema);
            let rejects: Vec<Reject> = failed.iter().map(|idx| cast.reject(*idx, &column)).collect();
            out.rejects.extend(reject::of_batch(&batch, &rejects));
            batch = batch.with_rows(rows, Arc::clone(&self.layout));
            if !failed.is_empty() {
                let mut keep = vec![true; batch.num_rows()];
                failed.iter().for_each(|idx| keep[*idx] = false);
                let kept = batch.filter(&BooleanArray::from(keep));
                match kept.expect("Arrow filters columns of every type that a schema has") {
                    Some(kept) => batch = kept,
                    None => return,
                }
            }
        }
        out.rows.push(batch);
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow::datatypes::Int64Type;

    use super::super::testing::*;

    #[test]
    fn what_does_not_fit_is_a_reject() {
        let column = text(&[Some("5"), Some("x"), None, Some("99999999999999999999"), Some("-7")]);
        let (plan, out) = run_plan("cast: { n: int64 }", &batch(&[("n", column)]));
        let values = out.rows[0].rows().column(0).as_primitive::<Int64Type>();
        assert_eq!(values.iter().collect::<Vec<_>>(), [Some(5), None, Some(-7)]);
        assert_eq!(ids(&out.rejects), [1, 3]);
        assert_eq!(reason(&out.rejects[0], 0), "cast_failed: `n` is no int64: x");
        assert_eq!(edits(&plan.output).len(), 1);
    }

    #[test]
    fn addresses_and_times_are_checked() {
        let input = batch(&[
            ("ip", text(&[Some("::1"), Some("10.0.0.256"), Some("10.0.0.1")])),
            ("at", text(&[Some("2026-01-01T00:00:00Z"), Some("2026-01-01T00:00:00Z"), Some("soon")])),
        ]);
        let out = run("cast: { ip: ip, at: timestamp }", &input);
        assert_eq!(ids(&out.rows), [0]);
        assert_eq!(ids(&out.rejects), [1, 2]);
        let (_, out) = run_plan("cast: { at: string }", &out.rows[0]);
        assert_eq!(out.rows[0].rows().column(1).as_string_view().value(0), "2026-01-01T00:00:00Z");
    }

    #[test]
    fn unknown_types_and_fields_are_errors() {
        let errors = plan_errors(
            "cast: { n: int46, m: int64, n2: geo_point }",
            &batch(&[("n", int(&[Some(1)])), ("n2", int(&[Some(1)]))]),
        );
        let codes: Vec<&str> = errors.iter().map(|(code, _)| *code).collect();
        assert_eq!(codes, ["config::unknown_type", "config::unknown_field", "config::wrong_type"]);
    }
}
