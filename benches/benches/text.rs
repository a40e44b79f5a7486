//! How fast text lines become columns, and columns JSON: `access_log` and `syslog` beside what bounds them, in one run.
//!
//! - `newlines`: finding the line breaks, which every pipeline must do;
//! - `regex`: the groups of one regular expression per line, no columns: how access logs are usually read;
//! - `access_log`, `syslog`: the decoders, every field, strings as views;
//! - `documents`: the decoded rows as JSON, one document a line; its throughput is that of the text it writes.

use std::fmt::Write as _;
use std::hint::black_box;

use arrow::buffer::Buffer;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput};
use logdrive_connectors::DECODERS;
use logdrive_connectors::decoder::{Decoder, Demand};
use logdrive_connectors::document::Documents;
use logdrive_schemas::component::{Limits, Node};
use logdrive_schemas::{Batch, Chunk, MessageRange, Partition};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use regex_automata::meta::Regex;

const LINES: usize = 8_192;

/// The groups of nginx's `combined`.
const COMBINED: &str = concat!(
    r#"^(?<client>\S+) (?<ident>\S+) (?<user>\S+) \[(?<time>[^\]]+)\] "(?<method>[A-Z]+) (?<url>[^"]*) HTTP/"#,
    r#"(?<version>[0-9.]+)" (?<status>[0-9]{3}) (?<bytes>[0-9]+|-) "(?<referrer>[^"]*)" "(?<agent>[^"]*)"$"#,
);

const AGENTS: [&str; 4] = [
    "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0 Safari/537.36",
    "curl/8.5.0",
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
];

fn pick<'a>(rng: &mut SmallRng, of: &[&'a str]) -> &'a str {
    of[rng.random_range(0..of.len())]
}

/// A line of nginx's `combined`, about 200 bytes; one in a hundred has an escape.
fn access_line(rng: &mut SmallRng, second: &mut u32, out: &mut String) {
    *second = (*second + u32::from(rng.random_range(0..20) == 0)) % 86_400;
    let user = if rng.random_range(0..20) == 0 { "frank" } else { "-" };
    let method = pick(rng, &["GET", "GET", "GET", "POST", "HEAD"]);
    let escape = if rng.random_range(0..100) == 0 { "&q=\\x22a\\x22" } else { "" };
    let referrer =
        pick(rng, &["-", "https://shop.example.com/", "https://www.google.com/search?q=wooden+logs"]);
    write!(
        out,
        concat!(
            "{}.{}.{}.{} - {} [10/Oct/2025:{:02}:{:02}:{:02} +0000] \"{} /products/{}/reviews?page={}{} HTTP/1.1\" {} {} ",
            "\"{}\" \"{}\""
        ),
        rng.random_range(1..224),
        rng.random::<u8>(),
        rng.random::<u8>(),
        rng.random::<u8>(),
        user,
        *second / 3600,
        *second / 60 % 60,
        *second % 60,
        method,
        rng.random_range(1..100_000),
        rng.random_range(1..30),
        escape,
        pick(rng, &["200", "200", "200", "304", "404", "500"]),
        rng.random_range(100..200_000),
        referrer,
        pick(rng, &AGENTS),
    )
    .expect("writing to a string cannot fail");
}

/// A message of RFC 5424 with structured data, about 200 bytes.
fn syslog_line(rng: &mut SmallRng, second: &mut u32, out: &mut String) {
    *second = (*second + u32::from(rng.random_range(0..20) == 0)) % 86_400;
    write!(
        out,
        concat!(
            "<{}>1 2025-10-10T{:02}:{:02}:{:02}.{:06}Z web-{:02}.example.com checkout {} ID{} ",
            "[origin@32473 ip=\"10.0.{}.{}\" software=\"shop\"][meta@32473 sequenceId=\"{}\" region=\"eu-{}\"] ",
            "payment {:08x} authorised after {} ms by {}"
        ),
        rng.random_range(0..192),
        *second / 3600,
        *second / 60 % 60,
        *second % 60,
        rng.random_range(0..1_000_000),
        rng.random_range(0..40),
        rng.random_range(100..40_000),
        rng.random_range(1..100),
        rng.random::<u8>(),
        rng.random::<u8>(),
        rng.random::<u32>(),
        rng.random_range(1..4),
        rng.random::<u32>(),
        rng.random_range(1..900),
        pick(rng, &["card", "paypal", "invoice"]),
    )
    .expect("writing to a string cannot fail");
}

fn chunk(mut line: impl FnMut(&mut SmallRng, &mut u32, &mut String)) -> Chunk {
    let mut rng = SmallRng::seed_from_u64(7);
    let mut second = 0;
    let mut text = String::new();
    let mut messages = Vec::with_capacity(LINES);
    for _ in 0..LINES {
        let start = text.len();
        line(&mut rng, &mut second, &mut text);
        messages.push(MessageRange { start: start as u32, len: (text.len() - start) as u32 });
        text.push('\n');
    }
    Chunk {
        source: "bench".into(),
        partition: Partition(0),
        data: Buffer::from_vec(text.into_bytes()),
        offsets: (0..LINES as u64).collect(),
        next_offset: LINES as u64,
        messages,
        received_at: 1_760_140_800_000_000,
        peer: None,
        attributes: None,
    }
}

/// A decoder with every field that it has without a declared schema.
fn decoder(name: &str) -> Box<dyn Decoder> {
    let entry = DECODERS.iter().find(|entry| entry.name == name).expect("a decoder of that name");
    let node = Node::parse(b"{}", Limits::default()).expect("an empty map");
    let schema = (entry.default_schema)(&node).expect("no key is needed");
    (entry.build)(&node, &Demand { schema, validate: true }).expect("the default schema fits")
}

fn newlines(group: &mut BenchmarkGroup<'_, WallTime>, chunk: &Chunk) {
    group.throughput(Throughput::Bytes(chunk.data.len() as u64));
    group.bench_function("newlines", |bencher| {
        bencher.iter(|| memchr::memchr_iter(b'\n', black_box(chunk.data.as_slice())).count());
    });
}

/// Benches a decoder and the way back to text.
fn decode(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, chunk: &Chunk) {
    let mut decoder = decoder(name);
    let decoded = decoder.decode(chunk);
    assert_eq!(decoded.rows.as_ref().map_or(0, Batch::num_rows), LINES, "every line decodes");
    group.bench_function(name, |bencher| bencher.iter(|| decoder.decode(black_box(chunk))));
    let rows = decoded.rows.expect("there are rows");
    let mut out = Vec::new();
    let write = |out: &mut Vec<u8>| {
        out.clear();
        let documents = Documents::new(black_box(&rows));
        for idx in 0..rows.num_rows() {
            documents.write(idx, out);
            out.push(b'\n');
        }
    };
    write(&mut out);
    group.throughput(Throughput::Bytes(out.len() as u64));
    group.bench_function("documents", |bencher| bencher.iter(|| write(&mut out)));
}

fn access_log(criterion: &mut Criterion) {
    let chunk = chunk(access_line);
    let mut group = criterion.benchmark_group("access_log");
    newlines(&mut group, &chunk);
    let regex = Regex::new(COMBINED).expect("a valid pattern");
    let (mut cache, mut captures) = (regex.create_cache(), regex.create_captures());
    group.bench_function("regex", |bencher| {
        bencher.iter(|| {
            let mut n_matches = 0;
            for idx in 0..chunk.messages.len() {
                let input = regex_automata::Input::new(chunk.message(idx));
                regex.search_captures_with(&mut cache, &input, &mut captures);
                n_matches += usize::from(captures.is_match());
            }
            assert_eq!(n_matches, LINES, "every line matches");
        });
    });
    decode(&mut group, "access_log", &chunk);
    group.finish();
}

fn syslog(criterion: &mut Criterion) {
    let chunk = chunk(syslog_line);
    let mut group = criterion.benchmark_group("syslog");
    newlines(&mut group, &chunk);
    decode(&mut group, "syslog", &chunk);
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().without_plots().configure_from_args();
    access_log(&mut criterion);
    syslog(&mut criterion);
    criterion.final_summary();
}
