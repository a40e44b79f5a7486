//! The live status line: one line at the bottom of a terminal, above which log lines scroll.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use crate::api::status::Status;
use crate::topology::View;

/// How often the line is drawn.
const INTERVAL: Duration = Duration::from_millis(500);

/// The status line; clones draw the same line.
#[derive(Clone, Debug)]
pub(in crate::cli) struct StatusLine {
    enabled: bool,
    text: Arc<Mutex<String>>,
}

impl StatusLine {
    pub(in crate::cli) fn new(enabled: bool) -> Self {
        Self { enabled, text: Arc::default() }
    }

    /// Where log lines go: each removes the status line, is written, and draws it again.
    pub(in crate::cli) fn writer(&self) -> Above {
        Above(self.clone())
    }

    /// Prints a line above the status line.
    pub(in crate::cli) fn print(&self, line: &str) {
        self.above(format!("{line}\n").as_bytes());
    }

    /// Removes the line for good.
    pub(in crate::cli) fn clear(&self) {
        if self.enabled {
            self.lock().clear();
            self.above(b"");
        }
    }

    /// Draws until aborted.
    pub(in crate::cli) async fn draw(self, view: View) {
        if !self.enabled {
            return;
        }
        let mut before = Status::read(&view.metrics, &view.names);
        loop {
            tokio::time::sleep(INTERVAL).await;
            let now = Status::read(&view.metrics, &view.names);
            *self.lock() = render(&before, &now);
            self.above(b"");
            before = now;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, String> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn above(&self, bytes: &[u8]) {
        let mut stderr = io::stderr().lock();
        let status = if self.enabled { self.lock().clone() } else { String::new() };
        let erase: &[u8] = if self.enabled { b"\r\x1b[2K" } else { b"" };
        // With standard error gone there is nobody to tell.
        stderr.write_all(&[erase, bytes, status.as_bytes()].concat()).and_then(|()| stderr.flush()).ok();
    }
}

/// One line: rates per source and stream, lag, buffered bytes, rejects, findings.
fn render(before: &Status, now: &Status) -> String {
    let seconds = now.at_ms.saturating_sub(before.at_ms).max(1) as f64 / 1000.0;
    let mut parts = Vec::new();
    let (mut lag, mut buffered) = (0.0_f64, 0);
    for (node, old) in now.nodes.iter().zip(&before.nodes) {
        lag = lag.max(node.lag_seconds);
        buffered += node.buffer_bytes + node.waiting_bytes;
        if node.kind == "source" || node.kind == "stream" {
            let rate = node.rows.saturating_sub(old.rows) as f64 / seconds;
            parts.push(format!("{} {}/s", node.name, si(rate)));
        }
        if !node.up {
            parts.push(format!("{} DOWN", node.name));
        }
    }
    let findings: u64 = now.findings.values().sum();
    let waiting = bytesize::ByteSize(buffered);
    let mut line = format!(
        "{} │ lag {lag:.1}s │ waiting {waiting} │ rejects {} │ findings {findings}",
        parts.join("  "),
        now.rejects
    );
    let width = crossterm::terminal::size().map_or(100, |(width, _)| usize::from(width)).saturating_sub(1);
    if line.chars().count() > width {
        line = line.chars().take(width.saturating_sub(1)).chain(['…']).collect();
    }
    line
}

/// A number with three digits and a unit prefix.
fn si(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{:.1}M", v / 1e6),
        v if v >= 1e3 => format!("{:.1}k", v / 1e3),
        v => format!("{v:.0}"),
    }
}

/// Writes log lines above the status line.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Above(StatusLine);

impl Write for Above {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.above(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Above {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
