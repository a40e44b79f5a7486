//! Index templates for Elasticsearch 7.8 and later and for OpenSearch.

use serde_json::{Map, Value, json};

use crate::finding::Finding;
use crate::schema::{FieldType, RowSchema};

/// Longer strings are kept but not indexed as keywords: Lucene refuses terms above 32,766 bytes, which four-byte
/// characters reach at 8,191, and nobody aggregates over essays.
const KEYWORD_CHARS_MAX: u32 = 1024;

/// Above the templates that Elasticsearch brings along (100), below what an operator would add by hand (500).
const PRIORITY: u32 = 200;

/// A composable index template (the body of `PUT _index_template/…`) for documents of a schema, in every index that
/// matches `pattern`, such as `ecommerce-logs-*`.
///
/// Declared fields get the type that the schema gives them, the `geo` object of the `geoip` step is mapped with a
/// `geo_point`, strings that nobody declared become keywords. A document with a value that does not fit its field's type
/// is refused, and so becomes a reject that says why.
#[must_use]
pub fn index_template(schema_fields: &RowSchema, pattern: &str) -> Value {
    let mut properties = properties(&schema_fields.fields, "");
    properties.entry("geo").or_insert_with(geo);
    template(pattern, PRIORITY, properties, "Events of a Logdrive pipeline.")
}

/// The composable index template for what detectors say.
///
/// # Panics
/// Never: every column of a finding has a type of ours.
#[must_use]
pub fn findings_template(pattern: &str) -> Value {
    let fields: Vec<(String, FieldType)> = Finding::schema()
        .fields()
        .iter()
        .map(|f| (f.name().clone(), FieldType::of(f).expect("a finding's columns have types of ours")))
        .collect();
    // One above: a pattern for findings is often a special case of the pattern for events.
    template(pattern, PRIORITY + 1, properties(&fields, ""), "Findings of Logdrive's detectors.")
}

fn template(pattern: &str, priority: u32, properties: Map<String, Value>, description: &str) -> Value {
    json!({
        "index_patterns": [pattern],
        "priority": priority,
        "template": {
            "settings": {
                "index": {
                    "number_of_shards": 1,
                    "mapping": { "total_fields": { "limit": 2000 } },
                }
            },
            "mappings": {
                // What looks like a date in the first document need not in the second.
                "date_detection": false,
                "dynamic_templates": [{
                    "strings_as_keywords": {
                        "match_mapping_type": "string",
                        "mapping": keyword(),
                    }
                }],
                "properties": properties,
            }
        },
        "_meta": { "managed_by": "logdrive", "version": 2, "description": description },
    })
}

fn properties(fields: &[(String, FieldType)], parent: &str) -> Map<String, Value> {
    fields
        .iter()
        .map(|(name, field_type)| {
            let path = if parent.is_empty() { name.clone() } else { format!("{parent}.{name}") };
            (name.clone(), mapping(field_type, &path))
        })
        .collect()
}

fn mapping(field_type: &FieldType, path: &str) -> Value {
    match field_type {
        FieldType::Boolean => json!({ "type": "boolean" }),
        FieldType::Decimal(..) | FieldType::Float64 => json!({ "type": "double" }),
        FieldType::GeoPoint => json!({ "type": "geo_point" }),
        FieldType::Int64 => json!({ "type": "long" }),
        FieldType::Ip => json!({ "type": "ip" }),
        // An array has the mapping of its elements.
        FieldType::List(item) => mapping(item, path),
        FieldType::Object(fields) => json!({ "properties": properties(fields, path) }),
        FieldType::String if is_prose(path) => json!({ "type": "text" }),
        FieldType::String => keyword(),
        FieldType::Timestamp => json!({ "type": "date" }),
    }
}

fn keyword() -> Value {
    json!({ "type": "keyword", "ignore_above": KEYWORD_CHARS_MAX })
}

/// Whether a string is text to be searched by word rather than a value to be matched whole.
fn is_prose(path: &str) -> bool {
    matches!(path.rsplit('.').next(), Some("message" | "stack_trace"))
}

fn geo() -> Value {
    let mut properties: Map<String, Value> = [
        "city_name",
        "continent_code",
        "country_iso_code",
        "country_name",
        "postal_code",
        "region_iso_code",
        "region_name",
        "timezone",
    ]
    .iter()
    .map(|name| ((*name).to_owned(), keyword()))
    .collect();
    properties.insert("location".into(), json!({ "type": "geo_point" }));
    json!({ "properties": properties })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::find;

    fn property<'a>(template: &'a Value, path: &str) -> &'a Value {
        let mut node = &template["template"]["mappings"];
        for name in path.split('.') {
            node = &node["properties"][name];
        }
        node
    }

    #[test]
    fn template_of_the_ecommerce_schema() {
        let template = index_template(&find("ecommerce").unwrap(), "ecommerce-logs-*");
        assert_eq!(template["index_patterns"], json!(["ecommerce-logs-*"]));
        assert_eq!(template["priority"], 200);
        let index = &template["template"]["settings"]["index"];
        assert_eq!(index["number_of_shards"], 1);
        assert_eq!(index["mapping"]["total_fields"]["limit"], 2000);
        let check = |path: &str, expect: Value| assert_eq!(property(&template, path), &expect, "{path}");
        check("@timestamp", json!({ "type": "date" }));
        check("ip", json!({ "type": "ip" }));
        check("tenant", json!({ "type": "keyword", "ignore_above": 1024 }));
        check("message", json!({ "type": "text" }));
        check("error.message", json!({ "type": "text" }));
        check("error.stack_trace", json!({ "type": "text" }));
        check("error.type", json!({ "type": "keyword", "ignore_above": 1024 }));
        check("amount", json!({ "type": "double" }));
        check("status", json!({ "type": "long" }));
        check("cache_hit", json!({ "type": "boolean" }));
        check("payment.bin", json!({ "type": "keyword", "ignore_above": 1024 }));
        check("geo.location", json!({ "type": "geo_point" }));
        check("geo.country_iso_code", json!({ "type": "keyword", "ignore_above": 1024 }));
        assert_eq!(
            template["template"]["mappings"]["dynamic_templates"][0]["strings_as_keywords"]["mapping"]["ignore_above"],
            1024
        );
    }

    #[test]
    fn template_of_a_schema_of_ones_own() {
        let schema = RowSchema::of_fields(vec![
            ("at".into(), FieldType::Timestamp),
            ("price".into(), FieldType::Decimal(10, 2)),
            ("tags".into(), FieldType::List(Box::new(FieldType::String))),
            ("geo".into(), FieldType::Object(vec![("place".into(), FieldType::GeoPoint)])),
        ]);
        let template = index_template(&schema, "x-*");
        assert_eq!(property(&template, "at"), &json!({ "type": "date" }));
        assert_eq!(property(&template, "price"), &json!({ "type": "double" }));
        assert_eq!(property(&template, "tags"), &keyword());
        assert_eq!(property(&template, "geo.place"), &json!({ "type": "geo_point" }));
        assert!(property(&template, "geo.location").is_null(), "a declared `geo` is the user's own");
    }

    #[test]
    fn template_of_findings() {
        let template = findings_template("findings-*");
        assert_eq!(property(&template, "@timestamp"), &json!({ "type": "date" }));
        assert_eq!(property(&template, "window_end"), &json!({ "type": "date" }));
        assert_eq!(property(&template, "severity"), &keyword());
        assert_eq!(property(&template, "score"), &json!({ "type": "double" }));
        assert_eq!(property(&template, "features.value"), &json!({ "type": "double" }));
        assert_eq!(property(&template, "evidence"), &keyword());
        assert_eq!(template["priority"], 201);
    }
}
