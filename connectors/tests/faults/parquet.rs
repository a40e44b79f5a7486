//! `parquet` and an S3 server, where one is given: `LOGDRIVE_TEST_S3=s3://bucket/prefix`, with `AWS_ENDPOINT`,
//! `AWS_ALLOW_HTTP`, `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` as the object store reads them.

use std::collections::BTreeMap;
use std::net::ToSocketAddrs as _;

use logdrive_connectors::SINKS;
use logdrive_connectors::sinks::parquet::committed_objects;
use logdrive_schemas::component::{Limits, Node};
use tokio_util::sync::CancellationToken;

use crate::at_hand;
use crate::storm::{Tally, context, numbered, storm, write_on};
use crate::support::proxy::{FAULTS, Proxy};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_is_in_the_lake_once() {
    let given = || {
        let of = |name: &str| std::env::var(name).map_err(|_| "no S3 server at hand");
        Ok::<_, &str>((of("LOGDRIVE_TEST_S3")?, of("AWS_ENDPOINT")?))
    };
    let (url, endpoint) = at_hand!("every_row_is_in_the_lake_once", given());
    let server = url::Url::parse(&endpoint).unwrap();
    let server = (server.host_str().unwrap(), server.port_or_known_default().unwrap());
    let proxy = Proxy::start(server.to_socket_addrs().unwrap().next().unwrap(), None).await;
    let dir = tempfile::tempdir().unwrap();
    let url = format!("{url}/{}", dir.path().file_name().unwrap().to_str().unwrap());
    let yaml =
        format!("{{path: '{url}', options: {{aws_endpoint: 'http://{}', timeout: 2s}}}}", proxy.address);
    let node = Node::parse(yaml.as_bytes(), Limits::default()).unwrap();
    let entry = SINKS.iter().find(|entry| entry.name == "parquet").unwrap();
    let mut out = (entry.build)(&node, &context("lake", dir.path())).unwrap();
    let (acknowledged, stop) = (Tally::default(), CancellationToken::new());
    let storming = async {
        storm("parquet", &proxy, &FAULTS, true, || acknowledged.n_all()).await;
        stop.cancel();
    };
    let (n_sent, ()) = tokio::join!(write_on(&mut *out, 20, numbered, &acknowledged, &stop), storming);
    let files = committed_objects(&url, &BTreeMap::new()).await.unwrap();
    let n_rows = files.iter().map(|file| file.rows).sum::<u64>();
    println!("parquet: {n_sent} sent, {} acknowledged, {n_rows} in the lake", acknowledged.n_all());
    assert_eq!((acknowledged.n_all(), n_rows), (n_sent, n_sent as u64), "each once");
}
