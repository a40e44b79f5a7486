//! Where to begin in a partition for which the group has no committed offset.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};
use serde::Deserialize;

/// How long the broker may take for one answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Where to begin in a partition for which the group has no committed offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// At the oldest message.
    #[default]
    Earliest,
    /// Behind the newest message.
    Latest,
    /// At the first message that is not older, in milliseconds since the Unix epoch.
    At(i64),
}

impl<'de> Deserialize<'de> for Start {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        match text.as_str() {
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            text => {
                text.parse::<jiff::Timestamp>().map(|time| Self::At(time.as_millisecond())).map_err(|_| {
                    serde::de::Error::custom(format!(
                        "`{text}` is no start, write `earliest`, `latest` or a time like 2026-01-31T12:00:00Z"
                    ))
                })
            }
        }
    }
}

impl Start {
    /// The offset to begin with in each partition: the committed one, else the configured one, which is committed,
    /// so that it does not move while there is nothing to deliver.
    pub(super) fn resolve<C: ConsumerContext>(
        self,
        consumer: &BaseConsumer<C>,
        partitions: &[(String, i32)],
    ) -> KafkaResult<TopicPartitionList> {
        let mut asked = TopicPartitionList::new();
        for (topic, partition) in partitions {
            asked.add_partition(topic, *partition);
        }
        let mut offsets = consumer.committed_offsets(asked, ANSWER_MAX)?;
        let mut begun = TopicPartitionList::new();
        for (topic, partition) in partitions {
            let known = offsets.find_partition(topic, *partition).map(|elem| elem.offset());
            if let Some(Offset::Offset(_)) = known {
                continue;
            }
            let offset = Offset::Offset(self.first(consumer, topic, *partition)?);
            offsets.set_partition_offset(topic, *partition, offset)?;
            begun.add_partition_offset(topic, *partition, offset)?;
        }
        if begun.count() > 0 {
            consumer.commit(&begun, CommitMode::Sync)?;
        }
        Ok(offsets)
    }

    fn first<C: ConsumerContext>(
        self,
        consumer: &BaseConsumer<C>,
        topic: &str,
        partition: i32,
    ) -> KafkaResult<i64> {
        if let Self::At(millis) = self {
            let mut time = TopicPartitionList::new();
            time.add_partition_offset(topic, partition, Offset::Offset(millis))?;
            let found = consumer.offsets_for_times(time, ANSWER_MAX)?;
            if let Some(Offset::Offset(offset)) =
                found.find_partition(topic, partition).map(|elem| elem.offset())
            {
                return Ok(offset);
            }
        }
        let (low, high) = consumer.fetch_watermarks(topic, partition, ANSWER_MAX)?;
        Ok(if self == Self::Earliest { low } else { high })
    }
}
