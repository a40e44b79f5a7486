//! What rows become in a bulk body, hostile ones above all.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    ArrayRef, BinaryViewArray, RecordBatch, RecordBatchOptions, StringViewArray, UInt64Array,
};
use arrow::datatypes::{DataType, Field, Schema};
use logdrive_schemas::component::Component;
use logdrive_schemas::{Batch, Layout, Origin, Partition};
use proptest::prelude::*;
use serde_json::{Map, Value};

use super::bulk::{Action, Bulk};
use super::index::IndexPattern;
use super::{Elasticsearch, template};
use crate::sink::{Guarantee, Reads, SinkConfig as _};

fn batch(source: &str, documents: &[Vec<u8>], tenants: &[Option<String>]) -> Batch {
    let schema = Arc::new(Schema::new(vec![Field::new("tenant", DataType::Utf8View, true)]));
    let tenants: ArrayRef = Arc::new(StringViewArray::from_iter(tenants.iter().map(Option::as_ref)));
    let options = RecordBatchOptions::new().with_row_count(Some(documents.len()));
    let rows = RecordBatch::try_new_with_options(schema, vec![tenants], &options).unwrap();
    let origin = Origin {
        source: source.into(),
        partition: Partition(7),
        ordered: true,
        received_at: 1_795_258_800_000_000,
        peer: None,
    };
    let offsets = UInt64Array::from_iter_values(0..documents.len() as u64);
    let original = BinaryViewArray::from_iter_values(documents);
    Batch::new(rows, original, offsets, Arc::new(origin), Arc::new(Layout::Original(Vec::new()))).unwrap()
}

fn pattern(text: &str) -> Result<IndexPattern, String> {
    IndexPattern::parse(text, Duration::from_secs(86_400))
}

fn name(text: &str, tenant: Option<&str>) -> String {
    let rows = batch("s", &[b"{}".to_vec()], &[tenant.map(str::to_owned)]);
    let mut name = String::new();
    pattern(text).unwrap().names(&rows).write(0, &mut name);
    name
}

#[test]
fn index_names_are_filled_in() {
    assert_eq!(name("logs", None), "logs");
    assert_eq!(name("logs-%Y.%m.%d", None), "logs-2026.11.21");
    assert_eq!(name("logs-{tenant}-%Y", Some("Shop")), "logs-shop-2026");
    assert_eq!(name("logs-{tenant}", None), "logs-none");
    assert_eq!(name("logs-{missing}", Some("x")), "logs-none");
    assert_eq!(name("{tenant}-logs", Some(".-_+secret")), "secret-logs");
    assert_eq!(name("{tenant}-logs", Some("..")), "none-logs");
    assert_eq!(name("{tenant}", Some("É")), "x");
}

#[test]
fn bad_patterns_are_refused() {
    for bad in ["", "Logs", "a b", "-a", "_a", "+a", "a%M", "a%", "a{", "a{}", "a*", "a/b", &"a".repeat(256)]
    {
        assert!(pattern(bad).is_err(), "{bad}");
    }
    assert!(pattern(&format!("{}%Y", "{c}".repeat(80))).is_err());
}

#[test]
fn patterns_know_their_columns_and_wildcard() {
    let checked = |text: &str| {
        let pattern = pattern(text).unwrap();
        (pattern.columns().join(","), pattern.wildcard(), pattern.prefix().to_owned())
    };
    let expect = |a: &str, b: &str, c: &str| (a.into(), b.into(), c.into());
    assert_eq!(checked("shop-logs-%Y.%m.%d"), expect("@timestamp", "shop-logs-*", "shop-logs"));
    assert_eq!(checked("logs-{tenant}-app"), expect("tenant", "logs-*-app", "logs"));
    assert_eq!(checked("logs"), expect("", "logs", "logs"));
}

#[test]
fn the_template_is_marked_as_ours() {
    let body = template::body("logs-*", false, &super::lifecycle::Attached::Nothing);
    assert_eq!(body["_meta"]["managed_by"], "logdrive");
    assert_eq!(body["index_patterns"][0], "logs-*");
}

#[test]
fn the_promise_depends_on_ids() {
    let config = |more: &str| {
        let text = format!("{{endpoint: [http://a], index: \"l-%Y-{{b}}\", routing: c{more}}}");
        let node = logdrive_schemas::component::Node::parse(text.as_bytes(), Default::default()).unwrap();
        let mut errors = Vec::new();
        let config = logdrive_schemas::component::parse::<Elasticsearch>(&node, &mut errors);
        config.unwrap_or_else(|| panic!("{errors:?}"))
    };
    assert_eq!(config("").guarantee(), Guarantee::ExactlyOnce);
    assert_eq!(config(", id: none").guarantee(), Guarantee::AtLeastOnce);
    assert_eq!(config(", op: index").guarantee(), Guarantee::AtLeastOnce);
    assert_eq!(config(", data_stream: true").guarantee(), Guarantee::AtLeastOnce);
    let columns = ["@timestamp", "b", "c"].map(str::to_owned).to_vec();
    assert_eq!(config("").reads(), Reads::Document(columns));
    let secret = config(", auth: { api_key: t0psecret }");
    assert!(!format!("{secret:?}").contains("t0psecret"));
    assert_eq!(Elasticsearch::NAME, "elasticsearch");
}

#[test]
fn a_body_is_cut_at_its_limit_but_takes_one_row_of_any_size() {
    let documents: Vec<Vec<u8>> = (0..10).map(|n| format!("{{\"n\":{n}}}").into_bytes()).collect();
    let rows = batch("s", &documents, &vec![None; 10]);
    let index = pattern("i").unwrap();
    let action = Action { op: "create", with_id: true, routing: None };
    let mut row = 0;
    let mut n_items = Vec::new();
    while row < 10 {
        let mut bulk = Bulk::default();
        row = bulk.fill(&rows, row, 150, (&index, &action));
        let bulk = bulk.seal();
        let items: Vec<usize> = (0..bulk.len()).collect();
        assert!(bulk.bytes(&items) <= 150);
        n_items.push(bulk.len());
    }
    assert_eq!((n_items.iter().sum::<usize>(), n_items[0]), (10, 2));
    let mut bulk = Bulk::default();
    assert_eq!(bulk.fill(&rows, 3, 1, (&index, &action)), 4);
    assert_eq!(bulk.seal().len(), 1);
}

/// Documents as attackers would write them: line breaks, what looks like operations, what is not UTF-8, no objects.
fn hostile_document() -> impl Strategy<Value = Vec<u8>> {
    let text = "[\u{0}-\u{7f}\u{e9}\u{2028}\u{1F600}]{0,20}";
    let object = proptest::collection::vec((text, text), 0..4).prop_map(|pairs| {
        let map: Map<String, Value> = pairs.into_iter().map(|(k, v)| (k, Value::String(v))).collect();
        Value::Object(map)
    });
    prop_oneof![
        object.clone().prop_map(|v| v.to_string().into_bytes()),
        object.prop_map(|v| serde_json::to_string_pretty(&v).unwrap().into_bytes()),
        Just(b"{}\n{\"delete\":{\"_index\":\"x\",\"_id\":\"1\"}}\n{}".to_vec()),
        Just(b"{\"a\":1}\r\n{\"index\":{}}\r\n".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..40),
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(|rest| [b"\n {".to_vec(), rest].concat()),
    ]
}

proptest! {
    #[test]
    fn every_row_is_one_create_and_nothing_else(
        source in "[\u{0}-\u{7f}\u{e9}]{0,30}",
        rows in proptest::collection::vec((hostile_document(), proptest::option::of("\\PC{0,300}|[\"\\\\\n{}]{0,9}")), 1..20),
    ) {
        let (documents, tenants): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
        let rows = batch(&source, &documents, &tenants);
        let index = pattern("{tenant}-logs-{tenant}-%Y").unwrap();
        let action = Action { op: "create", with_id: true, routing: Some("tenant".into()) };
        let mut bulk = Bulk::default();
        prop_assert_eq!(bulk.fill(&rows, 0, usize::MAX, (&index, &action)), documents.len());
        let unfit = bulk.take_unfit();
        let bulk = bulk.seal();
        let n_items = bulk.len();
        let items: Vec<usize> = (0..n_items).collect();
        let body = bulk.encode(&items, false);
        prop_assert_eq!(n_items + unfit.len(), documents.len());
        let object = |document: &[u8]| document.trim_ascii_start().starts_with(b"{");
        prop_assert!(unfit.iter().all(|(_, r)| !object(&documents[r.idx])));
        let text = std::str::from_utf8(&body).unwrap();
        let lines: Vec<&str> = text.split_terminator('\n').collect();
        prop_assert_eq!(lines.len(), 2 * n_items);
        let fit = (0..documents.len()).filter(|row| !unfit.iter().any(|(_, r)| r.idx == *row));
        for (pair, row) in lines.chunks(2).zip(fit) {
            let line: Map<String, Value> = serde_json::from_str(pair[0]).unwrap();
            prop_assert_eq!(line.keys().collect::<Vec<_>>(), ["create"]);
            prop_assert_eq!(line["create"]["_id"].as_str().unwrap(), rows.id(row));
            let name = line["create"]["_index"].as_str().unwrap();
            prop_assert!(name.len() <= 255 && !name.starts_with(['-', '_', '+', '.']), "{}", name);
            prop_assert!(name.chars().all(|c| !c.is_uppercase() && !"\\/*?\"<>| ,#:".contains(c)), "{}", name);
            prop_assert!(object(pair[1].as_bytes()));
            // What was JSON says the same as before.
            if let Ok(before) = serde_json::from_slice::<Value>(&documents[row]) {
                prop_assert_eq!(serde_json::from_str::<Value>(pair[1]).unwrap(), before);
            }
        }
    }
}
