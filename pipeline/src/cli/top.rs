//! `logdrive top`: a running pipeline, full screen.

use std::process::ExitCode;
use std::time::Duration;

use crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::text::Line;
use ratatui::widgets::{Block, Cell, Row, Table};

use super::remote::{Api, unreachable_api};
use super::{Outcome, runtime};
use crate::api::status::{Node, Status};

/// How often the numbers change.
const INTERVAL: Duration = Duration::from_secs(1);

pub(super) fn run(api: &Api) -> Outcome {
    let runtime = runtime()?;
    let url = format!("{}/v1/status", api.api.trim_end_matches('/'));
    let fetch = || -> Result<Status, String> {
        runtime.block_on(async {
            let response = reqwest::get(&url).await.map_err(|e| unreachable_api(&api.api, &e))?;
            let body = response.bytes().await.map_err(|e| e.to_string())?;
            serde_json::from_slice(&body).map_err(|e| format!("{url} did not answer as expected: {e}"))
        })
    };
    // The first answer comes before the screen is taken, so that an error is readable.
    let mut before = fetch()?;
    let mut now = before.clone();
    let mut terminal = ratatui::try_init().map_err(|e| format!("`top` needs a terminal: {e}"))?;
    let outcome = loop {
        if let Err(e) = terminal.draw(|frame| draw(frame, &before, &now)) {
            break Err(e.to_string());
        }
        match wait_for_quit() {
            Ok(true) => break Ok(ExitCode::SUCCESS),
            Ok(false) => {}
            Err(e) => break Err(e.to_string()),
        }
        match fetch() {
            Ok(status) => before = std::mem::replace(&mut now, status),
            Err(e) => break Err(e),
        }
    };
    ratatui::restore();
    outcome
}

fn wait_for_quit() -> std::io::Result<bool> {
    let until = std::time::Instant::now() + INTERVAL;
    loop {
        let left = until.saturating_duration_since(std::time::Instant::now());
        if left.is_zero() || !event::poll(left)? {
            return Ok(false);
        }
        if let Event::Key(key) = event::read()? {
            let interrupt = key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
            if interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                return Ok(true);
            }
        }
    }
}

fn draw(frame: &mut Frame<'_>, before: &Status, now: &Status) {
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Min(3), Constraint::Length(1)])
            .areas(frame.area());
    let findings: Vec<_> = now.findings.iter().map(|(severity, n)| format!("{severity} {n}")).collect();
    let findings = if findings.is_empty() { "none".to_owned() } else { findings.join("  ") };
    let title = format!(" logdrive   findings: {findings}   rejects: {}", now.rejects);
    frame.render_widget(Line::from(title).bold(), head);
    let seconds = now.at_ms.saturating_sub(before.at_ms).max(1) as f64 / 1000.0;
    let rows = now.nodes.iter().enumerate().map(|(idx, node)| row(node, before.nodes.get(idx), seconds));
    let widths = [
        Constraint::Length(9),
        Constraint::Min(16),
        Constraint::Length(12),
        Constraint::Length(14),
        Constraint::Length(12),
        Constraint::Length(10),
        Constraint::Length(12),
        Constraint::Length(8),
    ];
    let header = ["kind", "name", "rows/s", "rows", "bytes/s", "rejects", "waiting", "lag"];
    let table = Table::new(rows, widths)
        .header(Row::new(header).style(Style::new().fg(Color::DarkGray)))
        .block(Block::bordered());
    frame.render_widget(table, body);
    frame.render_widget(Line::from(" q quits").fg(Color::DarkGray), foot);
}

fn row<'a>(node: &'a Node, before: Option<&Node>, seconds: f64) -> Row<'a> {
    let rate = |now: u64, old: fn(&Node) -> u64| {
        let old = before.map_or(0, old);
        now.saturating_sub(old) as f64 / seconds
    };
    let rows = rate(node.rows, |n| n.rows);
    let bytes = rate(node.bytes, |n| n.bytes);
    let waiting = node.waiting_bytes + node.buffer_bytes;
    let lag = if node.kind == "source" { format!("{:.1}s", node.lag_seconds) } else { String::new() };
    let row = Row::new([
        Cell::from(node.kind.as_str()),
        Cell::from(node.name.as_str()),
        Cell::from(format!("{rows:.0}")),
        Cell::from(node.rows.to_string()),
        Cell::from(if bytes > 0.0 { bytesize::ByteSize(bytes as u64).to_string() } else { String::new() }),
        Cell::from(node.rejects.to_string()),
        Cell::from(if waiting > 0 { bytesize::ByteSize(waiting).to_string() } else { String::new() }),
        Cell::from(lag),
    ]);
    match (node.up, node.rejects) {
        (false, _) => row.fg(Color::Red),
        (true, 1..) => row.fg(Color::Yellow),
        _ => row,
    }
}
