//! W12: very many connections at a time.

use std::fmt::Write as _;
use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::Cast;
use crate::data;
use crate::error::{Result, fail};
use crate::products::Product;
use crate::run::Journal;
use crate::say;
use crate::stage::Setting;
use crate::system;
use crate::workload::Workload;

/// Lines of each connection.
const LINES: u64 = 20;
/// How long all connections together may take to be opened.
const CONNECT: Duration = Duration::from_secs(60);
const STALL: Duration = Duration::from_secs(20);

#[derive(Serialize)]
struct Found<'a> {
    name: &'static str,
    product: &'a str,
    connections: u32,
    /// Until all were connected.
    connected: f64,
    /// From the first byte to the last line.
    seconds: f64,
    cpu: f64,
    memory: u64,
    faults: String,
}

/// Runs it.
pub(super) fn run(cast: &Cast<'_>, journal: &mut Journal) -> Result<String> {
    let allowed = system::raise_open_files(u64::from(cast.connections) + 2000);
    let count = u32::try_from(allowed.saturating_sub(2000)).unwrap_or(u32::MAX).min(cast.connections);
    let mut out = format!(
        "## W12: {count} connections\n\nThe pipeline of W2. All connections are opened, then each sends {LINES} lines in turn, one at a time, and is \
         closed.\n\n| product | connected after s | all arrived after s | CPU-s per M events | peak RSS MB | complete and right |\n\
         |---|---:|---:|---:|---:|---|\n"
    );
    for product in cast.all.iter().filter(|product| product.way(Workload::W2).is_some()) {
        match once(cast, product.as_ref(), count) {
            Ok(found) => {
                let right = if found.faults.is_empty() {
                    "yes".to_owned()
                } else {
                    format!("**no**: {}", found.faults)
                };
                let lines = f64::from(count) * LINES as f64;
                writeln!(
                    out,
                    "| {} | {:.2} | {:.2} | {:.2} | {:.0} | {right} |",
                    found.product,
                    found.connected,
                    found.seconds,
                    found.cpu / lines * 1e6,
                    found.memory as f64 / 1e6,
                )?;
                say(&format!("W12  {:<16} {:.2} s {}", found.product, found.seconds, found.faults));
                journal.add(&found)?;
            }
            Err(problem) => {
                say(&format!("W12  {:<16} {problem}", product.name()));
                writeln!(out, "| {} | **{problem}** | | | | |", product.name())?;
            }
        }
    }
    Ok(out)
}

fn once<'a>(cast: &Cast<'_>, product: &'a dyn Product, count: u32) -> Result<Found<'a>> {
    let mut stage = cast.bench.stage(&Setting {
        product,
        workload: Workload::W2,
        name: "W12",
        lines: u64::from(count) * LINES,
        from_file: false,
        connections: count,
        remember_ids: false,
    })?;
    let before = stage.settle()?;
    let start = Instant::now();
    let connections = open(stage.input(), count)?;
    let connected = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let sender = thread::spawn(move || send(connections));
    let (mut seen, mut progress) = (0, Instant::now());
    while !(sender.is_finished() && stage.ledger.is_complete()) {
        stage.process.check()?;
        if stage.ledger.arrived() > seen {
            (seen, progress) = (stage.ledger.arrived(), Instant::now());
        }
        if progress.elapsed() > STALL {
            break;
        }
        sleep(Duration::from_millis(10));
    }
    let (cpu, memory) = (stage.process.cpu() - before, stage.process.peak_memory());
    let seconds = stage.ledger.latest().saturating_duration_since(start).as_secs_f64();
    let mut faults = stage.ledger.verdict().faults();
    // A sender that is stuck in a write is freed by the end of the product.
    stage.end();
    match sender.join() {
        Ok(Ok(())) => {}
        Ok(Err(problem)) => write!(faults, " (sending: {problem})")?,
        Err(_) => faults += " (the sender panicked)",
    }
    Ok(Found {
        name: "W12",
        product: product.name(),
        connections: count,
        connected,
        seconds,
        cpu,
        memory,
        faults,
    })
}

fn open(to: SocketAddr, count: u32) -> Result<Vec<TcpStream>> {
    let deadline = Instant::now() + CONNECT;
    let mut open = Vec::with_capacity(count as usize);
    while open.len() < count as usize {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(format!("only {} of {count} connections within {CONNECT:?}", open.len()).into());
        }
        let one = TcpStream::connect_timeout(&to, left.min(Duration::from_secs(10)));
        open.push(one.map_err(fail(format_args!("connection {} of {count}", open.len() + 1)))?);
    }
    Ok(open)
}

fn send(mut connections: Vec<TcpStream>) -> Result<()> {
    let count = connections.len() as u64;
    let mut text = Vec::new();
    for nth in 0..LINES {
        for (connection, stream) in (0..).zip(connections.iter_mut()) {
            text.clear();
            data::line(Workload::W2.format(), nth * count + connection, &mut text);
            text.push(b'\n');
            stream.write_all(&text).map_err(fail(format_args!("line {nth} of connection {connection}")))?;
        }
    }
    for stream in &connections {
        stream.shutdown(Shutdown::Write)?;
    }
    Ok(())
}
