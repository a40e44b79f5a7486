//! syslog-ng, from Debian.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Product, Site, debian, run, write};
use crate::error::Result;
use crate::process::Launch;
use crate::workload::{Way, Workload};

const PACKAGES: &[&str] = &[
    "syslog-ng-core",
    "syslog-ng-mod-http",
    "syslog-ng-mod-geoip2",
    "libglib2.0-0",
    "libivykis0",
    "libjson-c5",
    "libmaxminddb0",
    "libnet1",
    "libpcre3",
    "libwrap0",
];

const ACCESS: &str = r#"parser p { regexp-parser(prefix(".j.") patterns('^(?<ip>\S+) (?<ident>\S+) (?<user>\S+) \[(?<time>[^\]]+)\] "(?<method>\S+) (?<path>\S+) HTTP/(?<version>[^"]+)" (?<status>\d+) (?<bytes>\d+) "(?<referrer>[^"]*)" "(?<agent>[^"]*)"$')); };"#;

const REWRITE: &str = r#"filter wanted { not match("debug" value(".j.level") type(string)); };
rewrite change {
  set("${.j.latency_ms}" value(".j.duration_ms")); unset(value(".j.latency_ms"));
  set("prod" value(".j.env")); set("p1" value(".j.pipeline")); set("eu-1" value(".j.region"));
};"#;

/// syslog-ng as unpacked.
pub(super) struct SyslogNg {
    root: PathBuf,
    version: String,
}

impl SyslogNg {
    /// Downloads it unless it is there.
    pub(super) fn get(folder: &Path) -> Result<Self> {
        let root = debian::unpack(folder, "syslogng", PACKAGES)?;
        let mut command = Command::new(root.join("usr/sbin/syslog-ng"));
        let said = run(command.arg("--version").env("LD_LIBRARY_PATH", debian::libraries(&root)))?;
        let version = said.split(['(', ')']).nth(1).unwrap_or("?").to_owned();
        Ok(Self { root, version })
    }
}

impl Product for SyslogNg {
    fn name(&self) -> &str {
        "syslogng"
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn way(&self, workload: Workload) -> Option<Way> {
        let plain = Way::plain(workload);
        Some(match workload {
            Workload::W3 => Way { note: "writes the whole geo record", ..plain },
            _ => plain,
        })
    }

    fn launch(&self, workload: Workload, site: &Site<'_>) -> Result<Launch> {
        let output = site.output.port();
        // Of the version 3.38.1 the series is 3.38.
        let series = self.version.rsplit_once('.').map_or(self.version.as_str(), |(series, _)| series);
        let flags = if workload == Workload::W7 { "syslog-protocol" } else { "no-parse" };
        let window = 40_000.max(site.connections * 100);
        let input = match workload {
            Workload::W6 => format!(
                "file(\"{}\" flags(no-parse) log-msg-size(65536) log-iw-size(20000) log-fetch-limit(1000) read-old-records(yes))",
                site.file.display()
            ),
            _ => format!(
                "network(ip(\"127.0.0.1\") port({}) transport(\"tcp\") flags({flags}) log-msg-size(65536) \
                 max-connections({}) log-iw-size({window}) log-fetch-limit(1000))",
                site.input,
                site.connections + 1,
            ),
        };
        let json = "parser p { json-parser(prefix(\".j.\")); };";
        let (parts, path) = match workload {
            Workload::W3 => (
                format!(
                    "{json}\nparser g {{ geoip2(\"${{.j.ip}}\" prefix(\".j.geo.\") database(\"{}\")); }};\n{REWRITE}",
                    site.places.display()
                ),
                "parser(p); filter(wanted); parser(g); rewrite(change);",
            ),
            Workload::W4 => (ACCESS.to_owned(), "parser(p);"),
            Workload::W7 => (String::new(), ""),
            _ => (json.to_owned(), "parser(p);"),
        };
        let fields = "$(format-json .j.* --shift-levels 2)";
        let end = match workload {
            Workload::W1 => String::new(),
            Workload::W5 => format!(
                "http(url(\"http://127.0.0.1:{output}/_bulk\") method(\"POST\") headers(\"Content-Type: application/x-ndjson\") \
                 workers(2) batch-lines(2000) batch-bytes(5242880) batch-timeout(1000) time-reopen(1) \
                 body(\"{{\\\"create\\\":{{\\\"_index\\\":\\\"logs-2026.11.21\\\"}}}}\\n{fields}\\n\") delimiter(\"\"))"
            ),
            Workload::W7 => format!(
                "network(\"127.0.0.1\" port({output}) transport(\"tcp\") \
                 template(\"$(format-json --scope rfc5424 --key ISODATE --exclude DATE)\\n\"))"
            ),
            _ => {
                format!("network(\"127.0.0.1\" port({output}) transport(\"tcp\") template(\"{fields}\\n\"))")
            }
        };
        let http = if workload == Workload::W5 { "@module http\n" } else { "" };
        let text = format!(
            "@version: {series}\n@module json-plugin\n{http}\
             options {{ log-fifo-size(200000); threaded(yes); stats-freq(0); keep-hostname(yes); use-dns(no); }};\n\
             source in {{ {input}; }};\n{parts}\ndestination out {{ {end}{} }};\n\
             log {{ source(in); {path} destination(out); flags(flow-control); }};\n",
            if end.is_empty() { "" } else { ";" }
        );
        let config = write(site.folder, "syslog-ng.conf", &text)?;
        let mut command = Command::new(self.root.join("usr/sbin/syslog-ng"));
        command.args(["-F", "--no-caps", "-f"]).arg(config);
        for (option, file) in [("-R", "persist"), ("-p", "pid"), ("-c", "control")] {
            command.arg(option).arg(site.folder.join(file));
        }
        command.arg(format!("--module-path={}", self.root.join("usr/lib/syslog-ng").join(series).display()));
        command.env("LD_LIBRARY_PATH", debian::libraries(&self.root)).current_dir(site.folder);
        Ok(Launch { command, log: site.folder.join("log") })
    }
}
