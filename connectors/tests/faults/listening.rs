//! A source that receives, with a slow and unreliable disk of the test's own where the write-ahead buffer would be.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use logdrive_connectors::{ConnectorContext, ConnectorError, Intake, NotDurable, SOURCES, SourceKind};
use logdrive_schemas::component::{Limits, Node};
use tokio::task::JoinHandle;

use crate::storm::{Tally, context, numbers_behind};

/// The disk takes so long for a group.
const DISK: Duration = Duration::from_millis(2);

/// A source that runs, and what is on the disk.
pub(crate) struct Listening {
    pub(crate) delivered: Tally,
    /// Where it listens, if it does.
    pub(crate) address: SocketAddr,
    cx: ConnectorContext,
    run: JoinHandle<Result<(), ConnectorError>>,
}

/// A source as a pipeline would build it; `PORT` in the YAML is one that is free. Every `fails_every`th group does not
/// get on the disk: whoever sent it must be told, or rather not be told that it is. Zero is never.
pub(crate) async fn listen(dir: &Path, yaml: &str, fails_every: usize, mark: &'static str) -> Listening {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let yaml = yaml.replace("PORT", &address.port().to_string());
    let mut node = Node::parse(yaml.as_bytes(), Limits::default()).unwrap();
    let kind = node.take("type").expect("a type");
    let entry = SOURCES.iter().find(|entry| Some(entry.name) == kind.as_str()).unwrap();
    let cx = context("in", dir);
    let mut listener = match (entry.build)(&node, &cx) {
        Ok(SourceKind::Listener(listener)) => listener,
        Ok(SourceKind::Log(_)) => panic!("{yaml}: a log"),
        Err(errors) => panic!("{yaml}: {errors:?}"),
    };
    listener.bind().await.unwrap();
    let (intake, mut received) = Intake::channel(4);
    let delivered = Tally::default();
    let on_disk = delivered.clone();
    tokio::spawn(async move {
        let mut n_groups = 0;
        while let Some(group) = received.recv().await {
            tokio::time::sleep(DISK).await;
            n_groups += 1;
            let fails = fails_every > 0 && n_groups % fails_every == 0;
            let result = if fails { Err(NotDurable("the disk is full".into())) } else { Ok(()) };
            if result.is_ok() {
                let text = |m: &logdrive_schemas::MessageRange| {
                    String::from_utf8_lossy(&group.data[m.start as usize..(m.start + m.len) as usize])
                        .into_owned()
                };
                let texts: Vec<_> = group.messages.iter().map(text).collect();
                on_disk.add(texts.iter().filter_map(|text| numbers_behind(text, mark).next()));
            }
            if let Some(ack) = group.ack {
                // The peer may have gone.
                ack.send(result).ok();
            }
        }
    });
    Listening { delivered, address, run: tokio::spawn(listener.run(intake)), cx }
}

impl Listening {
    /// Stops it as the runtime does.
    pub(crate) async fn stop(self) {
        self.cx.shutdown.cancel();
        let stopped = tokio::time::timeout(Duration::from_secs(20), self.run).await;
        stopped.expect("the source stops").unwrap().unwrap();
    }

    /// A file of its folder.
    pub(crate) fn file(&self, name: &str) -> std::path::PathBuf {
        self.cx.state_dir.join(name)
    }
}
