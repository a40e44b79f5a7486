//! How fast JSON lines become columns: the `json` decoder beside what bounds it, in one run.
//!
//! - `newlines`: finding the line breaks, which every pipeline must do;
//! - `tape`: simd-json alone, with its buffers reused, no columns;
//! - `json`: the decoder, 15 typed fields, strings as views;
//! - `json one field`: the decoder when the pipeline reads a single field.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use logdrive_benches::Lines;
use logdrive_connectors::decoder::{DecoderConfig, Demand};
use logdrive_connectors::decoders::Json;
use logdrive_schemas::{Chunk, RowSchema};
use simd_json::{Buffers, INPUT_PADDING, Tape, fill_tape_padded};

const LINES: usize = 8_192;

fn tape(chunk: &Chunk, buffers: &mut Buffers, scratch: &mut Vec<u8>) -> usize {
    let mut nodes = 0;
    let mut spare = Tape(Vec::new());
    for idx in 0..chunk.messages.len() {
        let message = chunk.message(idx);
        scratch.clear();
        scratch.extend_from_slice(message);
        scratch.extend_from_slice(&[b' '; INPUT_PADDING]);
        let mut tape = spare.reset();
        fill_tape_padded(scratch, message.len(), buffers, &mut tape).expect("the lines are valid JSON");
        nodes += tape.0.len();
        spare = tape.reset();
    }
    nodes
}

fn decode(criterion: &mut Criterion) {
    let chunk = Lines::new(7).chunk(LINES);
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Bytes(chunk.data.len() as u64));
    group.bench_function("newlines", |bencher| {
        bencher.iter(|| memchr::memchr_iter(b'\n', black_box(chunk.data.as_slice())).count());
    });
    let (mut buffers, mut scratch) = (Buffers::default(), Vec::new());
    group.bench_function("tape", |bencher| {
        bencher.iter(|| tape(black_box(&chunk), &mut buffers, &mut scratch));
    });
    let mut one_field = Lines::schema();
    one_field.fields.truncate(1);
    let demands: [(&str, RowSchema); 2] = [("json", Lines::schema()), ("json one field", one_field)];
    for (name, schema) in demands {
        let mut decoder = Json {}.build(&Demand { schema, validate: true }).expect("every schema fits JSON");
        let decoded = decoder.decode(&chunk);
        assert_eq!(decoded.rows.map_or(0, |batch| batch.num_rows()), LINES, "every line decodes");
        group.bench_function(name, |bencher| bencher.iter(|| decoder.decode(black_box(&chunk))));
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().without_plots().configure_from_args();
    decode(&mut criterion);
    criterion.final_summary();
}
