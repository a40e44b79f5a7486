//! stub
use clap::Args; use super::Outcome;
#[derive(Debug, Args)]
pub(super) struct Sql {}
pub(super) fn run(_: &Sql) -> Outcome { Err("x".into()) }
