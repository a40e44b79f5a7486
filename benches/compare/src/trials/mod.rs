//! What throughput over TCP does not show: windows, outages, storage, idling, many connections, starting, latency.
//!
//! Each trial gives a section of the report.

mod connections;
mod idle;
mod latency;
mod outage;
mod parquet;
mod start;
pub mod windows;

use crate::error::Result;
use crate::products::{Logdrive, Product};
use crate::report::Table;
use crate::run::Journal;
use crate::stage::Bench;

/// What a trial is given.
pub struct Cast<'a> {
    /// Folders and limits.
    pub bench: &'a Bench,
    /// All products.
    pub all: &'a [Box<dyn Product>],
    /// The product itself, with its buffer on disk.
    pub ours: &'a Logdrive,
    /// Lines of a run.
    pub lines: u64,
    /// How often what is repeated is repeated.
    pub rounds: u32,
    /// How long the far end is away in W9, in seconds.
    pub outage: u64,
    /// How long nothing happens in W11, in seconds.
    pub idle: u64,
    /// Connections of W12.
    pub connections: u32,
    /// The port of the broker of W8.
    pub kafka_port: u16,
    /// The names of `--peers`.
    pub peers: &'a [String],
    /// The tables so far.
    pub tables: &'a [Table],
}

/// A trial: its name and how it is done.
pub type Trial = (&'static str, fn(&Cast<'_>, &mut Journal) -> Result<String>);

/// All trials in their order.
pub const TRIALS: &[Trial] = &[
    ("W8", windows::run),
    ("W9", outage::run),
    ("W10", parquet::run),
    ("W11", idle::run),
    ("W12", connections::run),
    ("W13", start::run),
    ("W14", latency::run),
];
