//! The Fluentd project's own client sends numbered events while the binary is killed and started again: every event that
//! was acknowledged arrives.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test, helpers included")]
#![allow(dead_code, reason = "the helpers serve several tests")]

mod e2e_support;
#[path = "../../connectors/tests/fluent/mod.rs"]
mod fluent;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Write as _, stdout};
use std::process::{Child, Stdio};
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
    let program = match fluent::program() {
        Ok(program) => program,
        Err(why) => {
            let test = "what_was_acknowledged_arrives_although_the_binary_is_killed";
            return writeln!(&mut stdout(), "skipped: {test}: {why}").unwrap();
        }
    };
    for mode in ["PackedForward", "CompressedPackedForward"] {
        let port = free_port();
        let lab = Lab::new(&format!(
            "sources: {{ in: {{ type: forward, listen: \"127.0.0.1:{port}\", schema: {{ fields: {{ n: int64 }} }} }} }}\n\
             sinks: {{ out: {{ type: file, from: [in], path: out.ndjson }} }}\n"
        ));
        let mut pipeline = lab.run();
        let said = lab.path("acked");
        let mut command = fluent::command(&program, port, mode, 0, "{}");
        let child = command.stdout(File::create(&said).unwrap()).stderr(Stdio::null()).spawn().unwrap();
        let sender = Sender(child);
        let acked = || fluent::acked(&std::fs::read_to_string(&said).unwrap());
        for _ in 0..KILLS {
            let before = acked().len();
            until("events are acknowledged", || acked().len() > before + 2000);
            pipeline.kill();
            pipeline = lab.run();
        }
        let before = acked().len();
        until("the sender goes on", || acked().len() > before);
        drop(sender);
        let acked = acked();
        let found = || {
            let mut found = BTreeMap::<u64, usize>::new();
            for document in lab.documents("out.ndjson") {
                assert_eq!(document["tag"], "app");
                *found.entry(document["n"].as_u64().unwrap()).or_default() += 1;
            }
            found
        };
        until_within(Duration::from_secs(60), "everything that was acknowledged arrives", || {
            let found = found();
            acked.iter().all(|n| found.contains_key(n))
        });
        pipeline.stop();
        let n_repeated = found().values().filter(|n| **n > 1).count();
        println!("{mode}, {KILLS} kills: {} acknowledged, none missing, {n_repeated} repeated", acked.len());
    }
}
