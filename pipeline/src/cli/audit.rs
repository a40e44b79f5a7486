//! stub
use clap::Subcommand; use super::Outcome;
#[derive(Debug, Subcommand)]
pub(super) enum Command { /// x
 Verify }
pub(super) fn run(_: Command) -> Outcome { Err("x".into()) }
