//! Against Prometheus' Alertmanager and against a mail server (aiosmtpd) with STARTTLS and with TLS.

use std::io::{Write as _, stdout};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::certificates::Certificates;
use crate::lab::{finding, give, sink, until};

const ALERTMANAGER_PORT: u16 = 21_210;

fn script(name: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    let shared = std::env::var_os("LOGDRIVE_SHARED").map_or(root, PathBuf::from);
    Some(shared.join("components").join(name)).filter(|path| path.exists())
}

fn run(script: &Path, arguments: &[&str]) -> bool {
    let mut command = Command::new(script);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Stopped when dropped.
struct AlertmanagerServer(PathBuf);

impl AlertmanagerServer {
    fn start() -> Option<Self> {
        let port = ALERTMANAGER_PORT.to_string();
        let server = Self(script("alertmanager.sh")?);
        (run(&server.0, &["install"]) && run(&server.0, &["start", &port])).then_some(server)
    }
}

impl Drop for AlertmanagerServer {
    fn drop(&mut self) {
        run(&self.0, &["stop", &ALERTMANAGER_PORT.to_string()]);
    }
}

fn alerts() -> Vec<Value> {
    let url = format!("http://127.0.0.1:{ALERTMANAGER_PORT}/api/v2/alerts");
    let output = Command::new("curl").args(["-fsS", &url]).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alertmanager_shows_what_is_open_and_is_told_of_its_end() {
    let Some(_server) = AlertmanagerServer::start() else {
        writeln!(&mut stdout(), "skipped: alertmanager: server not at hand").unwrap();
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let yaml = format!(
        r#"
channels:
  # The first is not there: one that takes it is enough.
  am: {{ alertmanager: {{ endpoint: ["http://127.0.0.1:9", "http://127.0.0.1:{ALERTMANAGER_PORT}"] }} }}
group_wait: 100ms
resolve_after: 4s
"#
    );
    let (mut sink, metrics) = sink(dir.path(), &yaml);
    sink.connect().await.unwrap();
    let name = format!("card {}", std::process::id());
    let ours = || alerts().into_iter().filter(|a| a["labels"]["entity"] == *name).collect::<Vec<_>>();
    let all: Vec<_> = (0..50).map(|n| finding(&format!("{name} {n}"), &name, "P1")).collect();
    give(&mut *sink, &all).await;
    until("the alert is there", || ours().len() == 1).await;
    let alert = &ours()[0];
    assert_eq!(alert["labels"]["alertname"], "card_testing");
    assert_eq!(alert["labels"]["severity"], "P1");
    assert_eq!(alert["annotations"]["findings"], "50");
    until("it is over", || ours().is_empty()).await;
    let told = || metrics.alert_deliveries.with_label_values(&["alerts", "am", "delivered"]).get();
    until("both are confirmed", || told() == 2).await;
    sink.close().await.unwrap();
}

/// A mail server that keeps what it takes in a folder; it ends when dropped.
struct MailServer {
    child: Child,
    dir: tempfile::TempDir,
}

impl Drop for MailServer {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl MailServer {
    fn start(port: u16, arguments: &[&str]) -> Option<Self> {
        run(&script("smtp.sh")?, &["install"]).then_some(())?;
        let home = std::env::var_os("COMPONENTS_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cache/components")))?;
        let mut versions = std::fs::read_dir(home).ok()?.flatten();
        let found = versions.find(|entry| entry.file_name().to_string_lossy().starts_with("aiosmtpd-"))?;
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(found.path().join("bin/aiosmtpd"));
        command.args(["-n", "-l", &format!("127.0.0.1:{port}"), "-c", "aiosmtpd.handlers.Mailbox"]);
        command.args(arguments.iter().copied()).arg(dir.path().join("maildir"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
        Some(Self { child, dir })
    }

    fn mails(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.dir.path().join("maildir/new")) else { return Vec::new() };
        entries.flatten().filter_map(|entry| std::fs::read_to_string(entry.path()).ok()).collect()
    }
}

/// Mails of 20 alerts arrive, each beginning and each end once.
async fn mails_arrive(port: u16, keys: [&str; 2], endpoint: &str) {
    let certificates = Certificates::new();
    let path = |name: &str| certificates.path(name).display().to_string();
    let (certificate, key) = (path("server.pem"), path("server.key"));
    let Some(server) = MailServer::start(port, &[keys[0], &certificate, keys[1], &key]) else {
        writeln!(&mut stdout(), "skipped: mail: server not at hand").unwrap();
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let yaml = format!(
        r#"
channels:
  mail:
    email:
      endpoint: "{endpoint}"
      from: "Logdrive <logdrive@example.com>"
      to: [ops@example.com, "Fraud <fraud@example.com>"]
      tls: {{ ca: "{}" }}
group_wait: 100ms
resolve_after: 3s
"#,
        path("ca.pem")
    );
    // The server may not be there yet; then it is tried again.
    let (mut sink, _) = sink(dir.path(), &yaml);
    sink.connect().await.unwrap();
    let all: Vec<_> = (0..20).map(|n| finding(&n.to_string(), &format!("card {n}"), "P0")).collect();
    give(&mut *sink, &all).await;
    until("all mails are there", || server.mails().len() == 40).await;
    let mails = server.mails();
    for n in 0..20 {
        for subject in ["[FIRING] P0", "[RESOLVED] P0"] {
            let wanted = format!("Subject: {subject} card_testing: card {n}");
            let n_found = mails.iter().filter(|m| m.lines().any(|line| line == wanted)).count();
            assert_eq!(n_found, 1, "{wanted}");
        }
    }
    assert!(mails.iter().all(|m| m.contains("Fraud <fraud@example.com>")), "{}", mails[0]);
    sink.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mails_arrive_over_starttls() {
    mails_arrive(21_211, ["--tlscert", "--tlskey"], "smtp://localhost:21211").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mails_arrive_over_tls() {
    mails_arrive(21_212, ["--smtpscert", "--smtpskey"], "smtps://localhost:21212").await;
}
