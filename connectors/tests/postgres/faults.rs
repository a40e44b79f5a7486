//! A network that is bad, and a server that crashes.

use std::io::{Write as _, stdout};
use std::time::{Duration, Instant};

use logdrive_connectors::Sink;
use logdrive_schemas::{Batch, Epoch};
use tokio::runtime::Handle;

use crate::refusals::{numbered, plain};
use crate::server::Server;
use crate::support::proxy::{Fault, Proxy};
use crate::support::{count, deliver_at_last, sink};

const N_EACH: usize = 200;

/// Writes and flushes once; if that fails, as the runtime does it. How many errors there were.
async fn bring(out: &mut dyn Sink, rows: &[Batch]) -> usize {
    let once = async {
        out.write(&rows[0]).await?;
        out.flush(Epoch(1)).await
    };
    match once.await {
        Ok(rejects) => {
            assert!(rejects.is_none());
            0
        }
        Err(_) => {
            let (rejects, n_errors) = deliver_at_last(out, rows).await;
            assert!(rejects.is_empty());
            n_errors + 1
        }
    }
}

pub(crate) async fn whatever_happens_to_connections_every_row_arrives_once(server: &Server) {
    let proxy = Proxy::start(server.address(), None).await;
    let yaml =
        Server::yaml_at(&proxy.address.to_string()) + "table: faults\ncreate_table: true\ntimeout: 2s\n";
    let (mut out, cx) = sink("postgres", &yaml);
    out.connect().await.unwrap();
    let (mut n_sent, mut n_errors) = (0, 0);
    for fault in [
        Fault::Latency(Duration::from_millis(100)),
        Fault::Bandwidth(40_000),
        Fault::Reset,
        Fault::HalfOpen,
        Fault::Refuse,
    ] {
        let began = Instant::now();
        let mut is_faulty = false;
        // Some before it, many while it lasts, some after.
        while began.elapsed() < Duration::from_secs(5) {
            let should = (Duration::from_secs(1)..Duration::from_secs(3)).contains(&began.elapsed());
            if should != is_faulty {
                is_faulty = should;
                proxy.set(if should { fault } else { Fault::None });
            }
            let rows = [numbered(1, n_sent as u64, &plain(N_EACH))];
            n_sent += N_EACH;
            // The fault ends also if everybody waits for that.
            let healing = async {
                tokio::time::sleep(Duration::from_secs(3).saturating_sub(began.elapsed())).await;
                proxy.set(Fault::None);
                std::future::pending::<()>().await;
            };
            tokio::select! {
                n = bring(&mut *out, &rows) => n_errors += n,
                () = healing => {}
            }
        }
        proxy.set(Fault::None);
    }
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
                let rows = [numbered(1, n_sent as u64, &plain(N_EACH))];
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
