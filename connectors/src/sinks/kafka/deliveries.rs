//! What became of the messages that were handed to the client library.

use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rdkafka::ClientContext;
use rdkafka::client::OAuthToken;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::ProducerContext;
use tokio::sync::Notify;

use crate::kafka::oauth::Login;
use crate::kafka::{is_refusal, log};

/// A row of a batch, by their numbers since the last flush.
pub(super) type Row = (usize, usize);

/// What became of messages since the last flush.
#[derive(Default)]
pub(super) struct Outcome {
    /// Rows that are not wanted, and why.
    pub(super) refused: Vec<(Row, RDKafkaErrorCode)>,
    /// Something failed that may pass.
    pub(super) failed: Option<KafkaError>,
}

#[derive(Default)]
struct State {
    n_pending: usize,
    outcome: Outcome,
    refusal: Option<String>,
}

/// Counts messages that are on their way; shared between the sink and the library's callbacks.
#[derive(Default)]
pub(super) struct Deliveries {
    state: Mutex<State>,
    /// Told when something was delivered, or failed.
    changed: Notify,
}

impl Deliveries {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message is handed over.
    pub(super) fn sent(&self) {
        self.state().n_pending += 1;
    }

    /// A message was not taken after all.
    pub(super) fn not_sent(&self) {
        self.state().n_pending -= 1;
    }

    /// Rows were refused before they were sent.
    pub(super) fn refuse(&self, rows: Vec<(Row, RDKafkaErrorCode)>) {
        self.state().outcome.refused.extend(rows);
    }

    /// Waits until something changes. May return early.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Waits until nothing is on its way; what became of all.
    pub(super) async fn settled(&self) -> Outcome {
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.state();
                if state.n_pending == 0 {
                    return std::mem::take(&mut state.outcome);
                }
            }
            changed.await;
        }
    }

    /// Waits until nothing is on its way, or something is refused.
    pub(super) async fn settled_or_refused(&self) {
        loop {
            let changed = self.changed.notified();
            {
                let state = self.state();
                if state.n_pending == 0 || !state.outcome.refused.is_empty() {
                    return;
                }
            }
            changed.await;
        }
    }

    /// What failed so far, if something did.
    pub(super) fn failure(&self) -> Option<KafkaError> {
        self.state().outcome.failed.clone()
    }

    /// Whether rows are refused so far.
    pub(super) fn has_refused(&self) -> bool {
        !self.state().outcome.refused.is_empty()
    }

    /// Why the broker does not let us, if it has said so.
    pub(super) fn refusal(&self) -> Option<String> {
        self.state().refusal.take()
    }

    fn delivered(&self, row: Row, result: Result<(), KafkaError>) {
        let mut state = self.state();
        state.n_pending -= 1;
        match result {
            Ok(()) => {}
            Err(error) => match error.rdkafka_error_code().filter(|code| is_about_the_message(*code)) {
                Some(code) => state.outcome.refused.push((row, code)),
                None => state.outcome.failed = Some(error),
            },
        }
        if state.n_pending == 0 || state.outcome.failed.is_some() || !state.outcome.refused.is_empty() {
            self.changed.notify_one();
        }
    }
}

/// Whether an error would be the same whenever the message is sent again.
pub(super) fn is_about_the_message(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::MessageSizeTooLarge
            | Code::MessageBatchTooLarge
            | Code::InvalidMessageSize
            | Code::InvalidRecord
            | Code::InvalidTimestamp
            | Code::InvalidTopic
            | Code::PolicyViolation
            | Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::TopicAuthorizationFailed
    )
}

/// Whether it is about the topic: then it is the configuration's fault if all rows go to one.
pub(super) fn is_about_the_topic(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::InvalidTopic
            | Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::TopicAuthorizationFailed
    )
}

/// Takes the library's reports.
pub(super) struct Reports {
    pub(super) name: Arc<str>,
    pub(super) deliveries: Arc<Deliveries>,
    pub(super) login: Arc<Login>,
}

impl ClientContext for Reports {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.login.token()
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(&self.name, level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if is_refusal(&error) && self.login.failure().is_none() {
            self.deliveries.state().refusal = Some(reason.to_owned());
        }
        tracing::warn!(sink = %self.name, %error, "{reason}");
    }
}

impl ProducerContext for Reports {
    /// The row, as [`opaque`] packs it.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, row: usize) {
        let result = result.as_ref().map(|_| ()).map_err(|(error, _)| error.clone());
        self.deliveries.delivered((row >> 32, row & 0xffff_ffff), result);
    }
}

/// A row as one number. Batches have fewer rows than a `u32` counts.
pub(super) fn opaque((batch, row): Row) -> usize {
    batch << 32 | row
}
