//! rsyslog, from Debian.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Product, Site, debian, run, write};
use crate::error::Result;
use crate::process::Launch;
use crate::workload::{Way, Workload};

const PACKAGES: &[&str] = &["rsyslog", "rsyslog-elasticsearch", "libestr0", "libfastjson4", "liblognorm5"];

/// A queue that blocks when it is full, as the default would drop; two workers.
const QUEUE: &str = r#"main_queue(queue.type="LinkedList" queue.size="200000" queue.discardmark="200000"
  queue.lightdelaymark="150000" queue.timeoutenqueue="600000" queue.dequeuebatchsize="2048"
  queue.workerthreads="2" queue.workerthreadminimummessages="20000")"#;

const ACCESS: &str = r#"version=2
rule=:%ip:word% %ident:word% %user:word% [%time:char-to:]%] "%method:word% %path:word% HTTP/%version:char-to:"%" %status:number% %bytes:number% "%referrer:char-to:"%" "%agent:char-to:"%"
"#;

const ENTRY: &str = r#"string="{\"timestamp\":\"%timestamp:::date-rfc3339%\",\"host\":\"%hostname:::json%\",\"severity\":\"%syslogseverity-text%\",\"facility\":\"%syslogfacility-text%\",\"app\":\"%app-name:::json%\",\"pid\":\"%procid:::json%\",\"msgid\":\"%msgid:::json%\",\"data\":%$!rfc5424-sd%,\"message\":\"%msg:::json%\"}""#;

/// rsyslog as unpacked.
pub(super) struct Rsyslog {
    root: PathBuf,
    version: String,
}

impl Rsyslog {
    /// Downloads it unless it is there.
    pub(super) fn get(folder: &Path) -> Result<Self> {
        let root = debian::unpack(folder, "rsyslog", PACKAGES)?;
        let mut command = Command::new(root.join("usr/sbin/rsyslogd"));
        let said = run(command.arg("-v").env("LD_LIBRARY_PATH", debian::libraries(&root)))?;
        let version = said.split_whitespace().nth(1).unwrap_or("?").to_owned();
        Ok(Self { root, version })
    }
}

impl Product for Rsyslog {
    fn name(&self) -> &str {
        "rsyslog"
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn way(&self, workload: Workload) -> Option<Way> {
        let plain = Way::plain(workload);
        Some(match workload {
            Workload::W3 => Way { geo: false, note: "no geoip in Debian's build", ..plain },
            Workload::W6 => Way { note: "adds the file's metadata", ..plain },
            _ => plain,
        })
    }

    fn launch(&self, workload: Workload, site: &Site<'_>) -> Result<Launch> {
        let folder = site.folder.display();
        let output = site.output.port();
        let input = match workload {
            Workload::W6 => format!(
                "module(load=\"imfile\")\ninput(type=\"imfile\" file=\"{}\" tag=\"f\" ruleset=\"all\")",
                site.file.display()
            ),
            _ => format!(
                "module(load=\"imptcp\")\ninput(type=\"imptcp\" address=\"127.0.0.1\" port=\"{}\" \
                 socketBacklog=\"4000\" SupportOctetCountedFraming=\"off\" ruleset=\"all\")",
                site.input
            ),
        };
        let json = ("mmjsonparse", r#"action(type="mmjsonparse" cookie="" useRawMsg="on")"#.to_owned());
        let (module, mut steps) = match workload {
            Workload::W4 => {
                let rules = write(site.folder, "access.rb", ACCESS)?;
                let action =
                    format!("action(type=\"mmnormalize\" useRawMsg=\"on\" ruleBase=\"{}\")", rules.display());
                ("mmnormalize", action)
            }
            Workload::W7 => ("mmpstrucdata", r#"action(type="mmpstrucdata")"#.to_owned()),
            _ => json,
        };
        if workload == Workload::W3 {
            steps += r#"
  if $!level == "debug" then stop
  set $!duration_ms = $!latency_ms; unset $!latency_ms;
  set $!env = "prod"; set $!pipeline = "p1"; set $!region = "eu-1";"#;
        }
        let template = if workload == Workload::W7 { ENTRY } else { r#"string="%$!all-json-plain%""# };
        let (more, end) = match workload {
            Workload::W1 => ("", String::new()),
            Workload::W5 => (
                "module(load=\"omelasticsearch\")",
                format!(
                    "action(type=\"omelasticsearch\" server=\"127.0.0.1\" serverport=\"{output}\" template=\"out\" \
                     searchIndex=\"logs-2026.11.21\" searchType=\"\" bulkmode=\"on\" maxbytes=\"10m\" \
                     action.resumeRetryCount=\"-1\" action.resumeInterval=\"1\")"
                ),
            ),
            _ => (
                "",
                format!(
                    "action(type=\"omfwd\" target=\"127.0.0.1\" port=\"{output}\" protocol=\"tcp\" template=\"out\" \
                     TCP_Framing=\"traditional\" action.resumeRetryCount=\"-1\")"
                ),
            ),
        };
        let text = format!(
            "global(workDirectory=\"{folder}\" maxMessageSize=\"64k\")\n{QUEUE}\nmodule(load=\"{module}\")\n{more}\n\
             template(name=\"out\" type=\"string\" {template})\n{input}\nruleset(name=\"all\") {{\n  {steps}\n  {end}\n  stop\n}}\n"
        );
        let config = write(site.folder, "rsyslog.conf", &text)?;
        let mut command = Command::new(self.root.join("usr/sbin/rsyslogd"));
        let modules = self.root.join(format!("usr/lib/{}-linux-gnu/rsyslog", std::env::consts::ARCH));
        command.args(["-n", "-iNONE", "-f"]).arg(config).arg("-M").arg(modules).current_dir(site.folder);
        command.env("LD_LIBRARY_PATH", debian::libraries(&self.root));
        Ok(Launch { command, log: site.folder.join("log") })
    }
}
