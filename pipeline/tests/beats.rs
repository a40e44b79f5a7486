//! Elastic's own client of the Beats protocol sends numbered events while the binary is killed and started again: every
//! event that was acknowledged arrives.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test, helpers included")]
#![allow(dead_code, reason = "the helpers serve several tests")]

mod e2e_support;
#[path = "../../connectors/tests/lumber/mod.rs"]
mod lumber;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Write as _, stdout};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use e2e_support::{Lab, free_port, until, until_within};

const KILLS: usize = 5;

/// Ends with the test.
struct Sender(Child);

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn what_was_acknowledged_arrives_although_the_binary_is_killed() {
    let program = match lumber::lumber() {
        Ok(program) => program,
        Err(why) => {
            return writeln!(
                &mut stdout(),
                "skipped: what_was_acknowledged_arrives_although_the_binary_is_killed: {why}"
            )
            .unwrap();
        }
    };
    for ways in [&["-batch", "50", "-compress", "0"][..], &["-batch", "500", "-inflight", "4"]] {
        let port = free_port();
        let yaml = format!(
            "sources: {{ in: {{ type: beats, listen: \"127.0.0.1:{port}\", schema: {{ fields: {{ n: int64 }} }} }} }}\n\
             sinks: {{ out: {{ type: file, from: [in], path: out.ndjson }} }}\n"
        );
        let lab = Lab::new(&yaml);
        let mut pipeline = lab.run();
        let said = lab.path("acked");
        let mut command = Command::new(&program);
        command.args(["-n", "0", "-c", &format!("127.0.0.1:{port}")]).args(ways);
        let sender = command.stdout(File::create(&said).unwrap()).stderr(Stdio::null()).spawn().unwrap();
        let sender = Sender(sender);
        let acked = || lumber::acked(&std::fs::read_to_string(&said).unwrap()).map_or(0, |last| last + 1);
        for _ in 0..KILLS {
            let before = acked();
            until("events are acknowledged", || acked() > before + 2000);
            // In the middle of a window, most likely.
            pipeline.kill();
            pipeline = lab.run();
        }
        let before = acked();
        until("the sender goes on", || acked() > before);
        drop(sender);
        let n_acked = acked();
        let found = || {
            let mut found = BTreeMap::<u64, usize>::new();
            for document in lab.documents("out.ndjson") {
                *found.entry(document["n"].as_u64().unwrap()).or_default() += 1;
            }
            found
        };
        let missing = || {
            let found = found();
            (0..n_acked as u64).filter(|n| !found.contains_key(n)).count()
        };
        until_within(Duration::from_secs(60), "everything that was acknowledged arrives", || missing() == 0);
        pipeline.stop();
        let n_repeated = found().values().filter(|n| **n > 1).count();
        println!("{KILLS} kills: {n_acked} acknowledged, none missing, {n_repeated} repeated");
    }
}
