//! rsyslog and syslog-ng of Debian as senders. Where they cannot be had, the tests say so and pass.

use std::io::{Write as _, stdout};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use logdrive_connectors::NotDurable;

use crate::certificates::Certificates;
use crate::packages::{RSYSLOG, SYSLOG_NG, libraries, unpacked};
use crate::support::{Collected, eventually, lines, start_on_port};

const N_MESSAGES: usize = 2000;

/// A sender that runs until it is dropped.
struct Sender {
    child: Child,
    dir: tempfile::TempDir,
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Sender {
    fn said(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

/// The lines that are sent, in a file.
fn input(dir: &Path) -> PathBuf {
    let path = dir.join("input");
    let text: String = (0..N_MESSAGES).map(|n| format!("message {n} with \u{e9}\n")).collect();
    std::fs::write(&path, text).unwrap();
    path
}

fn start(root: &Path, dir: tempfile::TempDir, command: &mut Command) -> Sender {
    let log = std::fs::File::create(dir.path().join("log")).unwrap();
    command.env("LD_LIBRARY_PATH", libraries(root)).current_dir(dir.path());
    let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    Sender { child, dir }
}

/// rsyslog that sends the lines of a file by this action.
fn rsyslog(root: &Path, head: &str, action: &str) -> Sender {
    rsyslog_with(root, head, "", action)
}

/// The same with a module that it loads.
fn rsyslog_with(root: &Path, head: &str, module: &str, action: &str) -> Sender {
    let dir = tempfile::tempdir().unwrap();
    let (work, input) = (dir.path().display(), input(dir.path()));
    let config = format!(
        r#"global(workDirectory="{work}" {head})
{module}
module(load="imfile" mode="polling" pollingInterval="1")
input(type="imfile" File="{}" Tag="numbers:" Facility="local0" Severity="notice")
action({action} action.resumeRetryCount="-1" action.resumeInterval="1" queue.type="linkedList" queue.size="100000")
"#,
        input.display()
    );
    std::fs::write(dir.path().join("conf"), config).unwrap();
    let modules = root.join(format!("usr/lib/{}-linux-gnu/rsyslog", std::env::consts::ARCH));
    let mut command = Command::new(root.join("usr/sbin/rsyslogd"));
    command.args(["-n", "-f", "conf", "-i"]).arg(dir.path().join("pid")).arg("-M").arg(modules);
    start(root, dir, &mut command)
}

/// syslog-ng that sends the lines of a file to this destination.
fn syslog_ng(root: &Path, destination: &str) -> Sender {
    let dir = tempfile::tempdir().unwrap();
    let input = input(dir.path());
    let config = format!(
        "@version: 3.38\noptions {{ keep-hostname(yes); stats-freq(0); }};\n\
         source in {{ file(\"{}\" program-override(\"numbers\") flags(no-parse) read-old-records(yes)); }};\n\
         destination out {{ {destination} }};\n\
         log {{ source(in); destination(out); flags(flow-control); }};\n",
        input.display()
    );
    std::fs::write(dir.path().join("conf"), config).unwrap();
    let mut command = Command::new(root.join("usr/sbin/syslog-ng"));
    command.args(["-F", "--no-caps", "-f", "conf", "-R", "persist", "-p", "pid", "-c", "control"]);
    command.arg(format!("--module-path={}", root.join("usr/lib/syslog-ng/3.38").display()));
    start(root, dir, &mut command)
}

/// The packages, or a note that the test is skipped.
macro_rules! peer {
    ($test:literal, $name:literal, $packages:expr) => {
        match unpacked($name, $packages) {
            Ok(root) => root,
            Err(why) => {
                writeln!(&mut stdout(), "skipped: {}: {why}", $test).unwrap();
                return;
            }
        }
    };
}

/// Waits until every message is there, each of which begins with a priority; returns the texts of the numbers.
async fn all(collected: &Collected, sender: &Sender) -> Vec<String> {
    let numbers = || {
        let mut found: Vec<usize> = lines(&collected.now())
            .iter()
            .filter_map(|line| line.split("message ").nth(1)?.split(' ').next()?.parse().ok())
            .collect();
        found.sort_unstable();
        found.dedup();
        found.len()
    };
    let waited = std::panic::AssertUnwindSafe(eventually(|| numbers() == N_MESSAGES));
    if futures::FutureExt::catch_unwind(waited).await.is_err() {
        panic!("{} of {N_MESSAGES} arrived; {}", numbers(), sender.said());
    }
    let all = lines(&collected.now());
    let numbered: Vec<String> = all.into_iter().filter(|line| line.contains("message ")).collect();
    assert!(
        numbered.iter().all(|line| line.starts_with('<') && line.ends_with(" with \u{e9}")),
        "{numbered:?}"
    );
    numbered
}

#[tokio::test(flavor = "multi_thread")]
async fn rsyslog_over_udp_and_tcp_in_both_framings() {
    let root = peer!("rsyslog_over_udp_and_tcp_in_both_framings", "rsyslog", RSYSLOG);
    for (protocol, more) in [
        ("tcp", r#"TCP_Framing="traditional""#),
        ("tcp", r#"TCP_Framing="octet-counted" template="RSYSLOG_SyslogProtocol23Format""#),
        ("tcp", r#"TCP_Framing="traditional" TCP_FrameDelimiter="0""#),
        ("udp", r#"template="RSYSLOG_ForwardFormat""#),
    ] {
        let (collected, intake) = Collected::all();
        let (running, addr) = start_on_port("{type: syslog, listen: \"127.0.0.1:PORT\"}", &intake).await;
        let action =
            format!(r#"type="omfwd" target="127.0.0.1" port="{}" protocol="{protocol}" {more}"#, addr.port());
        let sender = rsyslog(&root, "", &action);
        assert_eq!(all(&collected, &sender).await.len(), N_MESSAGES, "{more}");
        drop(sender);
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rsyslog_over_tls_with_a_certificate() {
    let root = peer!("rsyslog_over_tls_with_a_certificate", "rsyslog", RSYSLOG);
    let certificates = Certificates::new();
    for driver in ["ossl", "gtls"] {
        let (collected, intake) = Collected::all();
        let yaml = format!("{{type: syslog, listen: \"127.0.0.1:PORT\", {}}}", certificates.mutual());
        let (running, addr) = start_on_port(&yaml, &intake).await;
        let head = format!(
            r#"DefaultNetstreamDriver="{driver}" DefaultNetstreamDriverCAFile="{}" DefaultNetstreamDriverCertFile="{}" DefaultNetstreamDriverKeyFile="{}""#,
            certificates.path("ca.pem").display(),
            certificates.path("client.pem").display(),
            certificates.path("client.key").display()
        );
        let action = format!(
            r#"type="omfwd" target="127.0.0.1" port="{}" protocol="tcp" TCP_Framing="octet-counted" StreamDriver="{driver}" StreamDriverMode="1" StreamDriverAuthMode="x509/name" StreamDriverPermittedPeers="localhost""#,
            addr.port()
        );
        let sender = rsyslog(&root, &head, &action);
        assert_eq!(all(&collected, &sender).await.len(), N_MESSAGES, "{driver}");
        drop(sender);
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rsyslog_over_relp_repeats_what_was_not_acknowledged() {
    let root = peer!("rsyslog_over_relp_repeats_what_was_not_acknowledged", "rsyslog", RSYSLOG);
    let n_groups = AtomicUsize::new(0);
    // rsyslog waits a second each time: a few of the first groups are lost.
    let (collected, intake) = Collected::answering(move || {
        let n = n_groups.fetch_add(1, Ordering::Relaxed);
        if [1, 2, 5, 9].contains(&n) { Err(NotDurable("lost".into())) } else { Ok(()) }
    });
    let yaml = "{type: syslog, listen: \"127.0.0.1:PORT\", protocol: relp}";
    let (running, addr) = start_on_port(yaml, &intake).await;
    let action = format!(r#"type="omrelp" target="127.0.0.1" port="{}""#, addr.port());
    let sender = rsyslog_with(&root, "", "module(load=\"omrelp\")", &action);
    all(&collected, &sender).await;
    drop(sender);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rsyslog_over_relp_with_tls() {
    let root = peer!("rsyslog_over_relp_with_tls", "rsyslog", RSYSLOG);
    let certificates = Certificates::new();
    let (collected, intake) = Collected::all();
    let yaml =
        format!("{{type: syslog, listen: \"127.0.0.1:PORT\", protocol: relp, {}}}", certificates.mutual());
    let (running, addr) = start_on_port(&yaml, &intake).await;
    let action = format!(
        r#"type="omrelp" target="127.0.0.1" port="{}" tls="on" tls.authmode="certvalid" tls.cacert="{}" tls.mycert="{}" tls.myprivkey="{}""#,
        addr.port(),
        certificates.path("ca.pem").display(),
        certificates.path("client.pem").display(),
        certificates.path("client.key").display()
    );
    let sender = rsyslog_with(&root, "", "module(load=\"omrelp\")", &action);
    assert_eq!(all(&collected, &sender).await.len(), N_MESSAGES);
    drop(sender);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn syslog_ng_in_its_own_ways() {
    let root = peer!("syslog_ng_in_its_own_ways", "syslogng", SYSLOG_NG);
    let certificates = Certificates::new();
    let tls = format!(
        "transport(\"tls\") tls(ca-file(\"{}\") cert-file(\"{}\") key-file(\"{}\") peer-verify(required-trusted))",
        certificates.path("ca.pem").display(),
        certificates.path("client.pem").display(),
        certificates.path("client.key").display()
    );
    for (driver, transport) in [
        ("syslog", "transport(\"tcp\")"),
        ("network", "transport(\"tcp\")"),
        ("network", "transport(\"tcp\") flags(syslog-protocol)"),
        ("network", "transport(\"udp\")"),
        ("syslog", "transport(\"udp\")"),
        ("syslog", &tls),
    ] {
        let (collected, intake) = Collected::all();
        let secured = if transport == tls { format!(", {}", certificates.mutual()) } else { String::new() };
        let yaml = format!("{{type: syslog, listen: \"127.0.0.1:PORT\"{secured}}}");
        let (running, addr) = start_on_port(&yaml, &intake).await;
        let destination = format!("{driver}(\"127.0.0.1\" port({}) {transport});", addr.port());
        let sender = syslog_ng(&root, &destination);
        assert_eq!(all(&collected, &sender).await.len(), N_MESSAGES, "{destination}");
        drop(sender);
        running.stop().await;
    }
}
