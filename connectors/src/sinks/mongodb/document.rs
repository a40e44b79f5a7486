//! Rows as BSON documents: what the row is as JSON, with the types of its columns.

use arrow::array::{Array, AsArray, TimestampMicrosecondArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Decimal128Type, TimeUnit, TimestampMicrosecondType};
use logdrive_schemas::Batch;
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Bson, DateTime, Decimal128, Document, RawDocumentBuf};
use serde_json::{Map, Number, Value as Json};

use crate::document::Documents;

/// The most that MongoDB takes as one document.
const DOCUMENT_BYTES_MAX: usize = 16 << 20;

/// Why a row cannot be a document.
type Wrong = String;

/// Rows of one batch as documents.
pub(super) struct Maker<'a> {
    batch: &'a Batch,
    documents: Documents<'a>,
    text: Vec<u8>,
}

impl<'a> Maker<'a> {
    pub(super) fn new(batch: &'a Batch) -> Self {
        Self { batch, documents: Documents::new(batch), text: Vec::new() }
    }

    /// The document of row `row`. One without a time in `time_field` gets the time of its arrival.
    pub(super) fn make(&mut self, row: usize, time_field: Option<&str>) -> Result<RawDocumentBuf, Wrong> {
        self.text.clear();
        self.documents.write(row, &mut self.text);
        let members: Map<String, Json> = serde_json::from_slice(&self.text)
            .map_err(|_| "mongodb_no_object: the row is no JSON object".to_owned())?;
        if members.contains_key("_id") {
            let reason = "mongodb_id: the document has an `_id` of its own; rename it with a step";
            return Err(reason.to_owned());
        }
        let mut document = Document::new();
        document.insert("_id", self.batch.id(row));
        for (key, member) in members {
            let column = self.batch.rows().column_by_name(&key);
            document.insert(key, value(member, column.map(|column| (column.as_ref(), row))));
        }
        if let Some(field) =
            time_field.filter(|field| !matches!(document.get(*field), Some(value) if *value != Bson::Null))
        {
            let arrival = self.batch.origin().received_at.div_euclid(1000);
            document.insert(field, DateTime::from_millis(arrival));
        }
        let raw = RawDocumentBuf::try_from(&document)
            .map_err(|error| format!("mongodb_key: the document cannot be BSON: {error}"))?;
        if DOCUMENT_BYTES_MAX < raw.as_bytes().len() {
            return Err("mongodb_too_large: no document may be larger than 16 MiB".to_owned());
        }
        Ok(raw)
    }
}

/// A value of the document, of the type that its column has, if there is one.
fn value(json: Json, column: Option<(&dyn Array, usize)>) -> Bson {
    let column = column.filter(|(array, row)| *row < array.len() && array.is_valid(*row));
    match (json, column) {
        (Json::Object(members), column) => {
            let fields = column.and_then(|(array, row)| Some((array.as_struct_opt()?, row)));
            let member = |(key, member): (String, Json)| {
                let of = fields.and_then(|(fields, row)| Some((fields.column_by_name(&key)?.as_ref(), row)));
                let member = value(member, of);
                (key, member)
            };
            Bson::Document(members.into_iter().map(member).collect())
        }
        (Json::Array(items), column) => {
            let list = column.and_then(|(array, row)| Some((array.as_list_opt::<i32>()?, row)));
            let item = |(n, item): (usize, Json)| {
                let of = list.and_then(|(list, row)| {
                    let at = usize::try_from(list.value_offsets()[row]).ok()? + n;
                    (n < list.value_length(row) as usize).then(|| (list.values().as_ref(), at))
                });
                value(item, of)
            };
            Bson::Array(items.into_iter().enumerate().map(item).collect())
        }
        (Json::Null, _) => Bson::Null,
        (json, Some((array, row))) => typed(array, row).unwrap_or_else(|| plain(json)),
        (json, None) => plain(json),
    }
}

/// A value whose type JSON does not have.
fn typed(array: &dyn Array, row: usize) -> Option<Bson> {
    match array.data_type() {
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            let micros = array.as_primitive::<TimestampMicrosecondType>().value(row);
            Some(Bson::DateTime(DateTime::from_millis(micros.div_euclid(1000))))
        }
        DataType::Timestamp(_, zone) => {
            let to = DataType::Timestamp(TimeUnit::Microsecond, zone.clone());
            let array = cast(&array.slice(row, 1), &to).ok()?;
            let array: &TimestampMicrosecondArray = array.as_primitive();
            array.is_valid(0).then(|| Bson::DateTime(DateTime::from_millis(array.value(0).div_euclid(1000))))
        }
        DataType::Decimal128(_, _) => {
            let text = array.as_primitive::<Decimal128Type>().value_as_string(row);
            text.parse::<Decimal128>().ok().map(Bson::Decimal128)
        }
        DataType::Binary | DataType::BinaryView | DataType::LargeBinary | DataType::FixedSizeBinary(_) => {
            let array = cast(&array.slice(row, 1), &DataType::BinaryView).ok()?;
            let bytes = array.as_binary_view().value(0).to_vec();
            Some(Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes }))
        }
        _ => None,
    }
}

fn plain(json: Json) -> Bson {
    match json {
        Json::Bool(value) => Bson::Boolean(value),
        Json::Number(number) => self::number(&number),
        Json::String(text) => Bson::String(text),
        // These were taken apart before.
        Json::Null | Json::Array(_) | Json::Object(_) => Bson::Null,
    }
}

/// Whole numbers as such, as far as BSON has them.
fn number(number: &Number) -> Bson {
    match (number.as_i64(), number.as_u64()) {
        (Some(n), _) => Bson::Int64(n),
        (None, Some(n)) => n.to_string().parse().map_or(Bson::Null, Bson::Decimal128),
        (None, None) => number.as_f64().map_or(Bson::Null, Bson::Double),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::fixtures::events;

    fn made(text: &str) -> Result<Document, Wrong> {
        let batch = events(&[(86_400, Some("a"), text)]);
        Maker::new(&batch).make(0, None).map(|raw| Document::try_from(raw).unwrap())
    }

    #[test]
    fn documents_have_their_identity_and_the_types_of_columns() {
        let document = made(
            r#"{"@timestamp":"1970-01-02T00:00:00Z","tenant":"a","n":1,"f":0.5,"big":18446744073709551615,"o":{"t":"1970-01-01T00:00:00Z","l":[null,true]}}"#,
        )
        .unwrap();
        assert_eq!(document.get_str("_id").unwrap(), "shop-0000000000000007-15180");
        assert_eq!(document.get_datetime("@timestamp").unwrap().timestamp_millis(), 86_400_000);
        assert_eq!((document.get_i64("n").unwrap(), document.get_f64("f").unwrap()), (1, 0.5));
        assert_eq!(document.get("big").unwrap().to_string(), "18446744073709551615");
        let inner = document.get_document("o").unwrap();
        assert_eq!(inner.get_str("t").unwrap(), "1970-01-01T00:00:00Z", "no column says that it is a time");
        assert_eq!(inner.get_array("l").unwrap()[..], [Bson::Null, Bson::Boolean(true)]);
    }

    #[test]
    fn what_cannot_be_a_document_says_why() {
        for (text, code) in [
            (r#"[1]"#, "mongodb_no_object"),
            (r#"{"_id":1}"#, "mongodb_id"),
            ("{\"a\\u0000b\":1}", "mongodb_key"),
            (&format!("{{\"x\":\"{}\"}}", "x".repeat(DOCUMENT_BYTES_MAX)), "mongodb_too_large"),
        ] {
            assert!(made(text).unwrap_err().starts_with(code), "{code}");
        }
    }

    #[test]
    fn a_row_without_a_time_gets_that_of_its_arrival() {
        let batch = events(&[(1, None, r#"{"at":null}"#)]);
        let document = Document::try_from(Maker::new(&batch).make(0, Some("at")).unwrap()).unwrap();
        assert_eq!(document.get_datetime("at").unwrap().timestamp_millis(), 86_400_000);
    }
}
