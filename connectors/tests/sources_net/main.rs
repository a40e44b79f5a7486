//! The network sources as the runtime uses them: built from YAML, bound, run, with a receiver of the test's own where
//! the write-ahead buffer would be.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

mod beats;
mod certificates;
#[path = "../components/mod.rs"]
mod components;
mod config;
#[path = "../fluent/mod.rs"]
mod fluent;
mod forward;
mod hostile;
mod http;
#[path = "../lumber/mod.rs"]
mod lumber;
mod metrics;
mod otlp;
#[path = "../support/packages.rs"]
mod packages;
mod senders;
mod support;
mod syslog;
mod tcp;
mod tls;
mod udp;
mod unix;
