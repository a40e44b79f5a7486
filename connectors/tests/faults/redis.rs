//! `redis` and Redis.

use std::time::Duration;

use logdrive_connectors::{SOURCES, Source, SourceKind};
use logdrive_schemas::component::{Limits, Node};
use redis::{Client, Connection, Value, cmd};
use tokio::time::{sleep, timeout};

use crate::at_hand;
use crate::components::Component;
use crate::storm::{Feeder, Tally, context, numbered, numbers_behind, settle, sink_survives, storm};
use crate::support::proxy::{FAULTS, Proxy};
use crate::support::sink;

const PORT: u16 = 21_410;

fn connection() -> Connection {
    Client::open(format!("redis://127.0.0.1:{PORT}")).unwrap().get_connection().unwrap()
}

/// Receives and commits as the runtime does, for ever.
async fn read_on(source: &mut dyn Source, delivered: &Tally) {
    let mut is_connected = false;
    loop {
        if !is_connected && source.connect(&[]).await.is_err() {
            sleep(Duration::from_millis(50)).await;
            continue;
        }
        is_connected = true;
        match timeout(Duration::from_millis(200), source.recv(Default::default())).await {
            Err(_) => {}
            Ok(Ok(chunk)) => {
                let texts = (0..chunk.messages.len()).map(|n| std::str::from_utf8(chunk.message(n)).unwrap());
                delivered.add(texts.map(|text| text.parse::<usize>().unwrap()));
                // The server that cannot be told now is told with a later one.
                source.commit(chunk.end()).await.ok();
            }
            Ok(Err(_)) => is_connected = false,
        }
    }
}

async fn there() {
    let dir = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(([127, 0, 0, 1], PORT).into(), None).await;
    let yaml =
        format!("{{endpoint: \"redis://{}\", keys: [there], field: message, timeout: 2s}}", proxy.address);
    let node = Node::parse(yaml.as_bytes(), Limits::default()).unwrap();
    let entry = SOURCES.iter().find(|entry| entry.name == "redis").unwrap();
    let Ok(SourceKind::Log(mut source)) = (entry.build)(&node, &context("in", dir.path())) else {
        panic!("no log")
    };
    let mut adding = connection();
    let feeder = Feeder::start(move |numbers| {
        for n in numbers {
            cmd("XADD").arg("there").arg("*").arg("message").arg(n).exec(&mut adding).unwrap();
        }
    });
    let delivered = Tally::default();
    let checking = async {
        storm("redis source", &proxy, &FAULTS, true, || delivered.n_all()).await;
        let n_sent = feeder.stop();
        let all = Tally::of(0..n_sent);
        settle("redis source", &proxy, n_sent, &all, async || delivered.clone()).await;
        // The server waits for no acknowledgement any more, once it was told of the newest.
        let mut asking = connection();
        let mut n_more = n_sent;
        loop {
            let summary: Vec<Value> =
                cmd("XPENDING").arg("there").arg("logdrive").query(&mut asking).unwrap();
            if summary[0] == Value::Int(0) {
                break;
            }
            cmd("XADD").arg("there").arg("*").arg("message").arg(n_more).exec(&mut asking).unwrap();
            n_more += 1;
            assert!(n_more < n_sent + 100, "pending: {summary:?}");
            sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(delivered.n_all(), delivered.n_different(), "nothing is received twice");
    };
    tokio::select! {
        () = read_on(&mut *source, &delivered) => {}
        () = checking => {}
    }
}

async fn back() {
    let proxy = Proxy::start(([127, 0, 0, 1], PORT).into(), None).await;
    let yaml = format!("{{endpoint: \"redis://{}\", key: back, timeout: 1s}}", proxy.address);
    let stored = async || {
        let found: Value = cmd("XRANGE").arg("back").arg("-").arg("+").query(&mut connection()).unwrap();
        let mut numbers = Vec::new();
        for entry in found.into_sequence().unwrap() {
            let fields = entry.into_sequence().unwrap().pop().unwrap().into_sequence().unwrap();
            let text: String = redis::from_redis_value(fields.into_iter().nth(1).unwrap()).unwrap();
            numbers.extend(numbers_behind(&text, "\"n\":"));
        }
        Tally::of(numbers)
    };
    sink_survives("redis sink", &proxy, &FAULTS, sink("redis", &yaml).0, (20, numbered), stored).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_redis_and_we_acknowledge_is_there() {
    let _server = at_hand!("what_redis_and_we_acknowledge_is_there", Component::start("redis.sh", PORT, &[]));
    tokio::join!(there(), back());
}
