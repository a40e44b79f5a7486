//! One schema for files that were written at different times.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema};

/// The union of the columns, by name, in order of first appearance. All are nullable: a file that lacks one has
/// nulls. Where types differ the widest that all can be read as counts.
pub(super) fn merge<'a>(schemas: impl IntoIterator<Item = &'a Schema>) -> Schema {
    let mut fields: Vec<FieldRef> = Vec::new();
    for schema in schemas {
        union(&mut fields, schema.fields());
    }
    Schema::new(fields)
}

fn union(fields: &mut Vec<FieldRef>, others: &Fields) {
    for other in others {
        match fields.iter_mut().find(|field| field.name() == other.name()) {
            Some(field) => {
                if field.data_type() != other.data_type() {
                    let wide = widest(field.data_type(), other.data_type());
                    *field = Arc::new(Field::new(field.name(), wide, true));
                }
            }
            None => fields.push(Arc::new(Field::new(other.name(), nullable(other.data_type()), true))),
        }
    }
}

/// The type with every field inside it nullable, so that it can be compared and filled.
fn nullable(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Struct(fields) => DataType::Struct(
            fields.iter().map(|field| Field::new(field.name(), nullable(field.data_type()), true)).collect(),
        ),
        other => other.clone(),
    }
}

fn widest(a: &DataType, b: &DataType) -> DataType {
    match (a, b) {
        (a, b) if a == b => a.clone(),
        (DataType::Null, other) | (other, DataType::Null) => other.clone(),
        (DataType::Struct(a), DataType::Struct(b)) => {
            let mut fields: Vec<FieldRef> = Vec::new();
            union(&mut fields, a);
            union(&mut fields, b);
            DataType::Struct(fields.into())
        }
        (a, b) if a.is_integer() && b.is_integer() => DataType::Int64,
        (a, b) if a.is_numeric() && b.is_numeric() => DataType::Float64,
        (DataType::Timestamp(_, zone), DataType::Timestamp(..)) => {
            DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, zone.clone())
        }
        _ => DataType::Utf8View,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(fields: &[(&str, DataType)]) -> Schema {
        Schema::new(fields.iter().map(|(n, t)| Field::new(*n, t.clone(), false)).collect::<Vec<_>>())
    }

    #[test]
    fn columns_are_united_and_types_widened() {
        let inner = |fields: &[(&str, DataType)]| DataType::Struct(schema(fields).fields().clone());
        let a = schema(&[
            ("id", DataType::Int32),
            ("n", DataType::Int64),
            ("s", inner(&[("x", DataType::Int64)])),
        ]);
        let b = schema(&[
            ("new", DataType::Boolean),
            ("n", DataType::Float64),
            ("id", DataType::Int64),
            ("s", inner(&[("y", DataType::Utf8View), ("x", DataType::Int64)])),
        ]);
        let c = schema(&[("n", DataType::Utf8View)]);
        let merged = merge([&a, &b]);
        let names: Vec<_> = merged.fields().iter().map(|f| f.name().as_str()).collect();
        assert_eq!(names, ["id", "n", "s", "new"]);
        assert!(merged.fields().iter().all(|field| field.is_nullable()));
        assert_eq!(*merged.field(0).data_type(), DataType::Int64);
        assert_eq!(*merged.field(1).data_type(), DataType::Float64);
        let DataType::Struct(s) = merged.field(2).data_type() else { panic!("{merged}") };
        assert_eq!(s.iter().map(|f| f.name().as_str()).collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(*merge([&a, &b, &c]).field(1).data_type(), DataType::Utf8View);
    }
}
