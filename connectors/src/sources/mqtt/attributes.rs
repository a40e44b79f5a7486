//! The columns of what is known of a message beside its payload.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanBuilder, Int64Builder, ListBuilder, StringViewBuilder, StructArray, StructBuilder,
};
use arrow::datatypes::{DataType, FieldRef, Fields};
use logdrive_schemas::FieldType;

use super::topics::Topics;
use crate::mqtt::Version;
use crate::mqtt::packet::Publish;

/// The names that `levels` cannot have.
pub(super) const FIXED: &[&str] =
    &["content_type", "duplicate", "levels", "qos", "retain", "topic", "user_properties"];

/// The fields of the column.
#[derive(Clone, Debug)]
pub(super) struct Attributes {
    /// The fields that levels have, if any.
    levels: Vec<String>,
    version: Version,
}

impl Attributes {
    pub(super) fn new(levels: &[String], version: Version) -> Self {
        Self { levels: levels.to_vec(), version }
    }

    /// Names and types, in the order of the columns.
    pub(super) fn fields(&self) -> Vec<(String, FieldType)> {
        let mut fields = vec![("topic".to_owned(), FieldType::String)];
        if self.levels.is_empty() {
            fields.push(("levels".into(), FieldType::List(Box::new(FieldType::String))));
        }
        fields.extend(self.levels.iter().map(|name| (name.clone(), FieldType::String)));
        fields.push(("qos".into(), FieldType::Int64));
        fields.push(("retain".into(), FieldType::Boolean));
        fields.push(("duplicate".into(), FieldType::Boolean));
        if self.version == Version::V5 {
            let property = FieldType::Object(vec![
                ("name".into(), FieldType::String),
                ("value".into(), FieldType::String),
            ]);
            fields.push(("content_type".into(), FieldType::String));
            fields.push(("user_properties".into(), FieldType::List(Box::new(property))));
        }
        fields
    }

    /// One row per message.
    pub(super) fn rows(&self, messages: &[Publish], topics: &Topics) -> StructArray {
        let names: Vec<_> = messages.iter().map(|m| String::from_utf8_lossy(&m.topic)).collect();
        let levels: Vec<_> = names.iter().map(|name| topics.levels(name)).collect();
        let mut columns: Vec<ArrayRef> = vec![text(names.iter().map(|name| Some(&**name)))];
        if self.levels.is_empty() {
            let mut list = ListBuilder::new(StringViewBuilder::new());
            for levels in &levels {
                levels.iter().for_each(|level| list.values().append_value(level));
                list.append(true);
            }
            columns.push(Arc::new(list.finish()));
        }
        for idx in 0..self.levels.len() {
            columns.push(text(levels.iter().map(|levels| levels.get(idx).copied())));
        }
        let (mut qos, mut retain, mut dup) =
            (Int64Builder::new(), BooleanBuilder::new(), BooleanBuilder::new());
        for message in messages {
            qos.append_value(message.qos as i64);
            retain.append_value(message.retain);
            dup.append_value(message.dup);
        }
        columns.push(Arc::new(qos.finish()));
        columns.push(Arc::new(retain.finish()));
        columns.push(Arc::new(dup.finish()));
        let fields: Fields = self.fields().iter().map(|(name, t)| t.field(name)).collect();
        if self.version == Version::V5 {
            columns.push(text(messages.iter().map(|m| m.content_type.as_deref())));
            columns.extend(fields.last().and_then(|field| user_properties(messages, field)));
        }
        StructArray::new(fields, columns, None)
    }
}

fn text<'a>(values: impl Iterator<Item = Option<&'a str>>) -> ArrayRef {
    let mut column = StringViewBuilder::new();
    values.for_each(|value| column.append_option(value));
    Arc::new(column.finish())
}

/// `None` only if `field` is no list of objects, which it is.
fn user_properties(messages: &[Publish], field: &FieldRef) -> Option<ArrayRef> {
    let DataType::List(item) = field.data_type() else { return None };
    let DataType::Struct(fields) = item.data_type() else { return None };
    let mut list = ListBuilder::new(StructBuilder::from_fields(fields.clone(), messages.len()));
    for message in messages {
        for (name, value) in &message.user_properties {
            let property = list.values();
            property.field_builder::<StringViewBuilder>(0)?.append_value(name);
            property.field_builder::<StringViewBuilder>(1)?.append_value(value);
            property.append(true);
        }
        list.append(!message.user_properties.is_empty());
    }
    Some(Arc::new(list.finish()))
}

#[cfg(test)]
mod tests {
    use arrow::array::Array as _;
    use arrow::util::display::array_value_to_string;

    use super::super::topics::Filter;
    use super::*;
    use crate::mqtt::Qos;

    #[test]
    fn columns_have_the_types_that_the_plan_was_told() {
        let topics = Topics::new(vec![Filter::try_from("a/+/#".to_owned()).unwrap()], Qos::AtLeastOnce);
        let message = |topic: &'static str, properties: &[(&str, &str)]| Publish {
            topic: topic.into(),
            retain: true,
            user_properties: properties.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            ..Publish::default()
        };
        let messages = [message("a/1/x/y", &[("k", "v"), ("k", "w")]), message("a/2", &[])];
        for (names, expected) in [
            (
                vec![],
                "{topic: a/1/x/y, levels: [1, x/y], qos: 1, retain: true, duplicate: false, content_type: , user_properties: [{name: k, value: v}, {name: k, value: w}]}",
            ),
            (
                vec!["site".to_owned()],
                "{topic: a/1/x/y, site: 1, qos: 1, retain: true, duplicate: false, content_type: , user_properties: [{name: k, value: v}, {name: k, value: w}]}",
            ),
        ] {
            let attributes = Attributes::new(&names, Version::V5);
            let rows = attributes.rows(&messages, &topics);
            let planned = FieldType::Object(attributes.fields()).arrow();
            assert_eq!(*rows.data_type(), planned);
            assert_eq!(array_value_to_string(&rows, 0).unwrap(), expected);
            assert_eq!(rows.len(), 2);
        }
        let old = Attributes::new(&[], Version::V311);
        assert_eq!(*old.rows(&messages, &topics).data_type(), FieldType::Object(old.fields()).arrow());
    }
}
