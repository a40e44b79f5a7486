//! Logdrive itself, as its users run it: a binary and a YAML file.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{Product, Site, run, write};
use crate::error::Result;
use crate::process::Launch;
use crate::workload::{Way, Workload};

/// The fields of the JSON lines.
pub const SCHEMA: &str = r#"{ fields: { "@timestamp": timestamp, type: string, level: string, message: string, user_id: string, session_id: string, ip: string, amount: float64, currency: string, country: string, user_agent: string, url: string, status: int64, latency_ms: float64, tenant: string } }"#;

/// Where what was received waits until it is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// On disk, synced: the default.
    Disk,
    /// In memory.
    Memory,
}

/// Logdrive with one kind of buffer.
pub struct Logdrive {
    binary: PathBuf,
    buffer: Buffer,
    version: String,
}

impl Logdrive {
    /// The binary at `binary`.
    pub fn new(binary: &Path, buffer: Buffer) -> Result<Self> {
        let said = run(Command::new(binary).arg("--version"))?;
        let version = said.split_whitespace().nth(1).unwrap_or("?").to_owned();
        Ok(Self { binary: binary.to_owned(), buffer, version })
    }

    /// Starts it with a given pipeline. `data_dir` is set to the run's folder.
    pub fn launch_text(&self, pipeline: &str, folder: &Path) -> Result<Launch> {
        let text = format!("data_dir: \"{}\"\n{pipeline}", folder.join("data").display());
        let config = write(folder, "pipeline.yaml", &text)?;
        let mut command = Command::new(&self.binary);
        command.args(["run", "--quiet"]).arg(config).current_dir(folder);
        Ok(Launch { command, log: folder.join("log") })
    }

    /// What `logdrive sql` prints for a query, as CSV.
    pub fn query(&self, sql: &str, folder: &Path) -> Result<String> {
        run(Command::new(&self.binary).args(["sql", "--format", "csv", sql]).current_dir(folder))
    }
}

impl Product for Logdrive {
    fn name(&self) -> &str {
        match self.buffer {
            Buffer::Disk => "logdrive",
            Buffer::Memory => "logdrive-memory",
        }
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn is_ours(&self) -> bool {
        true
    }

    fn way(&self, workload: Workload) -> Option<Way> {
        let note = match (workload, self.buffer) {
            // A file needs no buffer: it is one.
            (Workload::W6, Buffer::Memory) => return None,
            (Workload::W6, Buffer::Disk) => "",
            (_, Buffer::Disk) => "every message synced to disk before it is processed",
            (_, Buffer::Memory) => "buffer in memory, as the peers'",
        };
        Some(Way { note, ..Way::plain(workload) })
    }

    fn received(&self, _workload: Workload, api: u16) -> Option<u64> {
        let text = metrics(api).ok()?;
        let line =
            text.lines().find_map(|line| line.strip_prefix("logdrive_sink_rows_total{sink=\"out\"} "))?;
        line.trim().parse().ok()
    }

    fn launch(&self, workload: Workload, site: &Site<'_>) -> Result<Launch> {
        let decoder = match workload {
            Workload::W4 => "decoder: access_log".to_owned(),
            Workload::W7 => "decoder: syslog".to_owned(),
            _ => format!("decoder: json, schema: {SCHEMA}"),
        };
        let buffer = match self.buffer {
            Buffer::Disk => "",
            Buffer::Memory => "buffer: { mode: memory }, ",
        };
        let input = match workload {
            Workload::W6 => format!("type: file, paths: [\"{}\"], {decoder}", site.file.display()),
            _ => {
                let many = match site.connections {
                    0..1000 => String::new(),
                    n => format!("max_connections: {}, max_connections_per_ip: {}, ", n + 100, n + 100),
                };
                format!("type: tcp, listen: \"127.0.0.1:{}\", {buffer}{many}{decoder}", site.input)
            }
        };
        let (streams, from) = match workload {
            Workload::W3 => (
                format!(
                    r#"streams:
  changed:
    from: [in]
    steps:
      - where: level <> 'debug'
      - geoip: {{ field: ip, into: geo, database: "{}", fields: [country_iso_code, city_name] }}
      - rename: {{ latency_ms: duration_ms }}
      - add: {{ env: prod, pipeline: p1, region: eu-1 }}
"#,
                    site.places.display()
                ),
                "changed",
            ),
            _ => (String::new(), "in"),
        };
        let output = match workload {
            Workload::W1 => "type: blackhole".to_owned(),
            // Uncompressed, as the peers send it.
            Workload::W5 => format!(
                "type: elasticsearch, endpoint: [\"http://{}\"], index: \"logs-2026.11.21\", gzip: false",
                site.output
            ),
            _ => format!("type: tcp, endpoint: \"{}\"", site.output),
        };
        // Nobody counts what is discarded but the product itself.
        let api = match workload {
            Workload::W1 => format!("{{ listen: \"127.0.0.1:{}\" }}", site.api),
            _ => "off".to_owned(),
        };
        self.launch_text(
            &format!("api: {api}\nsources:\n  in: {{ {input} }}\n{streams}sinks:\n  out: {{ {output}, from: [{from}] }}\n"),
            site.folder,
        )
    }
}

/// The text of `/metrics`.
fn metrics(port: u16) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
