//! What the runtime gives to every connector.

use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// What the runtime gives to every connector.
#[derive(Clone, Debug)]
pub struct ConnectorContext {
    /// The component's name in the pipeline.
    pub name: Arc<str>,
    /// A folder of its own for what it must remember, `<data_dir>/<kind>/<name>`. Not created yet.
    pub state_dir: PathBuf,
    /// Where to count.
    pub metrics: Arc<Metrics>,
    /// Cancelled when the pipeline stops: listeners stop accepting, finish what they have, and return.
    pub shutdown: CancellationToken,
}
