//! The task `overload`: three times as much as the far end takes, for minutes. Memory must stay bounded, and everything
//! that was answered with 200 must arrive.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use clap::Args;
use memchr::memmem;
use serde::Serialize;

use crate::data::{self, Format};
use crate::error::Result;
use crate::expect::{Expectation, Shape};
use crate::ledger::{Ledger, Pace};
use crate::process::{Process, free_port};
use crate::products::{Buffer, SCHEMA};
use crate::receive::Receiver;
use crate::run::{Common, Journal};
use crate::say;

/// Documents of a request.
const BATCH: u64 = 500;
/// Enough that most can wait for an answer, as long as the product makes them, while others send.
const SENDERS: u64 = 640;
const STACK: usize = 256 << 10;
/// How long the capacity is measured, after as long to fill what lies between.
const CALIBRATION: Duration = Duration::from_secs(10);

/// How long, and how slow the far end is.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,

    /// How long the overload lasts, in minutes.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,

    /// What the far end takes, in megabytes a second.
    #[arg(long, default_value_t = 4.0)]
    megabytes: f64,

    /// How many times its capacity is sent.
    #[arg(long, default_value_t = 3.0)]
    factor: f64,

    /// What may wait in the buffer.
    #[arg(long, default_value = "256MiB")]
    buffer: String,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Found {
    name: &'static str,
    /// Events a second that the far end took alone.
    capacity: f64,
    /// Events a second that were offered.
    offered: f64,
    /// Events answered with 200.
    acknowledged: u64,
    /// Events answered otherwise, or not at all.
    refused: u64,
    /// Acknowledged events that did not arrive.
    lost: u64,
    /// Events that arrived twice.
    repeated: u64,
    /// Events that arrived.
    arrived: u64,
    /// The resident memory of each second, in bytes.
    memory: Vec<u64>,
}

/// What the senders share.
struct Stream {
    to: SocketAddr,
    stop: AtomicBool,
    next: AtomicU64,
    limit: u64,
    /// One bit for each batch that was answered with 200.
    acknowledged: Vec<AtomicBool>,
    refused: AtomicU64,
}

/// Overloads the product.
pub fn run(options: &Options) -> Result<()> {
    let bench = options.common.prepare()?;
    let ours = options.common.product(Buffer::Disk)?;
    let mut journal = Journal::open(&bench.scratch)?;
    let folder = bench.folder("logdrive", "overload")?;
    let length = Duration::from_secs_f64(options.minutes * 60.0);
    let most =
        (options.megabytes * 1e6 / 300.0 * options.factor * (length + CALIBRATION * 4).as_secs_f64()) as u64;
    let limit = most.div_ceil(BATCH);
    let ledger =
        Arc::new(Ledger::new(Expectation { format: Format::Json, shape: Shape::Same, lines: limit * BATCH }));
    let speed = Arc::new(AtomicU64::new((options.megabytes * 1e6) as u64));
    let receiver = Receiver::start(Arc::clone(&ledger), Some(Arc::clone(&speed)))?;
    let port = free_port()?;
    let pipeline = format!(
        "api: off\nsources:\n  in: {{ type: http, listen: \"127.0.0.1:{port}\", decoder: json, buffer: {{ max_bytes: {} }}, schema: {SCHEMA} }}\n\
         sinks:\n  out: {{ type: tcp, endpoint: \"{}\", from: [in] }}\n",
        options.buffer, receiver.address
    );
    let mut process = Process::start(ours.launch_text(&pipeline, &folder)?)?;
    process.wait_listening(port, Duration::from_secs(60))?;
    let stream = Arc::new(Stream {
        to: SocketAddr::from(([127, 0, 0, 1], port)),
        stop: AtomicBool::new(false),
        next: AtomicU64::new(0),
        limit,
        acknowledged: (0..limit).map(|_| AtomicBool::new(false)).collect(),
        refused: AtomicU64::new(0),
    });

    // Alone, with more than it takes: what arrives in a while is its capacity.
    let guess = options.megabytes * 1e6 / 451.0;
    let senders = start(&stream, guess * 1.5)?;
    sleep(CALIBRATION);
    let (before, since) = (ledger.arrived(), Instant::now());
    sleep(CALIBRATION);
    let capacity = (ledger.arrived() - before) as f64 / since.elapsed().as_secs_f64();
    end(&stream, senders)?;
    say(&format!(
        "the far end takes {capacity:.0} events/s; {:.0} times as much for {length:?}",
        options.factor
    ));

    stream.stop.store(false, Relaxed);
    let (first, since) = (stream.next.load(Relaxed), Instant::now());
    let senders = start(&stream, capacity * options.factor)?;
    let mut memory = Vec::new();
    while since.elapsed() < length {
        sleep(Duration::from_secs(1));
        process.check()?;
        memory.push(process.resident_memory());
        if memory.len() % 15 == 0 {
            say(&format!(
                "{:>4} s  RSS {:>5.0} MB  sent {:>9}  refused {:>9}  arrived {:>9}",
                memory.len(),
                memory.last().copied().unwrap_or(0) as f64 / 1e6,
                stream.next.load(Relaxed) * BATCH,
                stream.refused.load(Relaxed),
                ledger.arrived()
            ));
        }
    }
    let offered = ((stream.next.load(Relaxed) - first) * BATCH) as f64 / since.elapsed().as_secs_f64();
    // The far end is quick again: what waits can leave.
    speed.store(u64::MAX, Relaxed);
    end(&stream, senders)?;
    let acknowledged = |batch: &u64| stream.acknowledged[*batch as usize].load(Relaxed);
    let lost = || {
        let events = (0..limit).filter(acknowledged).flat_map(|batch| batch * BATCH..(batch + 1) * BATCH);
        events.filter(|index| !ledger.has(*index)).count() as u64
    };
    let deadline = Instant::now() + bench.timeout;
    while lost() > 0 && Instant::now() < deadline {
        process.check()?;
        sleep(Duration::from_millis(500));
    }
    let verdict = ledger.verdict();
    let found = Found {
        name: "overload",
        capacity,
        offered,
        acknowledged: (0..limit).filter(acknowledged).count() as u64 * BATCH,
        refused: stream.refused.load(Relaxed),
        lost: lost(),
        repeated: verdict.repeated,
        arrived: verdict.arrived,
        memory,
    };
    journal.add(&found)?;
    process.stop(Duration::from_secs(30));
    conclude(&found, verdict.wrong)
}

/// Says what was found; an error if a promise was broken.
fn conclude(found: &Found, wrong: u64) -> Result<()> {
    let half = found.memory.len() / 2;
    let most = |part: &[u64]| part.iter().max().copied().unwrap_or(0) as f64 / 1e6;
    let (early, late) = (most(&found.memory[..half]), most(&found.memory[half..]));
    say(&format!(
        "capacity {:.0} events/s, offered {:.0}; acknowledged {}, refused {}, arrived {}, lost {}, twice {}; \
         max RSS {early:.0} MB in the first half, {late:.0} MB in the second",
        found.capacity,
        found.offered,
        found.acknowledged,
        found.refused,
        found.arrived,
        found.lost,
        found.repeated
    ));
    let mut broken = Vec::new();
    if found.lost > 0 {
        broken.push(format!("{} acknowledged events did not arrive", found.lost));
    }
    if wrong > 0 {
        broken.push(format!("{wrong} events arrived changed"));
    }
    if late > early * 1.2 + 16.0 {
        broken.push("memory still grew in the second half".to_owned());
    }
    if broken.is_empty() { Ok(()) } else { Err(broken.join("; ").into()) }
}

fn start(stream: &Arc<Stream>, rate: f64) -> Result<Vec<JoinHandle<()>>> {
    let pace = Pace { start: Instant::now(), rate: rate / BATCH as f64 };
    let first = stream.next.load(Relaxed);
    let one = |_| {
        let stream = Arc::clone(stream);
        Ok(thread::Builder::new().stack_size(STACK).spawn(move || feed(&stream, pace, first))?)
    };
    (0..SENDERS).map(one).collect()
}

fn end(stream: &Stream, senders: Vec<JoinHandle<()>>) -> Result<()> {
    stream.stop.store(true, Relaxed);
    for sender in senders {
        sender.join().map_err(|_| "a sender panicked")?;
    }
    Ok(())
}

/// Sends batches when they are due. A batch that is refused is not sent again.
fn feed(stream: &Stream, pace: Pace, first: u64) {
    let mut connection = None;
    while !stream.stop.load(Relaxed) {
        let batch = stream.next.fetch_add(1, Relaxed);
        if batch >= stream.limit {
            return;
        }
        while Instant::now() < pace.due(batch - first) {
            if stream.stop.load(Relaxed) {
                // It was not sent, so nothing was promised.
                stream.refused.fetch_add(BATCH, Relaxed);
                return;
            }
            sleep(Duration::from_millis(2));
        }
        match post(&mut connection, stream.to, batch) {
            Ok(200) => stream.acknowledged[batch as usize].store(true, Relaxed),
            Ok(_) => {
                stream.refused.fetch_add(BATCH, Relaxed);
            }
            Err(_) => {
                stream.refused.fetch_add(BATCH, Relaxed);
                connection = None;
                sleep(Duration::from_millis(20));
            }
        }
    }
}

/// Posts a batch; returns the status.
fn post(connection: &mut Option<TcpStream>, to: SocketAddr, batch: u64) -> Result<u16> {
    if connection.is_none() {
        let made = TcpStream::connect(to)?;
        made.set_nodelay(true)?;
        made.set_read_timeout(Some(Duration::from_secs(90)))?;
        *connection = Some(made);
    }
    let stream = connection.as_mut().ok_or("no connection")?;
    let mut body = Vec::with_capacity(BATCH as usize * 500);
    for index in batch * BATCH..(batch + 1) * BATCH {
        data::line(Format::Json, index, &mut body);
        body.push(b'\n');
    }
    let head = format!(
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body)?;
    let mut answer = Vec::new();
    let mut block = [0; 4096];
    loop {
        let count = stream.read(&mut block)?;
        if count == 0 {
            return Err("the connection was closed".into());
        }
        answer.extend_from_slice(&block[..count]);
        let Some(end) = memmem::find(&answer, b"\r\n\r\n") else { continue };
        let text = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length: usize = length.and_then(|value| value.trim().parse().ok()).unwrap_or(0);
        if answer.len() < end + 4 + length {
            continue;
        }
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or("no status")?;
        if text.contains("connection: close") {
            *connection = None;
        }
        return Ok(status);
    }
}
