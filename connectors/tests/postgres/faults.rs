//! A network that is bad, and a server that crashes.

use std::io::{Write as _, stdout};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use crate::refusals::{numbered, plain};
use crate::server::Server;
use crate::support::proxy::Proxy;
use crate::support::weather::{bring, bring_in_every_weather};
use crate::support::{count, sink};

const N_EACH: usize = 200;

pub(crate) async fn whatever_happens_to_connections_every_row_arrives_once(server: &Server) {
    let proxy = Proxy::start(server.address(), None).await;
    let yaml =
        Server::yaml_at(&proxy.address.to_string()) + "table: faults\ncreate_table: true\ntimeout: 2s\n";
    let (mut out, cx) = sink("postgres", &yaml);
    out.connect().await.unwrap();
    let mut n_sent = 0;
    let n_errors = bring_in_every_weather(&mut *out, &proxy, || {
        n_sent += N_EACH;
        numbered(1, (n_sent - N_EACH) as u64, &plain(N_EACH))
    })
    .await;
    let found = server.psql("SELECT count(*), count(DISTINCT n), min(n), max(n) FROM faults");
    assert_eq!(found, format!("{n_sent}|{n_sent}|0|{}", n_sent - 1));
    let n_known = count(&cx.metrics.sink_duplicates);
    writeln!(
        &mut stdout(),
        "postgres: {n_sent} sent through faults, each there once; {n_known} skipped as there before, {n_errors} errors"
    )
    .unwrap();
}

pub(crate) async fn a_server_that_crashes_has_every_row_once(server: &mut Server) {
    let yaml = server.yaml() + "table: crashes\ncreate_table: true\ntimeout: 5s\n";
    let (mut out, _) = sink("postgres", &yaml);
    out.connect().await.unwrap();
    let mut n_sent = 0;
    let mut n_errors = 0;
    for round in 0..4 {
        let bringing = async {
            let until = Instant::now() + Duration::from_secs(2);
            while Instant::now() < until {
                let rows = numbered(1, n_sent as u64, &plain(N_EACH));
                n_sent += N_EACH;
                n_errors += bring(&mut *out, &rows).await;
            }
        };
        let crash = || {
            std::thread::sleep(Duration::from_millis(500));
            server.stop(if round % 2 == 0 { "-QUIT" } else { "-INT" });
            server.resume();
        };
        tokio::task::block_in_place(|| {
            std::thread::scope(|scope| {
                scope.spawn(crash);
                Handle::current().block_on(bringing);
            });
        });
    }
    let found = server.psql("SELECT count(*), count(DISTINCT n), max(n) FROM crashes");
    assert_eq!(found, format!("{n_sent}|{n_sent}|{}", n_sent - 1));
    assert!(n_errors > 0);
    writeln!(
        &mut stdout(),
        "postgres: {n_sent} sent, server ended 4 times, each there once, {n_errors} errors"
    )
    .unwrap();
}
