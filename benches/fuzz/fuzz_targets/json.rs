//! Any bytes, split into lines, through the `json` decoder: never a panic, every message a row or a reject, and
//! accepted if and only if serde_json accepts it, but for the documented differences. The fast path and the general
//! path must agree on every message and every value.

#![no_main]

use std::fmt;

use arrow::array::Array;
use arrow::buffer::Buffer;
use libfuzzer_sys::fuzz_target;
use logdrive_connectors::decoder::{Decoded, DecoderConfig, Demand};
use logdrive_connectors::decoders::Json;
use logdrive_connectors::document::Documents;
use logdrive_fuzz::chunk;
use logdrive_schemas::{Chunk, FieldType, RowSchema};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// The fields, and the same once more in the nested object `k`.
fn demand(fields: &[(&str, &str)]) -> Demand {
    let mut fields: Vec<_> =
        fields.iter().map(|(name, t)| ((*name).to_owned(), FieldType::parse(t).expect("a type"))).collect();
    if !fields.is_empty() {
        fields.push(("k".to_owned(), FieldType::Object(fields.clone())));
    }
    Demand { schema: RowSchema::of_fields(fields), validate: true }
}

/// Splits at line breaks, but leaves nothing between the messages.
fn adjoining(data: &[u8]) -> Chunk {
    let mut chunk = chunk(data);
    chunk.data = Buffer::from_vec(data.iter().copied().filter(|byte| *byte != b'\n').collect::<Vec<_>>());
    for (idx, message) in chunk.messages.iter_mut().enumerate() {
        message.start -= idx as u32;
    }
    chunk
}

/// Decodes twice, so that the second time the keys are known, with both paths.
fn decode(demand: &Demand, chunk: &Chunk) -> Decoded {
    let mut fast = Json {}.build(demand).expect("every schema fits JSON");
    let expect = Json::general(demand).decode(chunk);
    same(&fast.decode(chunk), &expect);
    same(&fast.decode(chunk), &expect);
    expect
}

fn same(found: &Decoded, expect: &Decoded) {
    for (found, expect) in [(&found.rows, &expect.rows), (&found.rejects, &expect.rejects)] {
        assert_eq!(found.is_some(), expect.is_some());
        let (Some(found), Some(expect)) = (found, expect) else { continue };
        assert_eq!(found.rows(), expect.rows());
        assert_eq!(found.offsets(), expect.offsets());
        assert_eq!(found.original(), expect.original());
        for column in found.rows().columns() {
            column.to_data().validate_full().expect("a valid array");
        }
    }
}

/// An object with any members, duplicates included.
struct AnyObject;

impl<'de> Deserialize<'de> for AnyObject {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = AnyObject;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<AnyObject, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(AnyObject)
            }
        }
        from.deserialize_map(Members)
    }
}

fuzz_target!(|data: &[u8]| {
    let chunk = chunk(data);

    // Typed fields: conservation, and arrays that Arrow finds valid.
    let fields = [
        ("a", "string"),
        ("b", "int64"),
        ("c", "float64"),
        ("d", "decimal(10,2)"),
        ("e", "timestamp"),
        ("f", "geo_point"),
        ("g", "list<string>"),
        ("h", "ip"),
        ("i", "boolean"),
        ("j", "list<list<int64>>"),
    ];
    let decoded = decode(&demand(&fields), &chunk);
    decode(&demand(&fields), &adjoining(data));
    let n_rows = decoded.rows.as_ref().map_or(0, |batch| batch.num_rows());
    let n_rejects = decoded.rejects.as_ref().map_or(0, |batch| batch.num_rows());
    assert_eq!(n_rows + n_rejects, chunk.messages.len());
    if let Some(batch) = decoded.rows {
        for column in batch.rows().columns() {
            column.to_data().validate_full().expect("a valid array");
        }
        let documents = Documents::new(&batch);
        let mut out = Vec::new();
        for idx in 0..batch.num_rows() {
            out.clear();
            documents.write(idx, &mut out);
            assert!(serde_json::from_slice::<AnyObject>(&out).is_ok(), "a document is an object");
        }
    }

    // No fields: the same messages as serde_json.
    let decoded = decode(&demand(&[]), &chunk);
    let accepted: Vec<u64> = decoded.rows.map(|batch| batch.offsets().values().to_vec()).unwrap_or_default();
    let reasons: Vec<String> = decoded
        .rejects
        .map(|batch| {
            let column = batch.rows().column(0);
            let reasons = column.as_any().downcast_ref::<arrow::array::StringViewArray>().expect("reasons are text");
            reasons.iter().flatten().map(str::to_owned).collect()
        })
        .unwrap_or_default();
    let mut reasons = reasons.into_iter();
    for idx in 0..chunk.messages.len() {
        let message = chunk.message(idx);
        let message = message.strip_prefix("\u{feff}".as_bytes()).unwrap_or(message);
        let theirs = std::str::from_utf8(message).is_ok() && serde_json::from_slice::<AnyObject>(message).is_ok();
        if accepted.contains(&(idx as u64)) {
            assert!(theirs, "accepted, but serde_json does not");
        } else {
            let reason = reasons.next().expect("a reason for every reject");
            // Half a surrogate pair in what it ignores, and up to 128 levels, are fine with serde_json.
            let documented = reason.starts_with("too_deep") || reason.contains("surrogate");
            assert!(!theirs || documented, "serde_json accepts, but: {reason}");
        }
    }
});
