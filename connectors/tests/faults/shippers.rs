//! Senders that repeat what was not acknowledged: Elastic's client of the Beats protocol, the Fluentd project's client,
//! rsyslog over RELP.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::listening::{Listening, listen};
use crate::packages::{RSYSLOG, libraries, unpacked};
use crate::storm::{Feeder, Tally, lines, read_lines, settle, storm};
use crate::support::proxy::{FAULTS, Proxy};
use crate::{at_hand, fluent, lumber};

/// Ends when dropped.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    /// What it says goes into a file.
    pub(crate) fn start(command: &mut Command, said: &Path) -> Self {
        command.stdin(Stdio::null()).stdout(File::create(said).unwrap()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A sender that writes down what was acknowledged is in the storm, and stops.
pub(crate) async fn survives(
    what: &str,
    source: Listening,
    proxy: &Proxy,
    sender: Running,
    said: &Path,
    acknowledged: impl Fn(&str) -> Tally,
) {
    storm(what, proxy, &FAULTS, false, || source.delivered.n_all()).await;
    drop(sender);
    let acknowledged = acknowledged(&read_lines(said));
    let n_sent = source.delivered.n_different().max(acknowledged.n_different());
    settle(what, proxy, n_sent, &acknowledged, async || source.delivered.clone()).await;
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_elastics_client_was_told_is_there() {
    let program = at_hand!("what_elastics_client_was_told_is_there", lumber::lumber());
    let one = async |what: &str, ways: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let said = dir.path().join("said");
        let source = listen(dir.path(), "{type: beats, listen: \"127.0.0.1:PORT\"}", 50, "\"n\":").await;
        let proxy = Proxy::start(source.address, None).await;
        let mut command = Command::new(&program);
        command.args(["-n", "0", "-c", &proxy.address.to_string()]).args(ways);
        let sender = Running::start(&mut command, &said);
        let acknowledged = |said: &str| Tally::of(0..lumber::acked(said).map_or(0, |last| last + 1));
        survives(what, source, &proxy, sender, &said, acknowledged).await;
    };
    tokio::join!(
        one("beats, a window at a time", &["-batch", "50", "-compress", "0"]),
        one("beats, four windows under way", &["-batch", "100", "-inflight", "4"]),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fluentds_client_was_told_is_there() {
    let program = at_hand!("what_fluentds_client_was_told_is_there", fluent::program());
    let one = async |mode: &str| {
        let dir = tempfile::tempdir().unwrap();
        let said = dir.path().join("said");
        let source = listen(dir.path(), "{type: forward, listen: \"127.0.0.1:PORT\"}", 50, "\"n\":").await;
        let proxy = Proxy::start(source.address, None).await;
        let mut command = fluent::command(&program, proxy.address.port(), mode, 0, "{}");
        let sender = Running::start(&mut command, &said);
        let acknowledged = |said: &str| Tally::of(fluent::acked(said).into_iter().map(|n| n as usize));
        survives(&format!("forward, {mode}"), source, &proxy, sender, &said, acknowledged).await;
    };
    tokio::join!(one("PackedForward"), one("CompressedPackedForward"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_line_of_rsyslog_arrives_over_relp() {
    let root = at_hand!("every_line_of_rsyslog_arrives_over_relp", unpacked("rsyslog", RSYSLOG));
    let dir = tempfile::tempdir().unwrap();
    let yaml = "{type: syslog, listen: \"127.0.0.1:PORT\", protocol: relp}";
    let source = listen(dir.path(), yaml, 300, "\"n\":").await;
    let proxy = Proxy::start(source.address, None).await;
    let config = format!(
        r#"global(workDirectory="{work}")
module(load="omrelp")
module(load="imfile")
input(type="imfile" File="{work}/input" Tag="numbers:" Facility="local0" Severity="notice")
action(type="omrelp" target="127.0.0.1" port="{}" timeout="3" action.resumeRetryCount="-1" action.resumeInterval="1" queue.type="linkedList" queue.size="100000")
"#,
        proxy.address.port(),
        work = dir.path().display(),
    );
    std::fs::write(dir.path().join("conf"), config).unwrap();
    let mut input = File::create(dir.path().join("input")).unwrap();
    let modules = root.join(format!("usr/lib/{}-linux-gnu/rsyslog", std::env::consts::ARCH));
    let mut command = Command::new(root.join("usr/sbin/rsyslogd"));
    command.args(["-n", "-f", "conf", "-i"]).arg(dir.path().join("pid")).arg("-M").arg(modules);
    command.env("LD_LIBRARY_PATH", libraries(&root)).current_dir(dir.path());
    let rsyslog = Running::start(&mut command, &dir.path().join("said"));
    let feeder = Feeder::start(move |numbers| input.write_all(lines(numbers).as_bytes()).unwrap());
    let what = "syslog, RELP from rsyslog";
    storm(what, &proxy, &FAULTS, false, || source.delivered.n_all()).await;
    let n_sent = feeder.stop();
    // It forgets nothing that was not answered.
    let acknowledged = Tally::of(0..n_sent);
    settle(what, &proxy, n_sent, &acknowledged, async || source.delivered.clone()).await;
    drop(rsyslog);
    source.stop().await;
}
