//! Any body of a `_bulk` request, or of documents: nothing panics, every addition is one document of the body as it
//! came, and the answer is JSON with one item per action.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use logdrive_connectors::sources::http::bulk::{BulkOptions, parse};
use logdrive_connectors::sources::http::documents::split;
use serde_json::Value;

const DOCUMENT_BYTES_MAX: usize = 64;

fuzz_target!(|body: &[u8]| {
    for index in [None, Some("logs")] {
        let options = BulkOptions { index, document_bytes_max: DOCUMENT_BYTES_MAX, full_items: true };
        let Ok(bulk) = parse(BytesMut::from(body), options) else { continue };
        assert_eq!(bulk.data, body);
        let items: Vec<Value> = serde_json::from_slice(&[b"[", &bulk.items[..], b"]"].concat()).expect("JSON");
        assert_eq!(items.len(), bulk.n_items);
        let mut n_taken = 0;
        for item in items.iter().filter_map(Value::as_object) {
            let (operation, result) = item.iter().next().expect("an operation");
            if result["status"] == 201 {
                assert!(matches!(operation.as_str(), "create" | "index"));
                n_taken += 1;
            }
        }
        assert_eq!(n_taken, bulk.messages.len());
        let mut end = 0;
        for message in &bulk.messages {
            let (start, len) = (message.start as usize, message.len as usize);
            assert!(start >= end && len > 0 && len <= DOCUMENT_BYTES_MAX);
            assert!(!body[start..start + len].contains(&b'\n'));
            assert!(start > 0 && body[start - 1] == b'\n');
            end = start + len;
        }
    }
    if let Ok(documents) = split(BytesMut::from(body), DOCUMENT_BYTES_MAX) {
        let mut end = 0;
        for message in &documents.messages {
            let (start, len) = (message.start as usize, message.len as usize);
            assert!(start >= end && len > 0 && len <= DOCUMENT_BYTES_MAX + 1 && start + len <= body.len());
            end = start + len;
        }
    }
});
