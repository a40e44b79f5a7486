//! stub
use clap::Args; use super::Outcome;
#[derive(Debug, Args)]
pub(super) struct Generate {}
pub(super) fn run(_: &Generate) -> Outcome { Err("x".into()) }
