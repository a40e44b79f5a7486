//! What the fuzz targets share.

use arrow::array::Array;
use arrow::buffer::Buffer;
use logdrive_connectors::DECODERS;
use logdrive_connectors::decoder::{Decoder, Demand};
use logdrive_connectors::document::Documents;
use logdrive_connectors::sources::net::lines::Group;
use logdrive_schemas::component::{Limits, Node};
use logdrive_schemas::{Chunk, MessageRange, Partition};

/// Any bytes, split into lines.
#[must_use]
pub fn chunk(data: &[u8]) -> Chunk {
    let mut messages = Vec::new();
    let mut start = 0;
    for line in data.split(|byte| *byte == b'\n') {
        messages.push(MessageRange { start, len: line.len() as u32 });
        start += line.len() as u32 + 1;
    }
    Chunk {
        source: "fuzz".into(),
        partition: Partition(0),
        data: Buffer::from(data),
        offsets: (0..messages.len() as u64).collect(),
        next_offset: messages.len() as u64,
        messages,
        received_at: 1_700_000_000_000_000,
        peer: None,
        attributes: None,
    }
}

/// The messages of a group.
#[must_use]
pub fn messages(group: &Group) -> Vec<Vec<u8>> {
    let of = |m: &MessageRange| group.data[m.start as usize..(m.start + m.len) as usize].to_vec();
    group.messages.iter().map(of).collect()
}

fn decoder(name: &str, yaml: &str) -> Box<dyn Decoder> {
    let entry = DECODERS.iter().find(|entry| entry.name == name).expect("the decoder");
    let node = Node::parse(yaml.as_bytes(), Limits::default()).expect("valid YAML");
    let schema = (entry.default_schema)(&node).expect("a valid configuration");
    (entry.build)(&node, &Demand { schema, validate: true }).expect("the default schema fits")
}

/// Decodes `data` with each configuration of a decoder of text: every message is a row or a reject, arrays are what Arrow
/// finds valid, and documents are JSON objects on one line.
///
/// # Panics
/// If not.
pub fn check_text_decoder(name: &str, configs: &[&str], data: &[u8]) {
    let chunk = chunk(data);
    for yaml in configs {
        let decoded = decoder(name, yaml).decode(&chunk);
        let n_rows = decoded.rows.as_ref().map_or(0, |batch| batch.num_rows());
        let n_rejects = decoded.rejects.as_ref().map_or(0, |batch| batch.num_rows());
        assert_eq!(n_rows + n_rejects, chunk.messages.len());
        let Some(batch) = decoded.rows else { continue };
        for column in batch.rows().columns() {
            column.to_data().validate_full().expect("a valid array");
        }
        let documents = Documents::new(&batch);
        let mut out = Vec::new();
        for idx in 0..batch.num_rows() {
            out.clear();
            documents.write(idx, &mut out);
            let document: serde_json::Value = serde_json::from_slice(&out).expect("a document is JSON");
            assert!(document.is_object() && !out.contains(&b'\n'));
        }
    }
}
