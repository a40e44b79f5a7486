//! What the client library tells us: rebalances, commits, statistics, errors.

use std::collections::VecDeque;
use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::client::OAuthToken;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Offset, Statistics, TopicPartitionList};

use super::shared::Shared;
use crate::context::ConnectorContext;
use crate::kafka::oauth::Login;
use crate::kafka::{is_refusal, log};
use crate::source::partition_of;

/// What the group decided; librdkafka waits until it is carried out.
pub(super) enum Rebalance {
    Assign(Vec<(String, i32)>),
    Revoke {
        partitions: Vec<(String, i32)>,
        /// Others may have them already: nothing may be committed any more.
        lost: bool,
    },
}

/// Takes note of rebalances, which the member's thread carries out between two polls: giving partitions up takes
/// longer than a callback should.
pub(super) struct GroupContext {
    name: Arc<str>,
    shared: Arc<Shared>,
    rebalances: Mutex<VecDeque<Rebalance>>,
    refusal: Mutex<Option<String>>,
    /// Nobody carries out anything any more.
    closed: AtomicBool,
    login: Arc<Login>,
}

impl GroupContext {
    pub(super) fn new(cx: &ConnectorContext, shared: Arc<Shared>, login: Arc<Login>) -> Self {
        Self {
            name: Arc::clone(&cx.name),
            shared,
            rebalances: Mutex::default(),
            refusal: Mutex::default(),
            closed: AtomicBool::new(false),
            login,
        }
    }

    pub(super) fn next_rebalance(&self) -> Option<Rebalance> {
        self.rebalances.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Why the broker does not let us, if it has said so.
    pub(super) fn refusal(&self) -> Option<String> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From here on rebalances are carried out as they come: the consumer is about to be dropped, which waits for it.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }
}

/// Carries out an assignment.
pub(super) fn assign<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &TopicPartitionList,
) -> KafkaResult<()> {
    match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_assign(partitions),
        _ => consumer.assign(partitions),
    }
}

/// Carries out a revocation.
pub(super) fn unassign<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &TopicPartitionList,
) -> KafkaResult<()> {
    match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_unassign(partitions),
        _ => consumer.unassign(),
    }
}

impl ClientContext for GroupContext {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.login.token()
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(&self.name, level, facility, message);
    }

    fn stats(&self, statistics: Statistics) {
        self.shared.show_lag(&statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if is_refusal(&error) && self.login.failure().is_none() {
            *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
        }
        tracing::warn!(source = %self.name, %error, "{reason}");
    }
}

impl ConsumerContext for GroupContext {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, err: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let is_assignment = err == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if self.closed.load(Ordering::Acquire) {
            let result = if is_assignment { assign(consumer, list) } else { unassign(consumer, list) };
            if let Err(error) = result {
                tracing::warn!(source = %self.name, %error, "Cannot leave the Kafka group properly.");
            }
            return;
        }
        let partitions =
            list.elements().iter().map(|elem| (elem.topic().to_owned(), elem.partition())).collect();
        let rebalance = if is_assignment {
            Rebalance::Assign(partitions)
        } else {
            Rebalance::Revoke { partitions, lost: consumer.assignment_lost() }
        };
        self.rebalances.lock().unwrap_or_else(PoisonError::into_inner).push_back(rebalance);
    }

    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        if let Err(error) = &result {
            tracing::warn!(source = %self.name, %error, "Kafka group has not noted what is delivered; asking again.");
        }
        for elem in offsets.elements() {
            let noted = match (&result, elem.error(), elem.offset()) {
                (Ok(()), Ok(()), Offset::Offset(offset)) => u64::try_from(offset).ok(),
                _ => None,
            };
            self.shared.answered(partition_of(&format!("{}/{}", elem.topic(), elem.partition())), noted);
        }
    }
}
