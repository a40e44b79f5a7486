//! The network sources as the runtime uses them: built from YAML, bound, run, with a receiver of the test's own where
//! the write-ahead buffer would be.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod config;
mod hostile;
mod http;
mod support;
mod tcp;
mod udp;
mod unix;
