//! `json_get` and its typed siblings: one value out of JSON kept as text.
//!
//! The text is read once without building a tree: what the path does not lead to is checked and passed over. A
//! document that is not valid JSON as a whole gives null, also when the value was found before the fault.

use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array, StringViewBuilder};
use arrow::datatypes::DataType;
use datafusion::common::Result;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::function::{Arguments, Constants, Function, Kind, Parameters, failed};

/// The longest path, in steps.
const PATH_LIMIT: usize = 64;

const PARAMETERS: Parameters = Parameters { required: &[Kind::Text, Kind::Text], optional: &[], more: None };

/// `json_get(text, path)`.
pub(super) static JSON_GET: Function = Function {
    name: "json_get",
    signature: "json_get(text, path text) → text",
    doc: "The value at a path (`a.b[0]`, `$.a.b[0]`, `a[\"odd.key\"]`) of a JSON document, as text: a string without \
          quotes, anything else as it is written. Null if there is no such value, if it is `null`, or if the document \
          is not valid JSON. Of duplicate keys the last counts.",
    example: (r#"json_get('{"items":[{"sku":"A7"}]}', 'items[0].sku')"#, "A7"),
    parameters: PARAMETERS,
    returns: |_| DataType::Utf8View,
    check: check_path,
    evaluate: |arguments| {
        text_column(arguments, |raw| if raw.starts_with('"') { string(raw) } else { Some(raw.into()) })
    },
};

/// `json_get_str(text, path)`.
pub(super) static JSON_GET_STR: Function = Function {
    name: "json_get_str",
    signature: "json_get_str(text, path text) → text",
    doc: "As `json_get`, and null unless the value is a string.",
    example: (r#"json_get_str('{"a":{"b":"x"}}', '$.a.b')"#, "x"),
    parameters: PARAMETERS,
    returns: |_| DataType::Utf8View,
    check: check_path,
    evaluate: |arguments| text_column(arguments, string),
};

/// `json_get_int(text, path)`.
pub(super) static JSON_GET_INT: Function = Function {
    name: "json_get_int",
    signature: "json_get_int(text, path text) → int64",
    doc: "As `json_get`, and null unless the value is a whole number that fits 64 bits.",
    example: (r#"json_get_int('{"a":[1,2,3]}', 'a[2]')"#, "3"),
    parameters: PARAMETERS,
    returns: |_| DataType::Int64,
    check: check_path,
    evaluate: |arguments| {
        let values = values(arguments, |raw| raw.parse::<i64>().ok())?;
        Ok(Arc::new(Int64Array::from(values)))
    },
};

/// `json_get_float(text, path)`.
pub(super) static JSON_GET_FLOAT: Function = Function {
    name: "json_get_float",
    signature: "json_get_float(text, path text) → float64",
    doc: "As `json_get`, and null unless the value is a number.",
    example: (r#"json_get_float('{"a":1.5}', 'a')"#, "1.5"),
    parameters: PARAMETERS,
    returns: |_| DataType::Float64,
    check: check_path,
    evaluate: |arguments| {
        // Only JSON's own numbers: Rust would also read `inf` and `nan`, but those are no JSON.
        let values = values(arguments, |raw| serde_json::from_str::<f64>(raw).ok())?;
        Ok(Arc::new(Float64Array::from(values)))
    },
};

/// `json_get_bool(text, path)`.
pub(super) static JSON_GET_BOOL: Function = Function {
    name: "json_get_bool",
    signature: "json_get_bool(text, path text) → boolean",
    doc: "As `json_get`, and null unless the value is `true` or `false`.",
    example: (r#"json_get_bool('{"a":true}', 'a')"#, "true"),
    parameters: PARAMETERS,
    returns: |_| DataType::Boolean,
    check: check_path,
    evaluate: |arguments| {
        let values = values(arguments, |raw| raw.parse::<bool>().ok())?;
        Ok(Arc::new(BooleanArray::from(values)))
    },
};

fn check_path(constants: &Constants<'_>) -> Result<(), String> {
    constants.require(1, "the path")?;
    constants.text(1).map_or(Ok(()), |path| parse_path(path).map(|_| ()))
}

fn string(raw: &str) -> Option<String> {
    serde_json::from_str(raw).ok()
}

fn text_column(arguments: &Arguments<'_>, convert: fn(&str) -> Option<String>) -> Result<ArrayRef> {
    let mut column = StringViewBuilder::with_capacity(arguments.rows);
    values(arguments, convert)?.into_iter().for_each(|value| column.append_option(value));
    Ok(Arc::new(column.finish()))
}

fn values<T>(arguments: &Arguments<'_>, convert: impl Fn(&str) -> Option<T>) -> Result<Vec<Option<T>>> {
    let texts = arguments.text(0)?;
    let Some(path) = arguments.text(1)?.get(0) else {
        return Ok((0..arguments.rows).map(|_| None).collect());
    };
    let path = parse_path(path).map_err(failed)?;
    let value = |row| find(texts.get(row)?, &path).filter(|raw| *raw != "null").and_then(&convert);
    Ok((0..arguments.rows).map(value).collect())
}

/// One step of a path.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

fn parse_path(path: &str) -> Result<Vec<Step>, String> {
    let bad = |what: &str| format!("`{path}` is not a path such as `a.b[0]`: {what}");
    let mut rest = path.strip_prefix('$').unwrap_or(path);
    let mut steps = Vec::new();
    while !rest.is_empty() {
        if steps.len() == PATH_LIMIT {
            return Err(bad("it is too long"));
        }
        if let Some(inner) = rest.strip_prefix('[') {
            let quote = inner.chars().next().filter(|c| matches!(c, '"' | '\''));
            let (step, after) = match quote {
                Some(quote) => {
                    let (key, after) = inner[1..].split_once(quote).ok_or_else(|| bad("a quote is open"))?;
                    (Step::Key(key.into()), after.strip_prefix(']').ok_or_else(|| bad("`]` is missing"))?)
                }
                None => {
                    let (index, after) = inner.split_once(']').ok_or_else(|| bad("`]` is missing"))?;
                    let index = index.trim().parse().map_err(|_| bad("an index is not a number"))?;
                    (Step::Index(index), after)
                }
            };
            steps.push(step);
            rest = after;
            continue;
        }
        let key = match rest.strip_prefix('.') {
            Some(after) => after,
            None if steps.is_empty() && !path.starts_with('$') => rest,
            None => return Err(bad("`.` or `[` is missing")),
        };
        let end = key.find(['.', '[']).unwrap_or(key.len());
        if end == 0 {
            return Err(bad("a key is empty"));
        }
        steps.push(Step::Key(key[..end].into()));
        rest = &key[end..];
    }
    Ok(steps)
}

/// The value at `path` as it is written; `None` if there is none or the text is not JSON.
fn find<'a>(text: &'a str, path: &[Step]) -> Option<&'a str> {
    let mut document = serde_json::Deserializer::from_str(text);
    let found = Seek(path).deserialize(&mut document).ok()?;
    document.end().ok()?;
    found.map(RawValue::get)
}

/// Follows a path. Recursion is bounded by [`PATH_LIMIT`]: what is passed over is read without recursion.
struct Seek<'p>(&'p [Step]);

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = Option<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        if self.0.is_empty() {
            return serde::Deserialize::deserialize(deserializer).map(Some);
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        let wanted = match &self.0[0] {
            Step::Key(key) => Some(key.as_str()),
            Step::Index(_) => None,
        };
        while let Some(matches) = map.next_key_seed(KeyIs(wanted))? {
            if matches {
                found = map.next_value_seed(Self(&self.0[1..]))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        if let Step::Index(index) = self.0[0] {
            for _ in 0..index {
                if items.next_element::<IgnoredAny>()?.is_none() {
                    return Ok(None);
                }
            }
            found = items.next_element_seed(Self(&self.0[1..]))?.flatten();
        }
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(found)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// Whether a key is the wanted one, without keeping it.
struct KeyIs<'p>(Option<&'p str>);

impl<'de> DeserializeSeed<'de> for KeyIs<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeyIs<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<bool, E> {
        Ok(self.0 == Some(key))
    }
}

#[cfg(test)]
mod tests {
    use crate::functions::testing::{compile_error, eval_texts};

    fn get(function: &str, json: &str, path: &str) -> String {
        eval_texts(&format!("{function}(text, '{}')", path.replace('\'', "''")), &[json]).remove(0)
    }

    #[test]
    fn values_by_path() {
        let json =
            r#"{"a":{"b":[1,{"c":"x\ny"}],"n":null,"t":true,"f":1e3},"odd.key":2,"é":"ü","d":1,"d":{"e":2}}"#;
        for (path, expected) in [
            ("a.b[0]", "1"),
            ("$.a.b[1].c", "x\ny"),
            ("a.b[1]", r#"{"c":"x\ny"}"#),
            ("a.b[2]", "null"),
            ("a.b.c", "null"),
            ("a[0]", "null"),
            ("a.n", "null"),
            ("a.n.x", "null"),
            ("a.t", "true"),
            ("a.f", "1e3"),
            (r#"["odd.key"]"#, "2"),
            ("$['odd.key']", "2"),
            ("é", "ü"),
            ("d.e", "2"),
            ("missing", "null"),
        ] {
            assert_eq!(get("json_get", json, path), expected, "{path}");
        }
        assert_eq!(get("json_get", "[1,2]", "$[1]"), "2");
        assert_eq!(get("json_get", "7", "$"), "7");
    }

    #[test]
    fn typed_values() {
        let json = r#"{"s":"7","i":7,"big":9223372036854775808,"f":7.5,"b":false,"huge":1e999}"#;
        for (function, path, expected) in [
            ("json_get_str", "s", "7"),
            ("json_get_str", "i", "null"),
            ("json_get_int", "i", "7"),
            ("json_get_int", "s", "null"),
            ("json_get_int", "f", "null"),
            ("json_get_int", "big", "null"),
            ("json_get_float", "i", "7.0"),
            ("json_get_float", "f", "7.5"),
            ("json_get_float", "s", "null"),
            ("json_get_float", "huge", "null"),
            ("json_get_bool", "b", "false"),
            ("json_get_bool", "i", "null"),
        ] {
            assert_eq!(get(function, json, path), expected, "{function} {path}");
        }
    }

    #[test]
    fn what_is_not_json_is_null() {
        for json in [r#"{"a":1"#, r#"{"a":1} x"#, r#"{"a":1,"b":tru}"#, "", "nonsense", r#"{"a":01}"#] {
            assert_eq!(get("json_get", json, "a"), "null", "{json}");
        }
        assert_eq!(get("json_get", r#"{"a":"\ud800"}"#, "a"), "null", "a lone surrogate");
    }

    #[test]
    fn deep_nesting_is_passed_over() {
        let deep = format!(r#"{{"x":{}1{},"a":2}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(get("json_get", &deep, "a"), "2");
        assert_eq!(get("json_get", &deep, "x[0][0][0][1]"), "null");
        assert_eq!(get("json_get", &"[".repeat(100_000), "a"), "null");
    }

    #[test]
    fn a_bad_path_does_not_compile() {
        for path in ["a..b", "a[", "a[x]", "$a", "a[\"b]", "a]b[", "."] {
            let error = compile_error(&format!("json_get(text, '{path}')"));
            assert!(error.message.contains("is not a path"), "{path}: {error}");
        }
        assert!(
            compile_error(&format!("json_get(text, '{}')", "[0]".repeat(65))).message.contains("too long")
        );
    }
}
