//! Watches tables and databases that steps have loaded, and loads them again when their files change.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::runtime::Runtime;

/// How often files are looked at.
const INTERVAL: Duration = Duration::from_secs(2);

pub(super) fn spawn(runtime: &Arc<Runtime>, stop: CancellationToken) {
    let runtime = Arc::clone(runtime);
    let steps = runtime.plan.streams.iter().flat_map(|s| &s.lanes).flat_map(|lane| &lane.steps);
    if steps.into_iter().all(|step| step.reloads.is_empty()) {
        return;
    }
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
            let runtime = Arc::clone(&runtime);
            // Reading a database takes time and blocks.
            tokio::task::spawn_blocking(move || reload(&runtime)).await.ok();
        }
    });
}

fn reload(runtime: &Runtime) {
    for stream in &runtime.plan.streams {
        for table in stream.lanes.iter().flat_map(|lane| &lane.steps).flat_map(|step| &step.reloads) {
            match table.reload_if_changed() {
                Ok(true) => {
                    runtime.metrics.reloads.with_label_values(&[table.name()]).inc();
                    info!(table = table.name(), "Table reloaded.");
                }
                Ok(false) => {}
                Err(error) => {
                    warn!(table = table.name(), %error, "The new file is not usable; the old stays.")
                }
            }
        }
    }
}
