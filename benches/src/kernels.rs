//! The hot kernels on fixed input, for instruction counts: each is run a number of times and returns something that
//! keeps the compiler from leaving it out.

use std::sync::Arc;

use logdrive_connectors::decoder::{DecoderConfig, Demand};
use logdrive_connectors::decoders::{Json, Text};
use logdrive_connectors::document::Documents;
use logdrive_connectors::sources::net::lines::Lines as Framing;
use logdrive_schemas::{Batch, Chunk, Edit, Layout, RowSchema};

use crate::Lines;

/// How many events one run of a kernel handles.
pub const EVENTS: usize = 2_048;

/// A kernel: what it is called, and what makes it ready to run.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// Its name.
    pub name: &'static str,
    prepare: fn() -> Box<dyn FnMut() -> usize>,
}

/// All of them.
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "framing", prepare: framing },
    Kernel { name: "json_15_fields", prepare: || json(Lines::schema()) },
    Kernel { name: "json_1_field", prepare: json_1_field },
    Kernel { name: "text", prepare: text },
    Kernel { name: "documents_original", prepare: || documents(Layout::Original(Vec::new())) },
    Kernel { name: "documents_spliced", prepare: spliced },
    Kernel { name: "documents_columns", prepare: || documents(Layout::Columns) },
];

impl Kernel {
    /// Runs it `n` times.
    #[must_use]
    pub fn run(&self, n: usize) -> usize {
        let mut kernel = (self.prepare)();
        (0..n).map(|_| kernel()).sum()
    }
}

fn framing() -> Box<dyn FnMut() -> usize> {
    let chunk = Lines::new(7).chunk(EVENTS);
    Box::new(move || {
        let mut framing = Framing::new(1 << 20);
        let mut n_messages = 0;
        for read in chunk.data.chunks(256 << 10) {
            framing.buffer().extend_from_slice(read);
            n_messages += framing.take().map_or(0, |group| group.messages.len());
        }
        n_messages
    })
}

fn decoding(config: impl DecoderConfig, schema: RowSchema, chunk: Chunk) -> Box<dyn FnMut() -> usize> {
    let mut decoder = config.build(&Demand { schema, validate: true }).expect("the schema fits");
    Box::new(move || decoder.decode(&chunk).rows.map_or(0, |batch| batch.num_rows()))
}

fn json(schema: RowSchema) -> Box<dyn FnMut() -> usize> {
    decoding(Json {}, schema, Lines::new(7).chunk(EVENTS))
}

fn json_1_field() -> Box<dyn FnMut() -> usize> {
    let mut schema = Lines::schema();
    schema.fields.truncate(1);
    json(schema)
}

fn text() -> Box<dyn FnMut() -> usize> {
    let config: Text = serde_json::from_value(serde_json::json!({})).expect("every key has a default");
    let schema = config.default_schema();
    decoding(config, schema, Lines::new(7).chunk(EVENTS))
}

fn batch() -> Batch {
    let demand = Demand { schema: Lines::schema(), validate: true };
    let mut decoder = Json {}.build(&demand).expect("every schema fits JSON");
    decoder.decode(&Lines::new(7).chunk(EVENTS)).rows.expect("every line decodes")
}

fn documents(layout: Layout) -> Box<dyn FnMut() -> usize> {
    let batch = batch();
    let rows = batch.rows().clone();
    let batch = batch.with_rows(rows, Arc::new(layout));
    let mut out = Vec::new();
    Box::new(move || {
        out.clear();
        let documents = Documents::new(&batch);
        (0..batch.num_rows()).for_each(|idx| documents.write(idx, &mut out));
        out.len()
    })
}

fn spliced() -> Box<dyn FnMut() -> usize> {
    documents(Layout::Original(vec![
        Edit::Rename { from: "latency_ms".into(), to: "duration_ms".into() },
        Edit::Set { key: "service".into() },
        Edit::Remove { key: "session_id".into() },
    ]))
}
