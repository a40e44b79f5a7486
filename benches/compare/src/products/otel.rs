//! The OpenTelemetry Collector, built from Go modules.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Product, Site, run, write};
use crate::error::Result;
use crate::process::Launch;
use crate::workload::{Output, Way, Workload};

const MAIN: &str = include_str!("../../collector/main.go");
const MODULES: &str = include_str!("../../collector/go.mod");
const VERSION: &str = "0.149.0";

const CHANGE: &str = r#"  filter: { error_mode: ignore, logs: { log_record: [ 'body["level"] == "debug"' ] } }
  transform:
    error_mode: ignore
    log_statements:
      - context: log
        statements:
          - set(body["duration_ms"], body["latency_ms"])
          - delete_key(body, "latency_ms")
          - set(body["env"], "prod")
          - set(body["pipeline"], "p1")
          - set(body["region"], "eu-1")
"#;

const ACCESS: &str = r#"{ type: regex_parser, parse_from: body, parse_to: body, regex: '^(?P<ip>\S+) (?P<ident>\S+) (?P<user>\S+) \[(?P<time>[^\]]+)\] "(?P<method>\S+) (?P<path>\S+) HTTP/(?P<version>[^"]+)" (?P<status>[0-9]+) (?P<bytes>[0-9]+) "(?P<referrer>[^"]*)" "(?P<agent>[^"]*)"$' }"#;

/// The collector as built.
pub(super) struct Collector {
    program: PathBuf,
}

impl Collector {
    /// Builds it unless it is there.
    pub(super) fn get(folder: &Path) -> Result<Self> {
        let program = folder.join(format!("otelcol-{VERSION}"));
        if !program.exists() {
            let source = folder.join("otelcol");
            fs::create_dir_all(&source)?;
            write(&source, "main.go", MAIN)?;
            write(&source, "go.mod", MODULES)?;
            run(Command::new("go").args(["mod", "tidy"]).current_dir(&source))?;
            run(Command::new("go")
                .args(["build", "-trimpath", "-o"])
                .arg(&program)
                .arg(".")
                .current_dir(&source))?;
        }
        Ok(Self { program })
    }
}

impl Product for Collector {
    fn name(&self) -> &str {
        "otel"
    }

    fn version(&self) -> &str {
        VERSION
    }

    fn way(&self, workload: Workload) -> Option<Way> {
        let way = Way { output: Output::Http, geo: false, note: "writes OTLP/JSON over HTTP" };
        match workload {
            Workload::W1 => Some(Way { output: Output::None, note: "", ..way }),
            Workload::W3 => Some(Way { note: "writes OTLP/JSON over HTTP; no geoip", ..way }),
            Workload::W5 | Workload::W7 => None,
            Workload::W2 | Workload::W4 | Workload::W6 => Some(way),
        }
    }

    fn launch(&self, workload: Workload, site: &Site<'_>) -> Result<Launch> {
        let parser = if workload == Workload::W4 {
            ACCESS
        } else {
            "{ type: json_parser, parse_from: body, parse_to: body }"
        };
        let (receiver, input) = match workload {
            Workload::W6 => {
                ("filelog", format!("include: [\"{}\"]\n    start_at: beginning", site.file.display()))
            }
            _ => ("tcplog", format!("listen_address: 127.0.0.1:{}\n    max_log_size: 1MiB", site.input)),
        };
        let (change, changes) = match workload {
            Workload::W3 => (CHANGE, "filter, transform, "),
            _ => ("", ""),
        };
        let (exporter, settings) = match workload {
            Workload::W1 => ("nop", "{}".to_owned()),
            _ => (
                "otlphttp",
                format!(
                    "{{ endpoint: \"http://{}\", encoding: json, compression: none, \
                     sending_queue: {{ queue_size: 100, block_on_overflow: true }} }}",
                    site.output
                ),
            ),
        };
        let text = format!(
            "receivers:\n  {receiver}:\n    {input}\n    operators:\n      - {parser}\n\
             processors:\n  batch: {{ send_batch_size: 2000, send_batch_max_size: 2000, timeout: 200ms }}\n{change}\
             exporters:\n  {exporter}: {settings}\n\
             service:\n  telemetry: {{ logs: {{ level: warn }}, metrics: {{ level: none }} }}\n  pipelines:\n    \
             logs: {{ receivers: [{receiver}], processors: [{changes}batch], exporters: [{exporter}] }}\n"
        );
        let config = write(site.folder, "collector.yaml", &text)?;
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(config).current_dir(site.folder);
        Ok(Launch { command, log: site.folder.join("log") })
    }
}
