//! Where data enters.
//!
//! Two kinds. A [`Source`] has a log of its own that can be read again (a file, a Kafka topic, the seeded generator).
//! A [`Listener`] has none (TCP, UDP, HTTP …): the runtime puts the write-ahead buffer behind it, which makes it a
//! [`Source`].

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, StructArray};
use async_trait::async_trait;
use bytes::Bytes;
use logdrive_schemas::component::{Component, ConfigError, Node};
use logdrive_schemas::{Chunk, MessageRange, Partition, Position, RowSchema};
use prometheus::IntGauge;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::context::ConnectorContext;
use crate::error::ConnectorError;

/// How much one call may return.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Messages.
    pub messages: usize,
    /// Bytes.
    pub bytes: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { messages: 16_384, bytes: 4 << 20 }
    }
}

/// A log that can be read again from a position.
#[async_trait]
pub trait Source: Send {
    /// Opens the log. `delivered` holds, per partition, the first offset that is not yet delivered; a partition that
    /// is not listed starts where the configuration says. Called until it succeeds, and again after an error that
    /// asks for it. Leaves nothing behind on failure.
    async fn connect(&mut self, delivered: &[Position]) -> Result<(), ConnectorError>;

    /// Waits for the next chunk, no larger than `budget` (one message may exceed it alone). Cancel-safe: dropping
    /// the future loses nothing. `Err(End)` when there will be no more; it is then not called again.
    async fn recv(&mut self, budget: Budget) -> Result<Chunk, ConnectorError>;

    /// Everything before `upto` is durable in every sink; the far end may forget it. Positions only grow within a
    /// partition. Never called for data that could still be lost. May be called between any two `recv`.
    async fn commit(&mut self, upto: Position) -> Result<(), ConnectorError>;

    /// Positions that must survive a restart are kept by the runtime (in `<data_dir>/positions`) for sources that
    /// say true; the write-ahead buffer keeps its own.
    fn wants_positions_kept(&self) -> bool {
        true
    }
}

/// Answers a peer that waits until its data is durable. Dropping it means "not durable".
pub type Ack = oneshot::Sender<Result<(), NotDurable>>;

/// The data could not be made durable; the peer should send it again.
#[derive(Clone, Debug, thiserror::Error)]
#[error("not durable: {0}")]
pub struct NotDurable(pub String);

/// The most bytes of one [`Received`].
pub const RECEIVED_MAX: usize = 64 << 20;

/// Groups of messages that may wait in the intake of a buffer.
const INTAKE_DEPTH: usize = 1024;
/// Bytes of messages that may wait in the intake of a buffer, unless the buffer is smaller.
const INTAKE_BYTES_MAX: u32 = 16 << 20;

/// Messages from one peer, received together.
pub struct Received {
    /// All messages, one behind the other, with whatever lay between them. At most 64 MiB.
    pub data: Bytes,
    /// Where each message lies in `data`, ascending.
    pub messages: Vec<MessageRange>,
    /// Who sent them.
    pub peer: Option<Arc<str>>,
    /// What is known of each message beside its bytes, one row per message; of the type that
    /// [`SourceConfig::attributes`] says.
    pub attributes: Option<StructArray>,
    /// Told when the messages are durable (or, with `buffer: { mode: memory }`, delivered).
    pub ack: Option<Ack>,
}

impl Received {
    /// How many bytes of memory it takes, but for the positions of its messages.
    pub(crate) fn bytes(&self) -> usize {
        self.data.len() + self.attributes.as_ref().map_or(0, Array::get_array_memory_size)
    }
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Received").field("messages", &self.messages.len()).field("peer", &self.peer).finish()
    }
}

/// The way from a listener into its buffer: bounded, so that a full buffer stops the listener from reading.
#[derive(Clone, Debug)]
pub struct Intake {
    sender: mpsc::Sender<Received>,
    /// Bytes that may still be sent before some are released; `None` if only `depth` counts.
    bytes: Option<Released>,
}

/// How the far end of an [`Intake`] gives bytes back.
#[derive(Clone, Debug)]
pub(crate) struct Released {
    free: Arc<Semaphore>,
    bytes_max: u32,
    waiting: IntGauge,
}

impl Released {
    /// What a group of `n` bytes counts for: one that is larger than the bound waits until it is alone.
    pub(crate) fn weight(&self, n: usize) -> u32 {
        u32::try_from(n).map_or(self.bytes_max, |n| n.min(self.bytes_max))
    }

    /// Groups of this weight together no longer wait.
    pub(crate) fn release(&self, weight: u32) {
        self.waiting.sub(i64::from(weight));
        self.free.add_permits(weight as usize);
    }
}

impl Intake {
    /// An intake and its other end, holding up to `depth` groups of messages.
    #[must_use]
    pub fn channel(depth: usize) -> (Self, mpsc::Receiver<Received>) {
        let (sender, receiver) = mpsc::channel(depth);
        (Self { sender, bytes: None }, receiver)
    }

    /// The intake of a buffer that may hold `buffer_bytes_max`: what was not released is bounded and counted.
    pub(crate) fn bounded(
        cx: &ConnectorContext,
        buffer_bytes_max: u64,
    ) -> (Self, mpsc::Receiver<Received>, Released) {
        let (sender, receiver) = mpsc::channel(INTAKE_DEPTH);
        let bytes_max = u32::try_from(buffer_bytes_max).unwrap_or(u32::MAX).clamp(64 << 10, INTAKE_BYTES_MAX);
        let waiting = cx.metrics.intake_bytes.with_label_values(&[&cx.name]);
        let released = Released { free: Arc::new(Semaphore::new(bytes_max as usize)), bytes_max, waiting };
        (Self { sender, bytes: Some(released.clone()) }, receiver, released)
    }

    /// Hands messages over, waiting while the buffer is full. Cancel-safe only in that nothing is sent.
    ///
    /// # Errors
    /// If the pipeline has stopped or the messages are more than 64 MiB; they were not taken.
    pub async fn send(&self, received: Received) -> Result<(), NotDurable> {
        const STOPPED: &str = "the pipeline has stopped";
        let n_bytes = received.bytes();
        if RECEIVED_MAX < n_bytes {
            return Err(NotDurable(format!("{n_bytes} bytes at once, at most {RECEIVED_MAX} are taken")));
        }
        // The slot first: it fails when the buffer is gone, the semaphore never does.
        let slot = self.sender.reserve().await.map_err(|_| NotDurable(STOPPED.into()))?;
        if let Some(released) = &self.bytes {
            let weight = released.weight(n_bytes);
            let permit = tokio::select! {
                permit = released.free.acquire_many(weight) => permit.map_err(|_| NotDurable(STOPPED.into()))?,
                () = self.sender.closed() => return Err(NotDurable(STOPPED.into())),
            };
            permit.forget();
            released.waiting.add(i64::from(weight));
        }
        slot.send(received);
        Ok(())
    }
}

/// A source without a log of its own.
#[async_trait]
pub trait Listener: Send {
    /// Binds sockets and opens files, so that an address in use is an error before anything runs. Called once.
    async fn bind(&mut self) -> Result<(), ConnectorError>;

    /// Receives until the input ends (`Ok`) or `shutdown` of its context is cancelled (`Ok`, after handing over what
    /// it has). Trouble with one peer is counted and logged, never returned.
    async fn run(self: Box<Self>, intake: Intake) -> Result<(), ConnectorError>;
}

/// What a source's configuration builds.
pub enum SourceKind {
    /// It has a log of its own.
    Log(Box<dyn Source>),
    /// It needs the write-ahead buffer.
    Listener(Box<dyn Listener>),
}

/// The YAML of a source, without the keys that belong to the plan (`type`, `decoder`, `schema`, `buffer`).
pub trait SourceConfig: Component {
    /// The decoder of its messages, unless `decoder` names another.
    const DECODER: &'static str = "json";

    /// Reads certificates and the like; opens no connection.
    ///
    /// # Errors
    /// What is wrong with the configuration; the span may be left empty, the caller fills it in.
    fn build(self, cx: &ConnectorContext) -> Result<SourceKind, ConfigError>;

    /// What the source says of each message beside its bytes: the name of the object column and the fields in it
    /// (event time and lateness do not count). `None` unless the user asked for it, with `metadata: NAME`; chunks
    /// then need not have [`Chunk::attributes`].
    fn attributes(&self) -> Option<(String, RowSchema)> {
        None
    }
}

/// One line of the registry.
pub struct SourceEntry {
    /// `type:`.
    pub name: &'static str,
    /// A complete fragment of YAML.
    pub example: &'static str,
    /// The decoder of its messages, unless another is named.
    pub decoder: &'static str,
    /// The JSON Schema of its keys.
    pub schema: fn() -> schemars::Schema,
    /// Reads the YAML without building.
    pub check: fn(&Node, &mut Vec<ConfigError>),
    /// Reads the YAML: [`SourceConfig::attributes`]. `None` also if the YAML is wrong.
    pub attributes: fn(&Node) -> Option<(String, RowSchema)>,
    /// Reads the YAML and builds.
    pub build: fn(&Node, &ConnectorContext) -> Result<SourceKind, Vec<ConfigError>>,
}

impl SourceEntry {
    /// The entry of a configuration type.
    #[must_use]
    pub const fn of<C: SourceConfig>() -> Self {
        Self {
            name: C::NAME,
            example: C::EXAMPLE,
            decoder: C::DECODER,
            schema: || schemars::schema_for!(C),
            check: |node, errors| {
                logdrive_schemas::component::parse::<C>(node, errors);
            },
            attributes: |node| logdrive_schemas::component::parse::<C>(node, &mut Vec::new())?.attributes(),
            build: |node, cx| {
                let mut errors = Vec::new();
                let config = logdrive_schemas::component::parse::<C>(node, &mut errors).ok_or(errors)?;
                config.build(cx).map_err(|e| vec![spanned(e, node)])
            },
        }
    }
}

/// Gives an error without a place the place of its component.
pub(crate) fn spanned(mut error: ConfigError, node: &Node) -> ConfigError {
    if error.span.len == 0 {
        error.span = node.span;
    }
    error
}

/// A partition number for text that names a sequence, such as a path: xxh3 of it.
#[must_use]
pub fn partition_of(name: &str) -> Partition {
    Partition(xxhash_rust::xxh3::xxh3_64(name.as_bytes()))
}
