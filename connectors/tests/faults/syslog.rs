//! The `syslog` sink and rsyslog over TCP. Nobody acknowledges there: what was under way when a connection breaks may be
//! lost, although the machine that took it has confirmed it. Nothing else may be.

use std::process::Command;

use tokio_util::sync::CancellationToken;

use crate::at_hand;
use crate::packages::{RSYSLOG, libraries, unpacked};
use crate::shippers::Running;
use crate::storm::{Tally, numbered, numbers_behind, read_lines, say, sink_survives, storm, until, write_on};
use crate::support::proxy::{FAULTS, Fault, Proxy};
use crate::support::sink;

const PORT: u16 = 21_450;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rsyslog_gets_what_no_broken_connection_took_along() {
    let root = at_hand!("rsyslog_gets_what_no_broken_connection_took_along", unpacked("rsyslog", RSYSLOG));
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        r#"global(workDirectory="{work}")
module(load="imtcp")
input(type="imtcp" port="{PORT}" address="127.0.0.1")
template(name="message" type="string" string="%msg%\n")
action(type="omfile" file="{work}/out" template="message")
"#,
        work = dir.path().display()
    );
    std::fs::write(dir.path().join("conf"), config).unwrap();
    let modules = root.join(format!("usr/lib/{}-linux-gnu/rsyslog", std::env::consts::ARCH));
    let mut command = Command::new(root.join("usr/sbin/rsyslogd"));
    command.args(["-n", "-f", "conf", "-i"]).arg(dir.path().join("pid")).arg("-M").arg(modules);
    command.env("LD_LIBRARY_PATH", libraries(&root)).current_dir(dir.path());
    let rsyslog = Running::start(&mut command, &dir.path().join("said"));
    until(|| "rsyslog listens".into(), || std::net::TcpStream::connect(("127.0.0.1", PORT)).is_ok()).await;
    let stored = || Tally::of(numbers_behind(&read_lines(&dir.path().join("out")), "\"n\":"));
    let proxy = Proxy::start(([127, 0, 0, 1], PORT).into(), None).await;
    let yaml = format!("{{endpoint: \"{}\", connect_timeout: 1s, stall_timeout: 1s}}", proxy.address);

    let slow: Vec<_> =
        FAULTS.into_iter().filter(|f| matches!(f, Fault::Latency(_) | Fault::Bandwidth(_))).collect();
    let what = "syslog sink, slow";
    sink_survives(what, &proxy, &slow, sink("syslog", &yaml).0, (20, numbered), async || stored()).await;

    // It appends to what is there.
    std::fs::write(dir.path().join("out"), "").unwrap();
    let breaking = [Fault::HalfOpen, Fault::Reset, Fault::Refuse];
    let what = "syslog sink, connections that break";
    let (mut out, _) = sink("syslog", &yaml);
    let (confirmed, stop) = (Tally::default(), CancellationToken::new());
    let storming = async {
        // What arrives shows that it goes on, not what was confirmed.
        storm(what, &proxy, &breaking, true, || stored().n_all()).await;
        stop.cancel();
    };
    let (n_sent, ()) = tokio::join!(write_on(&mut *out, 20, numbered, &confirmed, &stop), storming);
    // The newest went over a connection that is well.
    let newest = Tally::of(n_sent - 20..n_sent);
    until(|| "the newest are there".into(), || stored().n_missing(&newest) == 0).await;
    say(what, &proxy, n_sent, &confirmed, &stored());
    drop(rsyslog);
}
