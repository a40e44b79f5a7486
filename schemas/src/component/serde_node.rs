//! Reads a [`Node`] with serde, keeping for every error the place in the file that it is about.

use std::fmt;

use serde::Deserializer;
use serde::de::{self, DeserializeSeed, IntoDeserializer, Visitor};

use super::error::{ConfigError, Span};
use super::node::{Key, Node, NodeKind, Scalar};

/// What serde found wrong, and where.
#[derive(Debug)]
pub(super) struct NodeError {
    code: &'static str,
    message: String,
    help: Option<String>,
    span: Option<Span>,
    /// Set if the error is an unknown key: the place of that key.
    pub(super) unknown_key: Option<Span>,
    name: Option<(String, &'static [&'static str])>,
}

impl NodeError {
    fn new(code: &'static str, message: String) -> Self {
        Self { code, message, help: None, span: None, unknown_key: None, name: None }
    }

    fn at(mut self, span: Span) -> Self {
        self.span.get_or_insert(span);
        self
    }

    pub(super) fn into_config_error(self, fallback: Span, what: &str) -> ConfigError {
        let span = self.span.unwrap_or(fallback);
        if let Some((name, valid)) = self.name {
            let kind = if self.unknown_key.is_some() { "key" } else { "value" };
            return ConfigError::unknown_name(self.code, span, kind, &name, &format!("`{what}`"), valid);
        }
        ConfigError {
            code: self.code,
            span,
            message: format!("{} in `{what}`", self.message),
            help: self.help,
        }
    }
}

impl fmt::Display for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for NodeError {}

impl de::Error for NodeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new("config::invalid_value", message.to_string())
    }

    fn invalid_type(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new("config::wrong_type", format!("expected {expected}, found {found}"))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new("config::missing_key", format!("missing key `{field}`"))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let mut error = Self::new("config::unknown_key", String::new());
        error.unknown_key = Some(Span::default());
        error.name = Some((field.into(), expected));
        error
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let mut error = Self::new("config::unknown_value", String::new());
        error.name = Some((variant.into(), expected));
        error
    }
}

/// A serde deserializer over a node.
pub(super) struct NodeDeserializer<'a>(&'a Node);

impl<'a> NodeDeserializer<'a> {
    pub(super) fn new(node: &'a Node) -> Self {
        Self(node)
    }

    fn scalar(&self, expected: &str) -> Result<&'a Scalar, NodeError> {
        match &self.0.kind {
            NodeKind::Scalar(scalar) => Ok(scalar),
            _ => Err(self.wrong(expected)),
        }
    }

    fn wrong(&self, expected: &str) -> NodeError {
        let message = format!("expected {expected}, found {}", self.0.describe());
        NodeError::new("config::wrong_type", message).at(self.0.span)
    }

    fn number<T: std::str::FromStr>(&self, expected: &str) -> Result<T, NodeError> {
        self.scalar(expected)?.text.parse().map_err(|_| self.wrong(expected))
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $expected:literal;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
            let span = self.0.span;
            visitor.$visit(self.number($expected)?).map_err(|e: NodeError| e.at(span))
        }
    )*};
}

impl<'de> Deserializer<'de> for NodeDeserializer<'_> {
    type Error = NodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        let span = self.0.span;
        let result = match &self.0.kind {
            NodeKind::Map(_) => return self.deserialize_map(visitor),
            NodeKind::Seq(_) => return self.deserialize_seq(visitor),
            NodeKind::Scalar(s) if s.quoted => visitor.visit_str(&s.text),
            NodeKind::Scalar(_) if self.0.is_null() => visitor.visit_unit(),
            NodeKind::Scalar(s) => match s.text.as_str() {
                "true" => visitor.visit_bool(true),
                "false" => visitor.visit_bool(false),
                text => match (text.parse::<u64>(), text.parse::<i64>(), text.parse::<f64>()) {
                    (Ok(n), ..) => visitor.visit_u64(n),
                    (_, Ok(n), _) => visitor.visit_i64(n),
                    (.., Ok(n)) => visitor.visit_f64(n),
                    _ => visitor.visit_str(text),
                },
            },
        };
        result.map_err(|e: NodeError| e.at(span))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        match self.scalar("true or false")?.text.as_str() {
            "true" => visitor.visit_bool(true),
            "false" => visitor.visit_bool(false),
            _ => Err(self.wrong("true or false")),
        }
    }

    numbers! {
        deserialize_i8 visit_i8 "a whole number";
        deserialize_i16 visit_i16 "a whole number";
        deserialize_i32 visit_i32 "a whole number";
        deserialize_i64 visit_i64 "a whole number";
        deserialize_u8 visit_u8 "a whole number, not negative";
        deserialize_u16 visit_u16 "a whole number, not negative";
        deserialize_u32 visit_u32 "a whole number, not negative";
        deserialize_u64 visit_u64 "a whole number, not negative";
        deserialize_f32 visit_f32 "a number";
        deserialize_f64 visit_f64 "a number";
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        let span = self.0.span;
        visitor.visit_str(&self.scalar("a string")?.text).map_err(|e: NodeError| e.at(span))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        if self.0.is_null() { visitor.visit_unit() } else { Err(self.wrong("nothing")) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, NodeError> {
        let span = self.0.span;
        visitor.visit_newtype_struct(self).map_err(|e: NodeError| e.at(span))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        let NodeKind::Seq(items) = &self.0.kind else { return Err(self.wrong("a list")) };
        visitor.visit_seq(Items(items.iter())).map_err(|e: NodeError| e.at(self.0.span))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        // A component without keys may be written as nothing at all.
        let entries: &[(Key, Node)] = match &self.0.kind {
            NodeKind::Map(entries) => entries,
            _ if self.0.is_null() => &[],
            _ => return Err(self.wrong("a map")),
        };
        let entries = Entries { entries: entries.iter(), value: None };
        visitor.visit_map(entries).map_err(|e: NodeError| e.at(self.0.span))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, NodeError> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, NodeError> {
        let span = self.0.span;
        let result = match &self.0.kind {
            NodeKind::Scalar(s) => visitor.visit_enum(s.text.as_str().into_deserializer()),
            NodeKind::Map(entries) if entries.len() == 1 => {
                visitor.visit_enum(de::value::MapAccessDeserializer::new(Entries {
                    entries: entries.iter(),
                    value: None,
                }))
            }
            _ => return Err(self.wrong("a name, or a map with one key")),
        };
        result.map_err(|e: NodeError| e.at(span))
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! { bytes byte_buf i128 u128 tuple tuple_struct unit_struct }
}

struct Items<'a>(std::slice::Iter<'a, Node>);

impl<'de> de::SeqAccess<'de> for Items<'_> {
    type Error = NodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, NodeError> {
        self.0
            .next()
            .map(|node| seed.deserialize(NodeDeserializer(node)).map_err(|e| e.at(node.span)))
            .transpose()
    }
}

struct Entries<'a> {
    entries: std::slice::Iter<'a, (Key, Node)>,
    value: Option<&'a Node>,
}

impl<'de> de::MapAccess<'de> for Entries<'_> {
    type Error = NodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, NodeError> {
        let Some((key, value)) = self.entries.next() else { return Ok(None) };
        self.value = Some(value);
        let result = seed.deserialize(key.name.as_str().into_deserializer());
        result.map(Some).map_err(|mut error: NodeError| {
            if error.unknown_key.is_some() {
                error.unknown_key = Some(key.span);
            }
            error.at(key.span)
        })
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, NodeError> {
        let node = self.value.take().expect("serde asks for a value after its key");
        seed.deserialize(NodeDeserializer(node)).map_err(|e| e.at(node.span))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde::Deserialize;

    use super::super::{Limits, parse_as};
    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Config {
        listen: String,
        #[serde(default)]
        sockets: u32,
        #[serde(default)]
        tls: Option<Tls>,
        #[serde(default, deserialize_with = "crate::component::duration")]
        idle: Duration,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Tls {
        cert: String,
    }

    fn check(yaml: &str) -> Vec<(&'static str, String, Option<String>)> {
        let node = Node::parse(yaml.as_bytes(), Limits::default()).unwrap();
        let mut errors = Vec::new();
        let config = parse_as::<Config>(&node, "tcp", &mut errors);
        assert_eq!(config.is_some(), errors.is_empty());
        errors
            .into_iter()
            .map(|e| (e.code, yaml[e.span.start..e.span.start + e.span.len].to_owned(), e.help))
            .collect()
    }

    #[test]
    fn values_are_read() {
        assert_eq!(check("{listen: 8080, sockets: 2, tls: {cert: a.pem}, idle: 5s}"), []);
    }

    #[test]
    fn every_unknown_key_is_named_with_its_place() {
        let errors = check("{listen: x, scokets: 1, tls: {cert: a, kye: b}}");
        assert_eq!(errors[0].0, "config::unknown_key");
        assert_eq!(errors[0].1, "scokets");
        assert_eq!(errors[0].2.as_deref(), Some("did you mean `sockets`?"));
        assert_eq!(errors[1].1, "kye");
    }

    #[test]
    fn a_wrong_value_is_named_with_its_place() {
        assert_eq!(check("{listen: x, sockets: many}")[0].1, "many");
        assert_eq!(check("{listen: x, idle: soon}")[0].1, "soon");
        assert_eq!(check("{sockets: 1}")[0].0, "config::missing_key");
    }
}
