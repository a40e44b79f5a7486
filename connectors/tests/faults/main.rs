//! A bad network between Logdrive and real servers and senders: numbered messages go through a proxy while its faults
//! come and go. Afterwards nothing that was acknowledged is missing; how much came twice is said.
//!
//! Kafka, Elasticsearch and OpenSearch have such tests among their own.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

mod alert;
#[path = "../components/mod.rs"]
mod components;
#[path = "../fluent/mod.rs"]
mod fluent;
mod http;
#[allow(dead_code, reason = "shared with other tests")]
#[path = "../sink_alert/lab.rs"]
mod lab;
mod listening;
#[path = "../lumber/mod.rs"]
mod lumber;
#[cfg(feature = "mqtt")]
mod mqtt;
mod otlp;
#[path = "../support/packages.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod packages;
mod parquet;
mod prometheus;
mod redis;
mod shippers;
mod storm;
#[path = "../support/mod.rs"]
mod support;
mod syslog;

use support::server;

/// The value, or a note that the test is skipped.
macro_rules! at_hand {
    ($test:literal, $found:expr) => {
        match $found {
            Ok(found) => found,
            Err(why) => {
                use std::io::Write as _;
                writeln!(&mut std::io::stdout(), "skipped: {}: {why}", $test).unwrap();
                return;
            }
        }
    };
}
pub(crate) use at_hand;
