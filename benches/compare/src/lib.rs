//! The side-by-side comparison: Logdrive and its peers, one machine, one input, one run.
//!
//! Everything a figure depends on is made here: the input, the senders, the receivers, the configurations. The product
//! is run as a binary, like the others.

pub mod data;
pub mod elastic;
pub mod error;
pub mod expect;
pub mod geo;
pub mod ledger;
pub mod limits;
pub mod measure;
pub mod overload;
pub mod process;
pub mod products;
pub mod profile;
pub mod receive;
pub mod report;
pub mod run;
pub mod scaling;
pub mod send;
pub mod stage;
pub mod system;
pub mod trials;
pub mod workload;

use std::io::Write;

/// Tells the person at the terminal how far it is.
pub fn say(text: &str) {
    // Nobody to tell is no reason to stop.
    drop(writeln!(std::io::stderr(), "{text}"));
}
