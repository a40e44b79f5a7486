//! JSON Schema of messages, for the people who write them.

use serde_json::{Map, Value, json};

use super::describe;
use crate::schema::{FieldType, RowSchema};

/// The JSON Schema (draft 2020-12) of messages of a schema. Every field may be absent or null, and more fields than
/// these may be there: so it is with rows.
#[must_use]
pub fn json_schema(schema: &RowSchema) -> Value {
    let mut object = object(&schema.fields, "");
    object.insert("$schema".into(), "https://json-schema.org/draft/2020-12/schema".into());
    Value::Object(object)
}

fn object(fields: &[(String, FieldType)], parent: &str) -> Map<String, Value> {
    let properties: Map<String, Value> = fields
        .iter()
        .map(|(name, field_type)| {
            let path = if parent.is_empty() { name.clone() } else { format!("{parent}.{name}") };
            let mut property = of_type(field_type, &path);
            if let Some(description) = describe(&path) {
                property.insert("description".into(), description.into());
            }
            (name.clone(), Value::Object(property))
        })
        .collect();
    let mut object = Map::new();
    object.insert("type".into(), if parent.is_empty() { json!("object") } else { json!(["object", "null"]) });
    object.insert("properties".into(), Value::Object(properties));
    object
}

fn of_type(field_type: &FieldType, path: &str) -> Map<String, Value> {
    let schema = match field_type {
        FieldType::Boolean => json!({ "type": ["boolean", "null"] }),
        FieldType::Decimal(..) | FieldType::Float64 => json!({ "type": ["number", "null"] }),
        FieldType::GeoPoint => json!({
            "type": ["object", "null"],
            "properties": {
                "lat": { "type": "number", "minimum": -90, "maximum": 90 },
                "lon": { "type": "number", "minimum": -180, "maximum": 180 },
            },
        }),
        FieldType::Int64 => json!({ "type": ["integer", "null"] }),
        FieldType::Ip => json!({
            "type": ["string", "null"],
            "anyOf": [{ "format": "ipv4" }, { "format": "ipv6" }],
        }),
        FieldType::List(item) => json!({ "type": ["array", "null"], "items": of_type(item, path) }),
        FieldType::Object(fields) => return object(fields, path),
        FieldType::String => json!({ "type": ["string", "null"] }),
        FieldType::Timestamp => json!({ "type": ["string", "null"], "format": "date-time" }),
    };
    match schema {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::find;

    #[test]
    fn json_schema_of_transactions() {
        let schema = json_schema(&find("transaction").unwrap());
        assert_eq!(schema["type"], "object");
        let properties = &schema["properties"];
        assert_eq!(properties["@timestamp"]["format"], "date-time");
        assert_eq!(properties["amount"]["type"], json!(["number", "null"]));
        assert_eq!(properties["amount"]["description"], "The money moved, in units of `currency`.");
        assert_eq!(properties["payment"]["type"], json!(["object", "null"]));
        assert_eq!(properties["payment"]["properties"]["bin"]["type"], json!(["string", "null"]));
        assert!(properties["payment"]["properties"]["bin"]["description"].is_string());
        assert!(properties["funnel_step"].is_null(), "of another type of event");
    }

    #[test]
    fn json_schema_of_lists_and_points() {
        let schema = json_schema(&RowSchema::of_fields(vec![
            ("tags".into(), FieldType::List(Box::new(FieldType::Int64))),
            ("place".into(), FieldType::GeoPoint),
        ]));
        assert_eq!(schema["properties"]["tags"]["items"]["type"], json!(["integer", "null"]));
        assert_eq!(schema["properties"]["place"]["properties"]["lat"]["maximum"], 90);
    }
}
