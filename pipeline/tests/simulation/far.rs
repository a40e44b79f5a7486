//! The simulated far ends: they break, forget what was not flushed, store what they then say they did not, and refuse
//! rows.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use logdrive_connectors::sink::FlushPolicy;
use logdrive_connectors::{ConnectorError, Sink};
use logdrive_schemas::reject::{self, Reject};
use logdrive_schemas::{Batch, Epoch, Partition};
use tokio::time::sleep;

use crate::log::{Fate, fate};
use crate::message::Dice;
use crate::world::World;

/// Where a row comes from: source, partition, offset. The same row has the same after every crash.
pub(crate) type Id = (String, u64, u64);

/// Which far end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Knows positions, and refuses some rows.
    Exact,
    /// Takes whatever comes, twice if it comes twice.
    Plain,
    /// What others refused.
    Rejects,
    /// Rows of a view, by their position.
    Changes,
}

/// A connection to a far end.
pub(crate) struct Connection {
    world: Arc<World>,
    kind: Kind,
    dice: Dice,
    policy: FlushPolicy,
    written: Vec<(Id, RecordBatch)>,
}

impl Connection {
    pub(crate) fn new(world: &Arc<World>, kind: Kind, mut dice: Dice) -> Self {
        let bytes_max = if dice.one_in(2) { 1 } else { 1 << 20 };
        let policy = FlushPolicy { bytes_max, age_max: Duration::from_millis(dice.range(5, 150)) };
        Self { world: Arc::clone(world), kind, dice, policy, written: Vec::new() }
    }

    /// Keeps the rows of a batch that are not there yet; returns those that it never will.
    fn take(&mut self, batch: &Batch) -> Option<Batch> {
        let origin = batch.origin();
        let knows_positions = matches!(self.kind, Kind::Exact | Kind::Changes);
        let known = knows_positions.then(|| self.world.position(self.kind, &origin.source, origin.partition));
        let mut refused = Vec::new();
        for (idx, offset) in batch.offsets().values().iter().copied().enumerate() {
            let Partition(partition) = origin.partition;
            if self.kind == Kind::Exact && fate(partition, offset) == Fate::Refused {
                refused.push(Reject { idx, reason: "refused: this one never".into() });
                continue;
            }
            if known.flatten().is_some_and(|known| offset <= known) {
                continue;
            }
            let id = (origin.source.to_string(), partition, offset);
            self.written.push((id, batch.rows().slice(idx, 1)));
        }
        reject::of_batch(batch, &refused)
    }
}

#[async_trait]
impl Sink for Connection {
    async fn connect(&mut self) -> Result<(), ConnectorError> {
        self.written.clear();
        self.world.may_fail(&mut self.dice, 5)
    }

    async fn write(&mut self, batch: &Batch) -> Result<Option<Batch>, ConnectorError> {
        if self.dice.one_in(8) {
            sleep(Duration::from_millis(self.dice.range(0, 30))).await;
        }
        self.world.may_fail(&mut self.dice, 50)?;
        let refused = self.take(batch);
        self.world.may_fail(&mut self.dice, 50)?;
        Ok(refused)
    }

    async fn flush(&mut self, _: Epoch) -> Result<Option<Batch>, ConnectorError> {
        sleep(Duration::from_millis(self.dice.range(0, 8))).await;
        self.world.may_fail(&mut self.dice, 30)?;
        self.world.store(self.kind, std::mem::take(&mut self.written));
        // It is there, and nobody is told.
        self.world.may_fail(&mut self.dice, 30)?;
        Ok(None)
    }

    fn flush_policy(&self) -> FlushPolicy {
        self.policy
    }
}
