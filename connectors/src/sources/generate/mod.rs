//! The `generate` source: a seeded simulator of an e-commerce platform, as a log that can be read again.
//!
//! The offset of a message is the number of the event, and an event is a pure function of seed, number and start
//! (`shop`), so a resume gives the same bytes. What must be remembered is the start, if it was not configured.

mod events;
mod json;
mod shop;
mod world;

#[cfg(test)]
mod tests;

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::buffer::Buffer;
use async_trait::async_trait;
use logdrive_schemas::component::{Component, ConfigError, Span};
use logdrive_schemas::{Chunk, MessageRange, Partition, Position};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::source::{Budget, Source, SourceConfig, SourceKind, partition_of};
use crate::storage;

pub use shop::{Fraud, Shop, ShopOptions};

/// Event time passes at this rate if events come as fast as they can, in events per second.
pub const NOMINAL_RATE: f64 = 10_000.0;
/// Events in one chunk: a few milliseconds of work on the task that receives.
const CHUNK_EVENTS: usize = 2048;
/// No event is longer.
const EVENT_BYTES: usize = 1024;
/// The shortest pause between two chunks of a paced source.
const PACE: Duration = Duration::from_millis(10);

/// Makes traffic of an e-commerce platform: shops, customers with habits, sessions, slow calls, bursts of errors,
/// and fraud of several kinds.
///
/// The same seed and start give the same events. Which events are fraud is written to `labels`, never to the events.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Generate {
    /// Events per second, or `max` for as many as the pipeline takes.
    #[serde(default)]
    #[schemars(with = "String")]
    rate: Rate,
    /// Another seed gives other events.
    #[serde(default = "seed")]
    seed: u64,
    /// How many events; without it there is no end.
    #[serde(default)]
    count: Option<u64>,
    /// How many shops, 1 to 1000. The first twelve are those of `examples/tenants.csv`.
    #[serde(default = "tenants")]
    tenants: u32,
    /// When the first event happens, RFC 3339. Without it: when the source first started.
    #[serde(default)]
    start: Option<String>,
    /// Which fraction of the events is part of a fraud, 0 to 1.
    #[serde(default = "fraud")]
    fraud: f64,
    /// A file for the truth: one line `{"id":…,"label":…}` for each event that is fraud. After a crash it may hold a
    /// line twice.
    #[serde(default)]
    labels: Option<PathBuf>,
}

/// How fast.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rate {
    Max,
    PerSecond(f64),
}

impl Default for Rate {
    fn default() -> Self {
        Self::PerSecond(100.0)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        if text == "max" {
            return Ok(Self::Max);
        }
        match text.parse::<f64>() {
            Ok(rate) if (0.001..=1e8).contains(&rate) => Ok(Self::PerSecond(rate)),
            _ => Err(serde::de::Error::custom(format!(
                "`{text}` is no rate, write events per second (0.001 to 100000000) or `max`"
            ))),
        }
    }
}

fn seed() -> u64 {
    1
}

fn tenants() -> u32 {
    12
}

fn fraud() -> f64 {
    0.002
}

impl Component for Generate {
    const NAME: &'static str = "generate";
    const EXAMPLE: &'static str = "type: generate\nrate: 1000\nseed: 7\ncount: 100000\n";
}

impl SourceConfig for Generate {
    fn build(self, cx: &ConnectorContext) -> Result<SourceKind, ConfigError> {
        let invalid = |message: String| ConfigError::new("config::invalid_value", Span::default(), message);
        if !(0.0..=1.0).contains(&self.fraud) {
            return Err(invalid("`fraud` must be between 0 and 1".into()));
        }
        if !(1..=1000).contains(&self.tenants) {
            return Err(invalid("`tenants` must be between 1 and 1000".into()));
        }
        let start = match &self.start {
            None => None,
            Some(text) => Some(
                text.parse::<jiff::Timestamp>()
                    .map_err(|_| invalid(format!("`{text}` is no time, write it like 2026-01-31T12:00:00Z")))?
                    .as_microsecond(),
            ),
        };
        Ok(SourceKind::Log(Box::new(GenerateSource { config: self, start, cx: cx.clone(), run: None })))
    }
}

/// What must be remembered so that a resume goes on with the same world.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Started {
    seed: u64,
    tenants: u32,
    fraud: f64,
    rate: f64,
    start: i64,
}

/// Makes events.
struct GenerateSource {
    config: Generate,
    /// Configured start, microseconds since the Unix epoch.
    start: Option<i64>,
    cx: ConnectorContext,
    run: Option<Run>,
}

/// A source that is connected.
struct Run {
    shop: Shop,
    partition: Partition,
    next: u64,
    /// Event `pace_from` was due at `pace_since`.
    pace_from: u64,
    pace_since: Instant,
    not_before: Instant,
    labels: Option<Labels>,
}

struct Labels {
    path: PathBuf,
    file: BufWriter<fs::File>,
}

impl GenerateSource {
    fn rate(&self) -> f64 {
        match self.config.rate {
            Rate::Max => NOMINAL_RATE,
            Rate::PerSecond(rate) => rate,
        }
    }

    /// The world to go on with: that of the first start, unless it was another.
    fn started(&self) -> Result<Started, ConnectorError> {
        let path = self.cx.state_dir.join("start.json");
        let mut started = Started {
            seed: self.config.seed,
            tenants: self.config.tenants,
            fraud: self.config.fraud,
            rate: self.rate(),
            start: self.start.unwrap_or(0),
        };
        if self.start.is_some() {
            return Ok(started);
        }
        match fs::read(&path) {
            Ok(json) => {
                let before: Started =
                    serde_json::from_slice(&json).map_err(|e| ConnectorError::storage(&path, e.into()))?;
                started.start = before.start;
                if started == before {
                    return Ok(started);
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(ConnectorError::storage(&path, e)),
        }
        // Whole milliseconds, as events show them.
        started.start = jiff::Timestamp::now().as_millisecond() * 1000;
        replace(&path, &started).map_err(|e| ConnectorError::storage(&path, e))?;
        Ok(started)
    }

    fn open(&self, delivered: &[Position]) -> Result<Run, ConnectorError> {
        let started = self.started()?;
        let partition = partition_of(&format!("{started:?}"));
        let next = delivered.iter().find(|p| p.partition == partition).map_or(0, |p| p.offset);
        let labels = match &self.config.labels {
            None => None,
            Some(path) => Some(Labels::open(path, next).map_err(|e| ConnectorError::storage(path, e))?),
        };
        let Started { seed, tenants, fraud, rate, start } = started;
        let now = Instant::now();
        Ok(Run {
            shop: Shop::new(ShopOptions { seed, tenants, fraud, rate, start }),
            partition,
            next,
            pace_from: next,
            pace_since: now,
            not_before: now,
            labels,
        })
    }
}

fn replace(path: &Path, started: &Started) -> io::Result<()> {
    storage::replace(path, &serde_json::to_vec(started)?)
}

impl Labels {
    fn open(path: &Path, next: u64) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut options = fs::OpenOptions::new();
        options.create(true);
        if next == 0 {
            options.write(true).truncate(true)
        } else {
            options.append(true)
        };
        Ok(Self { path: path.into(), file: BufWriter::new(options.open(path)?) })
    }
}

impl Run {
    /// How many events may be made now; none: when to come again.
    fn due(&self, rate: Rate, end: u64) -> Result<u64, Instant> {
        let left = end - self.next;
        let Rate::PerSecond(rate) = rate else { return Ok(left) };
        let now = Instant::now();
        if now < self.not_before {
            return Err(self.not_before);
        }
        let due = self.pace_from + ((now - self.pace_since).as_secs_f64() * rate) as u64 + 1;
        if self.next < due {
            return Ok(left.min(due - self.next));
        }
        let wait = Duration::try_from_secs_f64((self.next - self.pace_from) as f64 / rate).unwrap_or(PACE);
        Err(self.pace_since + wait.max(now - self.pace_since + Duration::from_millis(1)))
    }

    fn chunk(&mut self, n_due: u64, budget: Budget, cx: &ConnectorContext) -> Result<Chunk, ConnectorError> {
        let n_max = n_due.min(budget.messages.clamp(1, CHUNK_EVENTS) as u64);
        let mut data =
            Vec::with_capacity((n_max as usize * 480 + EVENT_BYTES).min(budget.bytes + EVENT_BYTES));
        let (mut messages, mut n_bytes) = (Vec::with_capacity(n_max as usize), 0);
        let first = self.next;
        let mut truths = Vec::new();
        while (messages.len() as u64) < n_max
            && (messages.is_empty() || data.len() + EVENT_BYTES <= budget.bytes)
        {
            let (start, index) = (data.len(), first + messages.len() as u64);
            if let Some(fraud) = self.shop.write(index, &mut data) {
                truths.push((index, fraud));
            }
            let len = data.len() - start;
            n_bytes += len as u64;
            messages.push(MessageRange { start: start as u32, len: len as u32 });
            data.push(b'\n');
        }
        if let Some(labels) = &mut self.labels {
            write_labels(&mut labels.file, &self.shop, &truths)
                .and_then(|()| labels.file.flush())
                .map_err(|e| ConnectorError::storage(&labels.path, e))?;
        }
        self.next += messages.len() as u64;
        self.not_before = Instant::now() + PACE;
        let label = [&*cx.name];
        cx.metrics.source_messages.with_label_values(&label).inc_by(messages.len() as u64);
        cx.metrics.source_bytes.with_label_values(&label).inc_by(n_bytes);
        Ok(Chunk {
            source: Arc::clone(&cx.name),
            partition: self.partition,
            data: Buffer::from_vec(data),
            messages,
            offsets: (first..self.next).collect(),
            received_at: jiff::Timestamp::now().as_microsecond(),
            peer: None,
            attributes: None,
            next_offset: self.next,
        })
    }
}

fn write_labels(out: &mut impl Write, shop: &Shop, truths: &[(u64, Fraud)]) -> io::Result<()> {
    for (index, fraud) in truths {
        writeln!(out, r#"{{"id":"{:016x}","label":"{}"}}"#, shop.event_id(*index), fraud.name())?;
    }
    Ok(())
}

/// Writes events 0 up to `count` to `out`, one a line, and the truth about those that are fraud to `labels`.
///
/// # Errors
/// If `out` or `labels` cannot be written.
pub fn write_lines(
    options: ShopOptions,
    count: u64,
    out: &mut dyn Write,
    mut labels: Option<&mut dyn Write>,
) -> io::Result<()> {
    let mut shop = Shop::new(options);
    let mut block = Vec::with_capacity(CHUNK_EVENTS * 512);
    let mut index = 0;
    while index < count {
        block.clear();
        let end = count.min(index + CHUNK_EVENTS as u64);
        let mut truths = Vec::new();
        for index in index..end {
            if let Some(fraud) = shop.write(index, &mut block) {
                truths.push((index, fraud));
            }
            block.push(b'\n');
        }
        out.write_all(&block)?;
        if let Some(labels) = &mut labels {
            write_labels(labels, &shop, &truths)?;
        }
        index = end;
    }
    out.flush()
}

#[async_trait]
impl Source for GenerateSource {
    async fn connect(&mut self, delivered: &[Position]) -> Result<(), ConnectorError> {
        self.run = Some(self.open(delivered)?);
        Ok(())
    }

    async fn recv(&mut self, budget: Budget) -> Result<Chunk, ConnectorError> {
        // Making events never waits; others on this thread must get their turn.
        tokio::task::yield_now().await;
        loop {
            let Some(run) = &mut self.run else {
                return Err(ConnectorError::disconnected("generator", "not connected"));
            };
            let end = self.config.count.unwrap_or(u64::MAX);
            if end <= run.next {
                return Err(ConnectorError::End);
            }
            match run.due(self.config.rate, end) {
                Ok(n_due) => return run.chunk(n_due, budget, &self.cx),
                Err(until) => tokio::time::sleep_until(until.into()).await,
            }
        }
    }

    async fn commit(&mut self, _: Position) -> Result<(), ConnectorError> {
        Ok(())
    }
}
