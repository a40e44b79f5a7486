//! What the simulator promises: determinism, the catalogue's types, fraud that no message admits.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use logdrive_schemas::component::{Limits, Node};
use logdrive_schemas::{FieldType, catalogue};
use serde_json::Value;

use super::world::{CITIES, TENANTS};
use super::*;
use crate::metrics::Metrics;
use crate::sources::SOURCES;

const START: i64 = 1_790_000_000_000_000;

fn options() -> ShopOptions {
    ShopOptions { seed: 1, tenants: 12, fraud: 0.05, rate: 200.0, start: START }
}

fn events(options: ShopOptions, n: u64) -> Vec<(Value, Option<Fraud>)> {
    let mut shop = Shop::new(options);
    (0..n)
        .map(|index| {
            let mut out = Vec::new();
            let fraud = shop.write(index, &mut out);
            assert!(out.len() < EVENT_BYTES, "{} bytes", out.len());
            (
                serde_json::from_slice(&out)
                    .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&out))),
                fraud,
            )
        })
        .collect()
}

fn assert_type(field_type: &FieldType, value: &Value, path: &str) {
    let fits = match field_type {
        FieldType::Boolean => value.is_boolean(),
        FieldType::Float64 => value.is_number(),
        FieldType::Int64 => value.is_i64(),
        FieldType::Ip => value.as_str().is_some_and(|s| s.parse::<std::net::Ipv4Addr>().is_ok()),
        FieldType::String => value.is_string(),
        FieldType::Timestamp => value.as_str().is_some_and(|s| s.parse::<jiff::Timestamp>().is_ok()),
        FieldType::Object(fields) => {
            for (name, value) in value.as_object().expect("an object") {
                let (_, field_type) = fields
                    .iter()
                    .find(|(n, _)| n == name)
                    .unwrap_or_else(|| panic!("{path}.{name} is not in the catalogue"));
                assert_type(field_type, value, &format!("{path}.{name}"));
            }
            true
        }
        _ => false,
    };
    assert!(fits, "{path}: {value} is no {field_type:?}");
}

#[test]
fn every_event_matches_the_catalogue() {
    let mut types: BTreeMap<String, u64> = BTreeMap::new();
    let mut n_bytes = 0;
    let n_events = 20_000;
    let schemas: HashMap<&str, FieldType> = catalogue::NAMES
        .iter()
        .map(|name| (*name, FieldType::Object(catalogue::find(name).unwrap().fields)))
        .collect();
    for (event, _) in events(options(), n_events) {
        let name = event["type"].as_str().unwrap().to_owned();
        for schema in [name.as_str(), "ecommerce"] {
            assert_type(&schemas[schema], &event, &name);
        }
        n_bytes += event.to_string().len();
        *types.entry(name).or_default() += 1;
    }
    assert_eq!(types.len(), 5, "{types:?}");
    assert!(types.values().all(|n| n_events / 100 < *n), "a mix: {types:?}");
    let mean = n_bytes as u64 / n_events;
    assert!((400..520).contains(&mean), "{mean} bytes");
}

#[test]
fn the_same_seed_gives_the_same_bytes_from_any_index_on() {
    let mut whole = Vec::new();
    write_lines(options(), 5_000, &mut whole, None).unwrap();
    let lines: Vec<&[u8]> = whole.split(|b| *b == b'\n').collect();
    assert_eq!(lines.len(), 5_001);
    for index in [0, 1, 17, 1_023, 1_024, 4_999] {
        let mut out = Vec::new();
        Shop::new(options()).write(index as u64, &mut out);
        assert_eq!(out, lines[index], "event {index}");
    }
    let mut other = Vec::new();
    write_lines(ShopOptions { seed: 2, ..options() }, 5_000, &mut other, None).unwrap();
    assert_ne!(whole, other);
}

#[test]
fn every_kind_of_fraud_occurs_as_often_as_asked_and_no_message_admits_it() {
    let n_events = 100_000;
    let mut kinds: HashMap<Fraud, u64> = HashMap::new();
    let mut testing: HashMap<String, Vec<(String, String)>> = HashMap::new();
    let (mut shop, mut out) = (Shop::new(options()), Vec::new());
    for index in 0..n_events {
        out.clear();
        let fraud = shop.write(index, &mut out);
        let text = std::str::from_utf8(&out).unwrap();
        assert!(!text.contains("fraud") && !text.contains("label"), "{text}");
        assert!(Fraud::ALL.iter().all(|kind| !text.contains(kind.name())), "{text}");
        let Some(fraud) = fraud else { continue };
        let event: Value = serde_json::from_str(text).unwrap();
        *kinds.entry(fraud).or_default() += 1;
        if fraud == Fraud::CardTesting {
            assert!(event["amount"].as_f64().unwrap() < 3.01);
            let cell = |name: &str| event[name].as_str().unwrap().to_owned();
            testing.entry(cell("device_id")).or_default().push((cell("card_id"), cell("@timestamp")));
        }
    }
    assert_eq!(kinds.len(), Fraud::ALL.len(), "{kinds:?}");
    let n_fraud: u64 = kinds.values().sum();
    let share = n_fraud as f64 / n_events as f64;
    assert!((0.04..0.06).contains(&share), "{share}");
    let whole: Vec<_> = testing.values().filter(|uses| uses.len() == 16).collect();
    assert!(whole.iter().any(|uses| uses.iter().all(|(card, _)| *card == uses[0].0)), "one card, many times");
    assert!(whole.iter().any(|uses| uses.iter().map(|(card, _)| card).collect::<HashSet<_>>().len() == 16));
    for uses in whole {
        let time = |idx: usize| uses[idx].1.parse::<jiff::Timestamp>().unwrap();
        assert!(time(15).duration_since(time(0)).as_secs() < 300, "within minutes");
    }
    assert!(events(ShopOptions { fraud: 0.0, ..options() }, 20_000).iter().all(|(_, fraud)| fraud.is_none()));
}

#[test]
fn identifiers_and_times_are_as_they_should() {
    let events = events(options(), 20_000);
    let ids: HashSet<&str> = events.iter().map(|(e, _)| e["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), events.len());
    let times: Vec<jiff::Timestamp> =
        events.iter().map(|(e, _)| e["@timestamp"].as_str().unwrap().parse().unwrap()).collect();
    assert!(times.is_sorted());
    assert_eq!(times[0].as_microsecond(), START);
    assert_eq!(times[200].as_microsecond(), START + 1_000_000);
    let mut tenants: HashMap<&str, u64> = HashMap::new();
    for (event, _) in &events {
        *tenants.entry(event["tenant"].as_str().unwrap()).or_default() += 1;
    }
    assert_eq!(tenants.len(), 12);
    assert!(tenants["cedar-pharma"] * 3 < tenants["maison-lumiere"], "of different sizes: {tenants:?}");
}

#[test]
fn the_example_tables_describe_this_world() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let read = |name: &str| -> Vec<Vec<String>> {
        let text = fs::read_to_string(examples.join(name)).unwrap();
        text.lines().map(|line| line.split(',').map(str::to_owned).collect()).collect()
    };
    let geo = read("geo.csv");
    assert_eq!(geo.len(), CITIES.len() + 1);
    assert_eq!(geo[0][..2], ["network", "country_iso_code"]);
    for (row, city) in geo[1..].iter().zip(CITIES) {
        assert_eq!(row.len(), geo[0].len(), "{row:?}");
        assert_eq!(row[..2], [format!("10.{}.0.0/16", city.network), city.iso.to_owned()]);
        assert!(
            row[8].parse::<f64>().unwrap().abs() <= 90.0 && row[9].parse::<f64>().unwrap().abs() <= 180.0
        );
    }
    let tenants = read("tenants.csv");
    assert_eq!(tenants[0], ["tenant", "name", "plan", "region"]);
    let names: Vec<&str> = tenants[1..].iter().map(|row| row[0].as_str()).collect();
    assert_eq!(names, TENANTS.iter().map(|t| t.tenant).collect::<Vec<_>>());
}

fn source(yaml: &str, dir: &Path) -> Result<Box<dyn Source>, Vec<ConfigError>> {
    let cx = ConnectorContext {
        name: "made".into(),
        state_dir: dir.join("state"),
        metrics: Arc::new(Metrics::new()),
        shutdown: tokio_util::sync::CancellationToken::new(),
    };
    let node = Node::parse(yaml.as_bytes(), Limits::default()).unwrap();
    let entry = SOURCES.iter().find(|entry| entry.name == "generate").unwrap();
    (entry.build)(&node, &cx).map(|kind| match kind {
        SourceKind::Log(source) => source,
        SourceKind::Listener(_) => panic!("generate has a log of its own"),
    })
}

async fn drain(source: &mut dyn Source, messages: usize, n_chunks: usize) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    while chunks.len() < n_chunks {
        match source.recv(Budget { messages, ..Budget::default() }).await {
            Ok(chunk) => chunks.push(chunk),
            Err(ConnectorError::End) => break,
            Err(error) => panic!("{error}"),
        }
    }
    chunks
}

fn messages(chunks: &[Chunk]) -> Vec<(u64, Vec<u8>)> {
    chunks
        .iter()
        .flat_map(|c| (0..c.messages.len()).map(|idx| (c.offsets[idx], c.message(idx).to_vec())))
        .collect()
}

#[tokio::test]
async fn resumes_where_it_was_with_the_same_bytes_and_ends_after_count() {
    let dir = tempfile::tempdir().unwrap();
    let labels = dir.path().join("truth/labels.ndjson");
    let yaml = format!("rate: max\ncount: 3000\nfraud: 0.1\nlabels: {}\n", labels.display());
    let mut first = source(&yaml, dir.path()).unwrap();
    first.connect(&[]).await.unwrap();
    let whole = drain(&mut *first, 700, usize::MAX).await;
    assert_eq!(messages(&whole).len(), 3000);
    let truths = fs::read_to_string(&labels).unwrap();
    assert!(100 < truths.lines().count());
    let truth: Value = serde_json::from_str(truths.lines().next().unwrap()).unwrap();
    assert!(
        messages(&whole)
            .iter()
            .any(|(_, m)| { serde_json::from_slice::<Value>(m).unwrap()["id"] == truth["id"] })
    );
    // The start was remembered: a new source goes on in the same world.
    for n_chunks in 0..3 {
        let delivered: Vec<Position> = whole[..n_chunks].last().map(Chunk::end).into_iter().collect();
        let mut again = source(&yaml, dir.path()).unwrap();
        again.connect(&delivered).await.unwrap();
        let rest = drain(&mut *again, 123, usize::MAX).await;
        assert_eq!(messages(&rest), messages(&whole[n_chunks..]));
        assert_eq!(rest[0].partition, whole[0].partition);
    }
    // Another seed is another log.
    let mut other = source(&format!("seed: 2\n{yaml}"), dir.path()).unwrap();
    other.connect(&[whole[0].end()]).await.unwrap();
    let other = drain(&mut *other, 10, 1).await;
    assert_ne!(other[0].partition, whole[0].partition);
    assert_eq!(other[0].offsets[0], 0);
}

#[tokio::test]
async fn a_rate_is_kept_and_caught_up_with() {
    let dir = tempfile::tempdir().unwrap();
    let mut paced = source("rate: 1000\n", dir.path()).unwrap();
    paced.connect(&[]).await.unwrap();
    let began = Instant::now();
    let mut n_events = 0;
    while n_events < 150 {
        n_events += drain(&mut *paced, 1000, 1).await[0].messages.len();
    }
    assert!(Duration::from_millis(100) < began.elapsed(), "not faster than asked");
    let due = (began.elapsed().as_secs_f64() * 1000.0) as usize;
    assert!(n_events <= due + 2);
    // Whatever was missed comes at once.
    std::thread::sleep(Duration::from_millis(100));
    assert!(100 <= drain(&mut *paced, 10_000, 1).await[0].messages.len());
}

#[test]
fn wrong_configuration_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for yaml in
        ["rate: fast", "rate: 0", "rate: -1", "fraud: 2", "tenants: 0", "start: yesterday", "speed: 1"]
    {
        assert!(source(yaml, dir.path()).is_err(), "{yaml}");
    }
    assert!(source("start: 2026-01-31T12:00:00Z\nrate: 0.5", dir.path()).is_ok());
}
