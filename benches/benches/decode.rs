//! How fast JSON lines become columns: the `json` decoder beside what bounds it, in one run.
//!
//! - `newlines`: finding the line breaks, which every pipeline must do;
//! - `tape`: simd-json alone, with its buffers reused, no columns;
//! - `json`: the decoder, 15 typed fields, strings as views;
//! - `json one field`: the decoder when the pipeline reads a single field;
//! - `json general`: the decoder without its fast path;
//! - `json mixed`: as `json`, but of eight kinds of lines in random order, with members missing or moved, and spaces
//!   in one kind;
//! - `json escapes`: as `json`, but with escapes in two strings of every line.

use std::hint::black_box;

use arrow::buffer::Buffer;
use criterion::{Criterion, Throughput};
use logdrive_benches::Lines;
use logdrive_connectors::decoder::{DecoderConfig, Demand};
use logdrive_connectors::decoders::Json;
use logdrive_schemas::{Chunk, MessageRange};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
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

/// The same chunk with each line rewritten.
fn rewritten(chunk: &Chunk, mut rewrite: impl FnMut(&str) -> String) -> Chunk {
    let mut text = String::with_capacity(chunk.data.len() * 5 / 4);
    let mut messages = Vec::with_capacity(chunk.messages.len());
    for idx in 0..chunk.messages.len() {
        let line = rewrite(std::str::from_utf8(chunk.message(idx)).expect("the lines are text"));
        messages.push(MessageRange {
            start: u32::try_from(text.len()).expect("a chunk below 4 GiB"),
            len: u32::try_from(line.len()).expect("a chunk below 4 GiB"),
        });
        text.push_str(&line);
        text.push('\n');
    }
    Chunk { data: Buffer::from_vec(text.into_bytes()), messages, ..chunk.clone() }
}

/// Eight kinds of lines in random order.
fn mixed(chunk: &Chunk) -> Chunk {
    let mut rng = SmallRng::seed_from_u64(7);
    rewritten(chunk, |line| {
        let mut members: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(line).expect("the lines are valid JSON");
        let kind = rng.random_range(0..8);
        for (idx, name) in ["tenant", "ip", "card_id"].into_iter().enumerate() {
            if kind >> idx & 1 == 1 {
                let value = members.shift_remove(name).expect("every line has it");
                if idx == 1 {
                    members.insert(name.to_owned(), value);
                }
            }
        }
        let line = serde_json::Value::Object(members).to_string();
        if kind == 7 { line.replace("\":", "\": ").replace(",\"", ", \"") } else { line }
    })
}

fn escapes(chunk: &Chunk) -> Chunk {
    rewritten(chunk, |line| {
        line.replace("checkout-api", "checkout\\/api\\/v2").replace("u-", "user \\u00e9 \\\"vip\\\" ")
    })
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
    let demand = |schema| Demand { schema, validate: true };
    let json = |schema| Json {}.build(&demand(schema)).expect("every schema fits JSON");
    let mut one_field = Lines::schema();
    one_field.fields.truncate(1);
    let decoders = [
        ("json", json(Lines::schema()), chunk.clone()),
        ("json one field", json(one_field), chunk.clone()),
        ("json general", Json::general(&demand(Lines::schema())), chunk.clone()),
        ("json mixed", json(Lines::schema()), mixed(&chunk)),
        ("json escapes", json(Lines::schema()), escapes(&chunk)),
    ];
    for (name, mut decoder, chunk) in decoders {
        let decoded = decoder.decode(&chunk);
        assert_eq!(decoded.rows.map_or(0, |batch| batch.num_rows()), LINES, "every line decodes");
        group.throughput(Throughput::Bytes(chunk.data.len() as u64));
        group.bench_function(name, |bencher| bencher.iter(|| decoder.decode(black_box(&chunk))));
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().without_plots().configure_from_args();
    decode(&mut criterion);
    criterion.final_summary();
}
