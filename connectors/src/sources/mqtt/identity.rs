//! What must outlive the process for a session to be resumed: the client's name, and what it has subscribed to.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::storage;

/// Kept in `session` of the source's folder: the name in the first line, then one subscription a line.
pub(super) struct Identity {
    path: PathBuf,
    client_id: String,
    subscribed: Vec<String>,
}

impl Identity {
    /// Reads the file; makes a name up if there is none. What was subscribed under another name does not count.
    pub(super) fn open(cx: &ConnectorContext, configured: Option<&str>) -> Result<Self, ConnectorError> {
        let path = cx.state_dir.join("session");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(ConnectorError::storage(&path, error)),
        };
        let mut lines = text.lines();
        let kept = lines.next().filter(|kept| configured.is_none_or(|name| name == *kept));
        let kept = kept.filter(|kept| !kept.is_empty());
        let subscribed = if kept.is_some() { lines.map(str::to_owned).collect() } else { Vec::new() };
        let made_up = || format!("logdrive-{:016x}", rand::random::<u64>());
        let client_id = configured.or(kept).map_or_else(made_up, str::to_owned);
        let identity = Self { path, client_id, subscribed };
        if kept.is_none() {
            identity.write()?;
        }
        Ok(identity)
    }

    pub(super) fn client_id(&self) -> &str {
        &self.client_id
    }

    /// What the session has, as far as is known.
    pub(super) fn subscribed(&self) -> &[String] {
        &self.subscribed
    }

    /// Remembers what the session has now.
    pub(super) fn set_subscribed(&mut self, subscribed: Vec<String>) -> Result<(), ConnectorError> {
        self.subscribed = subscribed;
        self.write()
    }

    fn write(&self) -> Result<(), ConnectorError> {
        let mut text = self.client_id.clone();
        for line in &self.subscribed {
            text.push('\n');
            text.push_str(line);
        }
        storage::replace(&self.path, text.as_bytes())
            .map_err(|error| ConnectorError::storage(&self.path, error))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn a_name_that_was_made_up_stays_and_another_one_starts_anew() {
        let dir = tempfile::tempdir().unwrap();
        let cx = ConnectorContext {
            name: "m".into(),
            state_dir: dir.path().join("not/there"),
            metrics: Arc::new(Metrics::new()),
            shutdown: CancellationToken::new(),
        };
        let mut first = Identity::open(&cx, None).unwrap();
        first.set_subscribed(vec!["1 a/#".into(), "1 b".into()]).unwrap();
        let again = Identity::open(&cx, None).unwrap();
        assert_eq!((again.client_id(), again.subscribed()), (first.client_id(), first.subscribed()));
        let other = Identity::open(&cx, Some("other")).unwrap();
        assert_eq!((other.client_id(), other.subscribed().len()), ("other", 0));
    }
}
