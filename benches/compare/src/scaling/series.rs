//! What grows: workers, also more than there are cores, keys of detectors and views, fields, size, detectors, views; the lines and the pipeline of each point.

use std::fmt::Write as _;
use std::io::Write as _;

use crate::data::{self, Format};
use crate::products::SCHEMA;

/// A series of points.
pub(super) struct Series {
    /// Its name on the command line and in the plot's.
    pub(super) name: &'static str,
    /// Its heading.
    pub(super) title: &'static str,
    /// What is measured.
    pub(super) what: &'static str,
    /// What grows.
    pub(super) x: &'static str,
    /// Whether x is drawn in powers.
    pub(super) logarithmic: bool,
    /// Whether events a second matter, not CPU.
    pub(super) by_rate: bool,
    /// Whether x are workers, each of which could have a core of its own.
    pub(super) on_paper: bool,
    /// The points, given the bytes and the most lines of a run.
    pub(super) points: fn(u64, u64) -> Vec<Point>,
}

impl Series {
    /// What is drawn upwards.
    pub(super) fn axis(&self) -> &'static str {
        if self.by_rate { "events/s" } else { "CPU-s per M events" }
    }
}

/// One point.
pub(super) struct Point {
    /// Where it is.
    pub(super) x: f64,
    /// Lines of a run.
    pub(super) lines: u64,
    /// Makes a line.
    pub(super) line: fn(u64, &Self, &mut Vec<u8>),
    /// The pipeline, without `api`, listening on a port.
    pub(super) pipeline: fn(&Self, u16) -> String,
}

/// All series.
pub(super) const SERIES: &[Series] = &[
    Series {
        name: "workers",
        title: "Workers",
        what: "The input and steps of W3 without its place, on 1 worker up to as many as there are cores. Sender and receiver need cores, too.",
        x: "workers",
        logarithmic: false,
        by_rate: true,
        on_paper: false,
        points: workers,
    },
    Series {
        name: "exchange",
        title: "Workers beyond the cores",
        what: "The input of W1 under a view with a count and a sum per minute and key of 20,000, on more workers than there are cores. All that workers do for each other is done: partial groups go to the worker of their key, and each tells all others how far it is. Only that they wait for a core is not as it would be.",
        x: "workers",
        logarithmic: true,
        by_rate: false,
        on_paper: true,
        points: exchange,
    },
    Series {
        name: "keys",
        title: "Keys of a detector",
        what: "One `velocity` detector over short events; its keys are spread evenly and in no order, none is old enough to be forgotten, and each keeps its latest ten events.",
        x: "keys",
        logarithmic: true,
        by_rate: false,
        on_paper: false,
        points: keys,
    },
    Series {
        name: "view-keys",
        title: "Keys of a view",
        what: "One view with a count and a sum per key, for ever, over the same events; every change leaves.",
        x: "keys",
        logarithmic: true,
        by_rate: false,
        on_paper: false,
        points: view_keys,
    },
    Series {
        name: "fields",
        title: "Fields of an event",
        what: "Events of as many fields as are declared and read, half of them texts and half numbers.",
        x: "fields",
        logarithmic: false,
        by_rate: false,
        on_paper: false,
        points: fields,
    },
    Series {
        name: "size",
        title: "Size of an event",
        what: "Events of three declared fields and a text that makes them as long as stated.",
        x: "bytes",
        logarithmic: true,
        by_rate: false,
        on_paper: false,
        points: sizes,
    },
    Series {
        name: "detectors",
        title: "Detectors",
        what: "The input of W1 under 0 to 8 `velocity` detectors, each over keys of its own.",
        x: "detectors",
        logarithmic: false,
        by_rate: false,
        on_paper: false,
        points: detectors,
    },
    Series {
        name: "views",
        title: "Views",
        what: "The input of W1 under 0 to 8 views, each with a count and a sum per minute and key, over keys of its own; every change leaves.",
        x: "views",
        logarithmic: false,
        by_rate: false,
        on_paper: false,
        points: views,
    },
];

/// Lines of a mean length that make about as many bytes.
fn lines(bytes: u64, each: u64) -> u64 {
    (bytes / each).max(1000)
}

fn source(port: u16, schema: &str) -> String {
    format!(
        "sources:\n  in: {{ type: tcp, listen: \"127.0.0.1:{port}\", decoder: json, buffer: {{ mode: memory }}, schema: {schema} }}\n"
    )
}

const DISCARD: &str = "sinks:\n  out: { type: blackhole, from: [in] }\n";

fn shop(index: u64, _: &Point, out: &mut Vec<u8>) {
    data::line(Format::Json, index, out);
}

fn workers(bytes: u64, _: u64) -> Vec<Point> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let pipeline = |point: &Point, port: u16| {
        // Nothing is filtered out, so that all lines can be counted at the end.
        format!(
            "workers: {}\n{}streams:\n  changed:\n    from: [in]\n    steps:\n      - where: level <> 'none'\n      \
             - rename: {{ latency_ms: duration_ms }}\n      - add: {{ env: prod, pipeline: p1, region: eu-1 }}\n\
             sinks:\n  out: {{ type: blackhole, from: [changed] }}\n",
            point.x,
            source(port, SCHEMA)
        )
    };
    (1..=cores).map(|x| Point { x: x as f64, lines: lines(bytes * 3, 451), line: shop, pipeline }).collect()
}

fn exchange(bytes: u64, _: u64) -> Vec<Point> {
    let pipeline = |point: &Point, port: u16| {
        let window = "tumble(\\\"@timestamp\\\", INTERVAL '1 minute')";
        format!(
            "workers: {}\n{}views:\n  spent: {{ sql: \"SELECT user_id, {window} AS minute, count(*) AS n, sum(amount) AS total FROM \\\"in\\\" GROUP BY user_id, {window}\" }}\n\
             {DISCARD}  found: {{ type: blackhole, from: [spent] }}\n",
            point.x,
            source(port, SCHEMA)
        )
    };
    // With more the machine is never as quiet as the end of a run is known by.
    let workers = [1, 2, 4, 8];
    workers.map(|x| Point { x: f64::from(x), lines: lines(bytes, 451), line: shop, pipeline }).into()
}

fn keys(_: u64, most: u64) -> Vec<Point> {
    cardinalities(most, |_, port| {
        format!(
            "{}detectors:\n  often: {{ type: velocity, from: in, by: [key], window: 24h, sum: n, threshold: 1000000000000000000, max_rows_per_key: 10 }}\n\
             {DISCARD}  found: {{ type: blackhole, from: [often] }}\n",
            source(port, KEYED)
        )
    })
}

fn view_keys(_: u64, most: u64) -> Vec<Point> {
    cardinalities(most, |_, port| {
        format!(
            "{}views:\n  often: {{ sql: \"SELECT key, count(*) AS c, sum(n) AS total FROM \\\"in\\\" GROUP BY key\", unbounded: true, max_bytes: 32GiB }}\n\
             {DISCARD}  found: {{ type: blackhole, from: [often] }}\n",
            source(port, KEYED)
        )
    })
}

const KEYED: &str = "{ fields: { \"@timestamp\": timestamp, key: string, n: int64 } }";

/// From a hundred keys to ten million.
fn cardinalities(most: u64, pipeline: fn(&Point, u16) -> String) -> Vec<Point> {
    let line = |index: u64, point: &Point, out: &mut Vec<u8>| {
        // A prime and coprime to every number of keys here: all keys come once before one comes again.
        let key = index.wrapping_mul(1_000_003) % point.x as u64;
        let (minute, second, ms) = (index / 120_000 % 60, index / 2000 % 60, index / 2 % 1000);
        put(
            out,
            format_args!(
                "{{\"@timestamp\":\"2026-11-21T{:02}:{minute:02}:{second:02}.{ms:03}Z\",\"key\":\"k{key:08}\",\"n\":{index}}}",
                index / 7_200_000 % 24
            ),
        );
    };
    (2..=7)
        .map(|power| 10_u64.pow(power))
        .filter(|count| *count <= most)
        .map(|count| Point { x: count as f64, lines: count.max(2_000_000).min(most), line, pipeline })
        .collect()
}

fn fields(bytes: u64, _: u64) -> Vec<Point> {
    let line = |index: u64, point: &Point, out: &mut Vec<u8>| {
        for nth in 0..point.x as u64 {
            out.push(if nth == 0 { b'{' } else { b',' });
            let value = index.wrapping_mul(31).wrapping_add(nth) % 100_000;
            match nth % 2 {
                0 => put(out, format_args!("\"f{nth:02}\":{value:05}", value = value + 100_000)),
                _ => put(out, format_args!("\"f{nth:02}\":\"v{value:05}\"")),
            }
        }
        out.push(b'}');
    };
    let pipeline = |point: &Point, port: u16| {
        let mut schema = String::from("{ fields: { ");
        for nth in 0..point.x as u64 {
            let kind = if nth % 2 == 0 { "int64" } else { "string" };
            write!(schema, "f{nth:02}: {kind}, ").expect("memory takes it");
        }
        schema.push_str("} }");
        source(port, &schema) + DISCARD
    };
    let each = |count: u64| Point {
        x: count as f64,
        lines: lines(bytes, 14 * count).min(2_000_000),
        line,
        pipeline,
    };
    [1, 2, 5, 10, 20, 50, 100].map(each).into()
}

fn sizes(bytes: u64, _: u64) -> Vec<Point> {
    let line = |index: u64, point: &Point, out: &mut Vec<u8>| {
        let start = out.len();
        put(out, format_args!("{{\"id\":{},\"level\":\"info\",\"message\":\"", 1_000_000_000 + index));
        let text = b"the quick brown fox jumps over the lazy dog and runs on ";
        let wanted = (point.x as usize).saturating_sub(out.len() - start + 3);
        out.extend(text.iter().cycle().take(wanted));
        out.extend_from_slice(b"\"}");
    };
    let pipeline = |_: &Point, port: u16| {
        source(port, "{ fields: { id: int64, level: string, message: string } }") + DISCARD
    };
    let each = |size: u64| Point { x: size as f64, lines: lines(bytes, size).min(2_000_000), line, pipeline };
    [100, 256, 512, 1024, 2048, 4096, 8192, 16_384].map(each).into()
}

fn detectors(bytes: u64, _: u64) -> Vec<Point> {
    let pipeline = |point: &Point, port: u16| {
        per_key(point, port, "detectors", |key| {
            format!("{{ type: velocity, from: in, by: [{key}], window: 1m, threshold: 1000000000 }}")
        })
    };
    counts(bytes, pipeline)
}

fn views(bytes: u64, _: u64) -> Vec<Point> {
    let pipeline = |point: &Point, port: u16| {
        per_key(point, port, "views", |key| {
            let window = "tumble(\\\"@timestamp\\\", INTERVAL '1 minute')";
            format!(
                "{{ sql: \"SELECT {key}, {window} AS minute, count(*) AS n, sum(amount) AS total FROM \\\"in\\\" GROUP BY {key}, {window}\" }}"
            )
        })
    };
    counts(bytes, pipeline)
}

/// The input of W1, and behind it as many parts of a section as the point says, each with a key of its own.
fn per_key(point: &Point, port: u16, section: &str, part: fn(&str) -> String) -> String {
    let by = ["user_id", "ip", "session_id", "tenant", "country", "url", "user_agent", "currency"];
    let count = point.x as usize;
    let mut text = source(port, SCHEMA);
    if count > 0 {
        writeln!(text, "{section}:").expect("memory takes it");
    }
    for (nth, key) in by.iter().enumerate().take(count) {
        writeln!(text, "  p{nth}: {}", part(key)).expect("memory takes it");
    }
    text += DISCARD;
    if count > 0 {
        let names: Vec<String> = (0..count).map(|nth| format!("p{nth}")).collect();
        writeln!(text, "  found: {{ type: blackhole, from: [{}] }}", names.join(", "))
            .expect("memory takes it");
    }
    text
}

/// From none to eight.
fn counts(bytes: u64, pipeline: fn(&Point, u16) -> String) -> Vec<Point> {
    [0, 1, 2, 4, 8].map(|x| Point { x: f64::from(x), lines: lines(bytes, 451), line: shop, pipeline }).into()
}

/// Writing into memory cannot fail.
fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("memory takes it");
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn lines_are_json_and_as_large_as_their_point_says() {
        for series in SERIES {
            for point in (series.points)(1_000_000, 100_000) {
                let mut text = Vec::new();
                (point.line)(7, &point, &mut text);
                let value: Value = serde_json::from_slice(&text).expect(series.name);
                match series.name {
                    "fields" => {
                        assert_eq!(value.as_object().map(serde_json::Map::len), Some(point.x as usize))
                    }
                    "size" => assert_eq!(text.len() + 1, point.x as usize),
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn all_keys_come_before_one_comes_again() {
        let point = keys(0, 10_000).pop().expect("a point");
        let mut seen = HashSet::new();
        for index in 0..10_000 {
            let mut text = Vec::new();
            (point.line)(index, &point, &mut text);
            let value: Value = serde_json::from_slice(&text).expect("JSON");
            seen.insert(value["key"].to_string());
        }
        assert_eq!(seen.len(), 10_000);
    }
}
