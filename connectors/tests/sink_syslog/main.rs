//! The sink `syslog` with Debian's rsyslog and syslog-ng as receivers. Where they cannot be had, the tests say so and pass.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "what fails here fails the test")]

#[allow(dead_code, reason = "shared with other tests")]
#[path = "../sources_net/certificates.rs"]
mod certificates;
#[path = "../support/packages.rs"]
mod packages;
#[path = "../support/mod.rs"]
mod support;

use std::io::{Write as _, stdout};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, StringViewArray};
use certificates::Certificates;
use logdrive_schemas::Batch;
use packages::{RSYSLOG, SYSLOG_NG, libraries, unpacked};
use support::{batch, count, deliver_at_last, sink};

const N_MESSAGES: usize = 3000;

/// Rows with the columns that a plan computes for the sink.
fn rows() -> Batch {
    let documents: Vec<_> = (0..N_MESSAGES).map(|n| format!("{{\"n\":{n}}}")).collect();
    let column = |text: &dyn Fn(usize) -> String| -> ArrayRef {
        Arc::new(StringViewArray::from_iter_values((0..N_MESSAGES).map(text)))
    };
    let columns = [
        ("_syslog_facility", column(&|_| "local3".into())),
        ("_syslog_severity", column(&|n| ["ERROR", "6"][n % 2].into())),
        ("_syslog_hostname", column(&|_| "web-1".into())),
        ("_syslog_app_name", column(&|_| "shop".into())),
        ("_syslog_procid", column(&|n| n.to_string())),
        ("_syslog_msgid", column(&|_| "ORDER".into())),
        ("_syslog_sd_0_0", column(&|n| format!("a\"{n}]"))),
        ("_syslog_message", column(&|n| format!("number {n} with \u{e9}"))),
    ];
    batch(1, 0, &documents, &columns)
}

/// As the receivers write it.
fn expected(n: usize) -> String {
    let severity = ["err", "info"][n % 2];
    format!("local3|{severity}|web-1|shop|{n}|ORDER|number {n} with \u{e9}")
}

/// A receiver that runs until it is dropped.
struct Receiver {
    child: Child,
    dir: tempfile::TempDir,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Receiver {
    fn start(root: &Path, dir: tempfile::TempDir, command: &mut Command) -> Self {
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        command.env("LD_LIBRARY_PATH", libraries(root)).current_dir(dir.path());
        let child =
            command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        Self { child, dir }
    }

    fn rsyslog(root: &Path, head: &str, input: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = format!(
            r#"global(workDirectory="{work}" {head})
{input}
template(name="fields" type="string" string="%syslogfacility-text%|%syslogseverity-text%|%hostname%|%app-name%|%procid%|%msgid%|%msg%\n")
action(type="omfile" file="{work}/out" template="fields")
"#,
            work = dir.path().display()
        );
        std::fs::write(dir.path().join("conf"), config).unwrap();
        let modules = root.join(format!("usr/lib/{}-linux-gnu/rsyslog", std::env::consts::ARCH));
        let mut command = Command::new(root.join("usr/sbin/rsyslogd"));
        command.args(["-n", "-f", "conf", "-i"]).arg(dir.path().join("pid")).arg("-M").arg(modules);
        Self::start(root, dir, &mut command)
    }

    fn syslog_ng(root: &Path, source: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = format!(
            "@version: 3.38\noptions {{ keep-hostname(yes); stats-freq(0); }};\n\
             source in {{ {source} }};\n\
             destination out {{ file(\"{}/out\" template(\"$FACILITY|$LEVEL|$HOST|$PROGRAM|$PID|$MSGID|$MSG\\n\")); }};\n\
             log {{ source(in); destination(out); flags(flow-control); }};\n",
            dir.path().display()
        );
        std::fs::write(dir.path().join("conf"), config).unwrap();
        let mut command = Command::new(root.join("usr/sbin/syslog-ng"));
        command.args(["-F", "--no-caps", "-f", "conf", "-R", "persist", "-p", "pid", "-c", "control"]);
        command.arg(format!("--module-path={}", root.join("usr/lib/syslog-ng/3.38").display()));
        Self::start(root, dir, &mut command)
    }

    fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.path().join("out")).unwrap_or_default();
        text.lines().map(|line| line.trim_start().replace("| ", "|")).collect()
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

/// Delivers all rows; every one must arrive with all its parts, over UDP most of them.
async fn all_arrive(what: &str, receiver: &Receiver, yaml: &str) {
    let (mut out, cx) = sink("syslog", yaml);
    let is_udp = yaml.contains("udp");
    deliver_at_last(&mut *out, &[rows()]).await;
    if !is_udp {
        assert_eq!(count(&cx.metrics.sink_rows), N_MESSAGES as u64);
    }
    let wanted: std::collections::BTreeSet<_> = (0..N_MESSAGES).map(expected).collect();
    let missing = || {
        let found: std::collections::BTreeSet<_> = receiver.lines().into_iter().collect();
        wanted.difference(&found).count()
    };
    let bound = if is_udp { N_MESSAGES / 2 } else { 0 };
    let deadline = Instant::now() + Duration::from_secs(20);
    while missing() > bound {
        let lines = receiver.lines();
        assert!(
            Instant::now() < deadline,
            "{what}: {} of {N_MESSAGES} are missing, {:?}; {}",
            missing(),
            lines.first(),
            receiver.said()
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
        if is_udp {
            // Nobody says whether a receiver is there, and it drops what comes too fast.
            deliver_at_last(&mut *out, &[rows()]).await;
        }
    }
    println!("{what}: {N_MESSAGES} sent, {} missing", missing());
    out.close().await.unwrap();
}

fn parts(port: u16, more: &str) -> String {
    format!(
        r#"
endpoint: "localhost:{port}"
facility: "a"
severity: "a"
hostname: "a"
app_name: "a"
procid: "a"
msgid: "a"
message: "a"
structured_data: {{ "order@32473": {{ id: "a" }} }}
{more}
"#
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rsyslog_takes_it_over_udp_tcp_and_tls() {
    let root = match unpacked("rsyslog", RSYSLOG) {
        Ok(root) => root,
        Err(why) => return writeln!(&mut stdout(), "skipped: rsyslog: {why}").unwrap(),
    };
    let certificates = Certificates::new();
    let path = |name: &str| certificates.path(name).display().to_string();
    let tcp = |port: u16| {
        format!("module(load=\"imtcp\")\ninput(type=\"imtcp\" port=\"{port}\" address=\"127.0.0.1\")")
    };
    let receiver = Receiver::rsyslog(&root, "", &tcp(21_240));
    all_arrive("rsyslog, octet counting", &receiver, &parts(21_240, "")).await;
    drop(receiver);
    let receiver = Receiver::rsyslog(&root, "", &tcp(21_241));
    all_arrive("rsyslog, lines", &receiver, &parts(21_241, "framing: lf")).await;
    drop(receiver);
    let udp = "module(load=\"imudp\")\ninput(type=\"imudp\" port=\"21242\" address=\"127.0.0.1\")";
    let receiver = Receiver::rsyslog(&root, "", udp);
    all_arrive("rsyslog, datagrams", &receiver, &parts(21_242, "protocol: udp")).await;
    drop(receiver);
    let head = format!(
        r#"DefaultNetstreamDriver="ossl" DefaultNetstreamDriverCAFile="{}" DefaultNetstreamDriverCertFile="{}" DefaultNetstreamDriverKeyFile="{}""#,
        path("ca.pem"),
        path("server.pem"),
        path("server.key")
    );
    let secured = "module(load=\"imtcp\" StreamDriver.Name=\"ossl\" StreamDriver.Mode=\"1\" \
                   StreamDriver.AuthMode=\"x509/certvalid\")\ninput(type=\"imtcp\" port=\"21243\" address=\"127.0.0.1\")";
    let receiver = Receiver::rsyslog(&root, &head, secured);
    let tls = format!(
        "tls: {{ ca: \"{}\", certificate: \"{}\", key: \"{}\" }}",
        path("ca.pem"),
        path("client.pem"),
        path("client.key")
    );
    all_arrive("rsyslog, TLS", &receiver, &parts(21_243, &tls)).await;
    // Who knows another authority does not talk to it.
    let stranger = parts(21_243, "tls: {}");
    assert!(sink("syslog", &stranger).0.connect().await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn syslog_ng_takes_it_over_udp_tcp_and_tls() {
    let root = match unpacked("syslogng", SYSLOG_NG) {
        Ok(root) => root,
        Err(why) => return writeln!(&mut stdout(), "skipped: syslog-ng: {why}").unwrap(),
    };
    let certificates = Certificates::new();
    let path = |name: &str| certificates.path(name).display().to_string();
    let tls = format!(
        "transport(\"tls\") tls(ca-file(\"{}\") cert-file(\"{}\") key-file(\"{}\") peer-verify(required-trusted))",
        path("ca.pem"),
        path("server.pem"),
        path("server.key")
    );
    let client = format!(
        "tls: {{ ca: \"{}\", certificate: \"{}\", key: \"{}\" }}",
        path("ca.pem"),
        path("client.pem"),
        path("client.key")
    );
    for (what, port, driver, transport, more) in [
        ("octet counting", 21_250, "syslog", "transport(\"tcp\")", ""),
        ("lines", 21_251, "network", "transport(\"tcp\") flags(syslog-protocol)", "framing: lf"),
        ("datagrams", 21_252, "syslog", "transport(\"udp\")", "protocol: udp"),
        ("TLS", 21_253, "syslog", &*tls, &*client),
    ] {
        let receiver =
            Receiver::syslog_ng(&root, &format!("{driver}(ip(\"127.0.0.1\") port({port}) {transport});"));
        all_arrive(&format!("syslog-ng, {what}"), &receiver, &parts(port, more)).await;
    }
}

#[tokio::test]
async fn what_is_too_long_is_a_reject() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (mut out, _) = sink("syslog", &parts(port, "max_message_bytes: 103B"));
    out.connect().await.unwrap();
    let rejects = out.write(&rows()).await.unwrap().unwrap();
    // Those of four digits.
    assert_eq!(rejects.num_rows(), N_MESSAGES - 1000);
}
