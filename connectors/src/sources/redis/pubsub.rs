//! Channels: what is published is received by whoever listens, and kept by nobody.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::{FutureExt as _, StreamExt as _};
use logdrive_schemas::MessageRange;
use redis::{Client, Msg, RedisResult};
use tokio::time::timeout;
use tracing::warn;

use super::entries::attributes;
use super::{DataType, Redis};
use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::source::{Intake, Listener, Received};
use crate::sources::net::counts::Counts;

/// How long to wait before the next attempt to connect; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// A server that does not answer a connection for so long is not there.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// No message is added to a group of so many bytes or messages.
const GROUP_BYTES: usize = 1 << 20;
const GROUP_MESSAGES: usize = 4096;

pub(super) struct Subscriber {
    pub(super) config: Redis,
    pub(super) client: Client,
    pub(super) cx: ConnectorContext,
}

#[async_trait]
impl Listener for Subscriber {
    async fn bind(&mut self) -> Result<(), ConnectorError> {
        Ok(())
    }

    async fn run(self: Box<Self>, intake: Intake) -> Result<(), ConnectorError> {
        let (counts, shutdown) = (Counts::new(&self.cx), self.cx.shutdown.clone());
        let mut pause = RETRY_MIN;
        loop {
            let Some(ended) = shutdown.run_until_cancelled(self.listen(&intake, &counts, &mut pause)).await
            else {
                return Ok(());
            };
            let error = match ended {
                Ok(()) => "the connection is closed".to_owned(),
                Err(error) => error.to_string(),
            };
            self.cx.metrics.source_errors.with_label_values(&[&*self.cx.name, "disconnected"]).inc();
            warn!(source = %self.cx.name, error, "Not connected; what is published now is lost.");
            if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return Ok(());
            }
            pause = (pause * 2).min(RETRY_MAX);
        }
    }
}

impl Subscriber {
    /// Listens until the connection ends or the intake takes nothing more.
    async fn listen(&self, intake: &Intake, counts: &Counts, pause: &mut Duration) -> RedisResult<()> {
        let connect = async {
            let mut pubsub = self.client.get_async_pubsub().await?;
            match self.config.data_type {
                DataType::PatternChannel => pubsub.psubscribe(&self.config.keys).await?,
                DataType::Channel | DataType::Stream => pubsub.subscribe(&self.config.keys).await?,
            }
            RedisResult::Ok(pubsub)
        };
        let slow = || std::io::Error::from(std::io::ErrorKind::TimedOut);
        let pubsub = timeout(CONNECT_MAX, connect).await.map_err(|_| slow())??;
        *pause = RETRY_MIN;
        counts.connections.set(1);
        let mut messages = pubsub.into_on_message();
        let mut ended = false;
        while !ended {
            let Some(first) = messages.next().await else { break };
            let mut group = vec![first];
            let mut n_bytes = group[0].get_payload_bytes().len();
            while n_bytes < GROUP_BYTES && group.len() < GROUP_MESSAGES {
                match messages.next().now_or_never() {
                    Some(Some(message)) => {
                        n_bytes += message.get_payload_bytes().len();
                        group.push(message);
                    }
                    Some(None) => {
                        ended = true;
                        break;
                    }
                    None => break,
                }
            }
            if self.hand_over(&group, intake, counts).await.is_err() {
                break;
            }
        }
        counts.connections.set(0);
        Ok(())
    }

    async fn hand_over(
        &self,
        group: &[Msg],
        intake: &Intake,
        counts: &Counts,
    ) -> Result<(), crate::NotDurable> {
        let mut data = Vec::new();
        let mut ranges = Vec::with_capacity(group.len());
        for message in group {
            let payload = message.get_payload_bytes();
            // Cut so that the group stays within what the intake takes; the decoder then says what is wrong.
            let payload = &payload[..payload.len().min(crate::source::RECEIVED_MAX / 2)];
            let start = u32::try_from(data.len()).expect("a group is bounded");
            let len = u32::try_from(payload.len()).expect("a message is cut");
            ranges.push(MessageRange { start, len });
            data.extend_from_slice(payload);
        }
        let known = || attributes(group.iter().map(|message| (message.get_channel_name(), None)));
        let received = Received {
            data: data.into(),
            messages: ranges.clone(),
            peer: Some(Arc::from(self.config.endpoint.as_str())),
            attributes: self.config.metadata.as_ref().map(|_| known()),
            ack: None,
        };
        intake.send(received).await?;
        counts.received(&ranges);
        Ok(())
    }
}
