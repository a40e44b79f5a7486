//! Nexmark (Tucker et al., 2008; <https://github.com/nexmark/nexmark>): its queries as views, checked against DataFusion
//! over the same rows, and timed beside it and beside other products that read the same events from files.

pub mod answer;
pub mod events;
pub mod files;
pub mod job;
pub mod measure;
pub mod peers;
pub mod queries;
pub mod report;
pub mod run;
pub mod trial;
