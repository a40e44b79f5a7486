//! The simulated source: a log in partitions that can be read again, on a bad line.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::buffer::Buffer;
use async_trait::async_trait;
use logdrive_connectors::{Budget, ConnectorError, Source};
use logdrive_schemas::{Chunk, MessageRange, Partition, Position};
use tokio::time::sleep;

use crate::message::Dice;
use crate::world::{N_KEYS, N_MESSAGES, N_PARTITIONS, World};

/// One message, and what is to become of it.
pub(crate) fn message(partition: u64, offset: u64) -> String {
    if fate(partition, offset) == Fate::Malformed {
        return format!("{{\"id\":{offset}");
    }
    format!("{{\"id\":{offset},\"key\":\"k{}\",\"n\":{partition}}}", offset % N_KEYS)
}

/// What is to become of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Delivered,
    /// The decoder rejects it.
    Malformed,
    /// The sink `exact` refuses it.
    Refused,
}

pub(crate) fn fate(partition: u64, offset: u64) -> Fate {
    match Dice::new(partition << 32 | offset).next() {
        dice if dice.is_multiple_of(53) => Fate::Malformed,
        dice if dice.is_multiple_of(41) => Fate::Refused,
        _ => Fate::Delivered,
    }
}

/// A reader of the log.
pub(crate) struct Reader {
    world: Arc<World>,
    dice: Dice,
    cursors: BTreeMap<u64, u64>,
    committed: BTreeMap<u64, u64>,
}

impl Reader {
    pub(crate) fn new(world: &Arc<World>, dice: Dice) -> Self {
        Self { world: Arc::clone(world), dice, cursors: BTreeMap::new(), committed: BTreeMap::new() }
    }

    fn read(&mut self, budget: Budget) -> Option<Chunk> {
        let open: Vec<u64> = self
            .cursors
            .iter()
            .filter(|(_, at)| **at < N_MESSAGES)
            .map(|(partition, _)| *partition)
            .collect();
        let partition = *open.get(self.dice.range(0, open.len().max(1) as u64) as usize)?;
        let cursor = self.cursors.get_mut(&partition).expect("it is one of them");
        let n = self.dice.range(1, 40).min(N_MESSAGES - *cursor).min(budget.messages as u64);
        let (mut data, mut messages) = (Vec::new(), Vec::new());
        let offsets: Vec<u64> = (*cursor..*cursor + n).collect();
        for offset in &offsets {
            let text = message(partition, *offset);
            messages.push(MessageRange { start: data.len() as u32, len: text.len() as u32 });
            data.extend_from_slice(text.as_bytes());
        }
        *cursor += n;
        Some(Chunk {
            source: "log".into(),
            partition: Partition(partition),
            data: Buffer::from_vec(data),
            messages,
            offsets,
            received_at: 0,
            peer: None,
            attributes: None,
            next_offset: *cursor,
        })
    }
}

#[async_trait]
impl Source for Reader {
    async fn connect(&mut self, delivered: &[Position]) -> Result<(), ConnectorError> {
        self.world.may_fail(&mut self.dice, 4)?;
        self.cursors = (0..N_PARTITIONS).map(|partition| (partition, 0)).collect();
        for position in delivered {
            self.world.started_at(*position);
            self.cursors.insert(position.partition.0, position.offset);
        }
        self.committed.clone_from(&self.cursors);
        Ok(())
    }

    async fn recv(&mut self, budget: Budget) -> Result<Chunk, ConnectorError> {
        sleep(Duration::from_millis(self.dice.range(0, 12))).await;
        self.world.may_fail(&mut self.dice, 60)?;
        self.read(budget).ok_or(ConnectorError::End)
    }

    async fn commit(&mut self, upto: Position) -> Result<(), ConnectorError> {
        let before = self.committed.insert(upto.partition.0, upto.offset);
        self.world.committed(upto, before);
        self.world.may_fail(&mut self.dice, 10)
    }
}
