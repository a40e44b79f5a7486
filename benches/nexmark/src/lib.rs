//! Nexmark (Tucker et al., 2008; <https://github.com/nexmark/nexmark>): its queries as views, checked against DataFusion
//! over the same rows, and timed beside it.

pub mod events;
pub mod queries;
pub mod run;
