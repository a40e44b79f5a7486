//! Syslog over RELP while the binary is killed and started again: every message that was answered with `200 OK` arrives,
//! decoded as syslog without saying so.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test, helpers included")]
#![allow(dead_code, reason = "the helpers serve several tests")]

mod e2e_support;

use std::collections::BTreeSet;
use std::io::{BufReader, Error, ErrorKind, Result, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use e2e_support::{Lab, free_port, until};

const KILLS: usize = 5;
/// Messages that wait for their answer.
const PIPELINED: usize = 128;

/// What one sender knows.
#[derive(Default)]
struct Known {
    n_acked: AtomicUsize,
    stop: AtomicBool,
}

/// The status of the next response.
fn response(reader: &mut impl std::io::BufRead) -> Result<String> {
    let mut head = Vec::new();
    for _ in 0..3 {
        reader.read_until(b' ', &mut head)?;
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let len = head.split(' ').nth(2).and_then(|len| len.parse::<usize>().ok());
    let mut data = vec![0; len.ok_or_else(|| Error::from(ErrorKind::UnexpectedEof))? + 1];
    reader.read_exact(&mut data)?;
    Ok(String::from_utf8_lossy(&data).trim_end().to_owned())
}

/// Sends what was not acknowledged, until the connection breaks.
fn session(port: u16, known: &Known) -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let offer = "relp_version=0\nrelp_software=test\ncommands=syslog";
    stream.write_all(format!("1 open {} {offer}\n", offer.len()).as_bytes())?;
    assert!(response(&mut reader)?.starts_with("200 OK"));
    let first = known.n_acked.load(Ordering::Relaxed);
    for (txnr, sent) in (2..).zip(first..) {
        let acked = known.n_acked.load(Ordering::Relaxed);
        if known.stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        if sent - acked >= PIPELINED {
            assert_eq!(response(&mut reader)?, "200 OK");
            known.n_acked.store(acked + 1, Ordering::Relaxed);
        }
        let message = format!("<165>1 2026-11-21T10:00:00Z host app - ID47 - number {sent}");
        stream.write_all(format!("{txnr} syslog {} {message}\n", message.len()).as_bytes())?;
    }
    Ok(())
}

#[test]
fn what_was_answered_arrives_although_the_binary_is_killed() {
    let port = free_port();
    let lab = Lab::new(&format!(
        "sources: {{ in: {{ type: syslog, protocol: relp, listen: \"127.0.0.1:{port}\" }} }}\n\
         sinks: {{ out: {{ type: file, from: [in], path: out.ndjson }} }}\n"
    ));
    let mut pipeline = lab.run();
    let known = Arc::new(Known::default());
    let sender = thread::spawn({
        let known = Arc::clone(&known);
        move || {
            while !known.stop.load(Ordering::Relaxed) {
                if session(port, &known).is_err() {
                    thread::sleep(Duration::from_millis(20));
                }
            }
        }
    });
    let acked = || known.n_acked.load(Ordering::Relaxed);
    for _ in 0..KILLS {
        let before = acked();
        until("messages are answered", || acked() > before + 2000);
        pipeline.kill();
        pipeline = lab.run();
    }
    let before = acked();
    until("the sender goes on", || acked() > before);
    known.stop.store(true, Ordering::Relaxed);
    sender.join().unwrap();
    let n_acked = acked();
    let found = || -> BTreeSet<usize> {
        let documents = lab.documents("out.ndjson").into_iter();
        documents
            .map(|document| {
                assert_eq!(document["log"]["syslog"]["msgid"], "ID47", "{document}");
                document["message"].as_str().unwrap().strip_prefix("number ").unwrap().parse().unwrap()
            })
            .collect()
    };
    until("everything that was answered arrives", || {
        let found = found();
        (0..n_acked).all(|n| found.contains(&n))
    });
    pipeline.stop();
    println!("{KILLS} kills: {n_acked} answered, none missing");
}
