//! The `stdin` source: lines from standard input, until it ends.
//!
//! A thread reads, because a read of a terminal or a file cannot be abandoned: when the pipeline stops, the thread
//! is left behind in its read, and the process ends without it.

use std::io::{self, Read};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use logdrive_schemas::component::{Component, ConfigError, bytes};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc;

use super::net::budget::ByteBudget;
use super::net::counts::Counts;
use super::net::expand::Compression;
use super::net::server::Common;
use super::net::stream::{Shared, StreamLimits, pump};
use super::tcp::defaults;
use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::source::{Intake, Listener, SourceConfig, SourceKind};

/// How much the thread reads at once.
const BLOCK_BYTES: usize = 256 << 10;

/// Receives lines from standard input; the source ends with it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stdin {
    /// A longer line becomes a reject that holds its first `max_line_bytes` bytes; the next line is read as usual.
    #[serde(default = "defaults::line_bytes", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_line_bytes: u64,
    /// How the input is compressed. Input that expands more than a hundredfold is cut off.
    #[serde(default)]
    pub compression: Compression,
}

impl Component for Stdin {
    const NAME: &'static str = "stdin";
    const EXAMPLE: &'static str = "type: stdin\n";
}

impl SourceConfig for Stdin {
    fn build(self, cx: &ConnectorContext) -> Result<SourceKind, ConfigError> {
        let buffered = defaults::buffered_bytes().max(2 * self.max_line_bytes);
        let limits = StreamLimits::checked(self.max_line_bytes, buffered, Duration::ZERO, self.compression)?;
        Ok(SourceKind::Listener(Box::new(Input { input: Box::new(io::stdin()), limits, cx: cx.clone() })))
    }
}

struct Input {
    input: Box<dyn Read + Send>,
    limits: StreamLimits,
    cx: ConnectorContext,
}

#[async_trait]
impl Listener for Input {
    async fn bind(&mut self) -> Result<(), ConnectorError> {
        Ok(())
    }

    async fn run(self: Box<Self>, intake: Intake) -> Result<(), ConnectorError> {
        let Self { mut input, limits, cx } = *self;
        let shared = Shared {
            limits,
            common: Common {
                budget: ByteBudget::new(u64::MAX),
                counts: Arc::new(Counts::new(&cx)),
                intake,
                shutdown: cx.shutdown.clone(),
            },
        };
        let (blocks, received) = mpsc::channel(1);
        std::thread::Builder::new()
            .name(format!("{}-stdin", cx.name))
            .spawn(move || read_blocks(&mut *input, &blocks))
            .map_err(|e| ConnectorError::refused("stdin", format!("no thread to read with: {e}")))?;
        pump(Blocks { received, current: Bytes::new() }, Arc::from("stdin"), &shared).await;
        Ok(())
    }
}

/// Reads until the end, an error, or nobody listens any more.
fn read_blocks(input: &mut dyn Read, blocks: &mpsc::Sender<io::Result<Bytes>>) {
    let mut buffer = vec![0; BLOCK_BYTES];
    loop {
        let block = match input.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => Ok(Bytes::copy_from_slice(&buffer[..n])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
        let failed = block.is_err();
        if blocks.blocking_send(block).is_err() || failed {
            return;
        }
    }
}

/// What the thread has read, as a reader.
struct Blocks {
    received: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl AsyncRead for Blocks {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.current.is_empty() {
            match std::task::ready!(self.received.poll_recv(cx)) {
                Some(Ok(block)) => self.current = block,
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => return Poll::Ready(Ok(())),
            }
        }
        let n = self.current.len().min(into.remaining());
        into.put_slice(&self.current[..n]);
        self.current.advance(n);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tokio_util::sync::CancellationToken;

    use super::*;

    async fn run(input: impl Read + Send + 'static, shutdown: CancellationToken) -> Vec<Vec<u8>> {
        let cx = ConnectorContext {
            name: "in".into(),
            state_dir: "unused".into(),
            metrics: Arc::default(),
            shutdown,
        };
        let limits = StreamLimits::checked(1000, 2000, Duration::ZERO, Compression::Auto).unwrap();
        let listener = Box::new(Input { input: Box::new(input), limits, cx });
        let (intake, mut received) = Intake::channel(1);
        let run = tokio::spawn(listener.run(intake));
        let mut messages = Vec::new();
        while let Some(group) = received.recv().await {
            let of = |m: &logdrive_schemas::MessageRange| {
                group.data[m.start as usize..(m.start + m.len) as usize].to_vec()
            };
            messages.extend(group.messages.iter().map(of));
        }
        run.await.unwrap().unwrap();
        messages
    }

    #[tokio::test]
    async fn reads_a_pipe_to_its_end() {
        let (reader, mut writer) = io::pipe().unwrap();
        let write = std::thread::spawn(move || {
            for i in 0..10_000 {
                writeln!(writer, "line {i}").unwrap();
            }
            write!(writer, "last").unwrap();
        });
        let messages = run(reader, CancellationToken::new()).await;
        write.join().unwrap();
        assert_eq!(messages.len(), 10_001);
        assert_eq!(messages[9_999], b"line 9999");
        assert_eq!(messages[10_000], b"last");
    }

    #[tokio::test]
    async fn stops_although_the_pipe_stays_open() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"one\ntw").unwrap();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(run(reader, shutdown.clone()));
        shutdown.cancel();
        let messages = running.await.unwrap();
        assert!(messages.len() <= 2 && !messages.contains(&b"tw".to_vec()), "{messages:?}");
        drop(writer);
    }
}
