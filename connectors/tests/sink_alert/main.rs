//! The sink `alert`: what each channel sends, channels that are down, crashes; Alertmanager and a mail server.
//!
//! Slack, Teams, PagerDuty and text messages go to a stand-in that checks what their documentation asks for.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test, helpers included")]

#[allow(dead_code, reason = "shared with other tests")]
#[path = "../sources_net/certificates.rs"]
mod certificates;
mod faults;
mod lab;
mod real;
#[allow(dead_code, reason = "shared with other tests")]
#[path = "../support/server.rs"]
mod server;
mod shapes;
