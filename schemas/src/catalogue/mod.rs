//! The catalogue of event schemas: what an e-commerce platform logs, by type of event.
//!
//! Names follow ECS where ECS has one, but flat, as people write them: `ip` rather than `source.ip`, `service` rather
//! than `service.name`. One list of fields (`fields::FIELDS`) is the truth; the row schemas, the index template of
//! Elasticsearch and OpenSearch, and the JSON Schema derive from it.
//!
//! A name means the same in every type of event, so that `ecommerce`, the union of all, has one type per field:
//! `status` is the HTTP status, a number; how a payment ended is `payment.status`, and `outcome` is `success` or
//! `failure` in every type. Fields that are not listed pass through untouched (such as a metric's `labels`).

mod fields;
mod json_schema;
mod template;

use crate::schema::{FieldType, RowSchema};

pub use json_schema::json_schema;
pub use template::{findings_template, index_template};

/// Every schema of the catalogue. `ecommerce` has the fields of all others.
pub const NAMES: &[&str] =
    &["ecommerce", "transaction", "error", "behavior", "performance", "security", "metric"];

/// The schema called `name`; `None` if the catalogue has none.
#[must_use]
pub fn find(name: &str) -> Option<RowSchema> {
    let of = fields::mask(name)?;
    let mut row: Vec<(String, FieldType)> = Vec::new();
    for field in fields::FIELDS.iter().filter(|field| field.of & of != 0) {
        let field_type = field.kind.field_type();
        let Some((object, member)) = field.name.split_once('.') else {
            row.push((field.name.into(), field_type));
            continue;
        };
        match row.iter_mut().find(|(name, _)| name == object) {
            Some((_, FieldType::Object(members))) => members.push((member.into(), field_type)),
            _ => row.push((object.into(), FieldType::Object(vec![(member.into(), field_type)]))),
        }
    }
    Some(RowSchema::of_fields(row))
}

/// What the field at `path` (`amount`, `payment.method`) means, in one line; `None` if the catalogue has no such
/// field.
#[must_use]
pub fn describe(path: &str) -> Option<&'static str> {
    fields::FIELDS.iter().find(|field| field.name == path).map(|field| field.about)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn type_of<'a>(fields: &'a [(String, FieldType)], path: &str) -> Option<&'a FieldType> {
        let (name, rest) = path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
        let field_type = fields.iter().find(|(n, _)| n == name).map(|(_, t)| t)?;
        match (rest, field_type) {
            (None, _) => Some(field_type),
            (Some(rest), FieldType::Object(members)) => type_of(members, rest),
            _ => None,
        }
    }

    #[test]
    fn every_name_is_found_and_nothing_else() {
        for name in NAMES {
            let schema = find(name).expect(name);
            assert_eq!(schema.event_time, "@timestamp", "{name}");
            for common in ["@timestamp", "tenant", "type", "source", "id"] {
                assert!(type_of(&schema.fields, common).is_some(), "{name} lacks {common}");
            }
            assert_eq!(schema.arrow().fields().len(), schema.fields.len());
        }
        assert!(find("Ecommerce").is_none());
        assert!(find("").is_none());
    }

    #[test]
    fn ecommerce_is_the_union_of_all_with_the_same_types() {
        let union = find("ecommerce").unwrap();
        for name in NAMES {
            for (field, field_type) in find(name).unwrap().fields {
                let whole = type_of(&union.fields, &field).unwrap_or_else(|| panic!("{name}.{field}"));
                match (&field_type, whole) {
                    (FieldType::Object(part), FieldType::Object(whole)) => {
                        assert!(part.iter().all(|member| whole.contains(member)), "{name}.{field}");
                    }
                    _ => assert_eq!(&field_type, whole, "{name}.{field}"),
                }
            }
        }
        let names: HashSet<_> = union.fields.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), union.fields.len(), "names are unique");
    }

    #[test]
    fn types_are_those_that_the_examples_rely_on() {
        let schema = find("ecommerce").unwrap();
        let check = |path: &str, expect: FieldType| {
            assert_eq!(type_of(&schema.fields, path), Some(&expect), "{path}");
        };
        check("@timestamp", FieldType::Timestamp);
        check("ip", FieldType::Ip);
        check("latency_ms", FieldType::Float64);
        check("amount", FieldType::Float64);
        check("status", FieldType::Int64);
        check("card_id", FieldType::String);
        check("payment.last_four", FieldType::String);
        check("error.stack_trace", FieldType::String);
        check("cache_hit", FieldType::Boolean);
    }

    #[test]
    fn every_field_is_described_once_in_one_line() {
        let mut seen = HashSet::new();
        for field in fields::FIELDS {
            assert!(seen.insert(field.name), "{} is listed twice", field.name);
            assert!(field.about.ends_with('.') && !field.about.contains('\n'), "{}", field.name);
            assert_eq!(describe(field.name), Some(field.about));
        }
        assert_eq!(describe("no_such_field"), None);
    }
}
