//! Rows that come again: after a crash, from another process, from two at a time.

use std::sync::Arc;

use logdrive_schemas::{Batch, Origin};

use crate::refusals::{numbered, plain};
use crate::server::Server;
use crate::support::{count, deliver, deliver_at_last, sink};

fn rows(partition: u64, range: std::ops::Range<u64>) -> Batch {
    numbered(partition, range.start, &plain((range.end - range.start) as usize))
}

/// The same rows without an order, as findings are.
fn findings(partition: u64, range: std::ops::Range<u64>) -> Batch {
    let ordered = rows(partition, range);
    let origin = Origin { ordered: false, source: "detector".into(), ..Origin::clone(ordered.origin()) };
    let (columns, original) = (ordered.rows().clone(), ordered.original().clone());
    let layout = Arc::clone(ordered.layout());
    Batch::new(columns, original, ordered.offsets().clone(), Arc::new(origin), layout).unwrap()
}

pub(crate) async fn what_comes_again_is_known(server: &Server) {
    let yaml = server.yaml() + "table: once\ncreate_table: true\n";
    let (mut first, _) = sink("postgres", &yaml);
    first.connect().await.unwrap();
    deliver(&mut *first, &[rows(1, 0..100), findings(1, 0..10), rows(2, 0..50)]).await.unwrap();
    // Written, and never flushed.
    first.write(&rows(1, 100..200)).await.unwrap();
    drop(first);
    let (mut second, cx) = sink("postgres", &yaml);
    second.connect().await.unwrap();
    // Of one partition further than before, of the other not; findings in another order and with new ones. Two streams
    // may bring the same row, and then it is there twice.
    let again = [rows(1, 40..150), rows(1, 140..150), findings(1, 5..15), findings(1, 5..15), rows(2, 0..50)];
    deliver(&mut *second, &again).await.unwrap();
    assert_eq!(count(&cx.metrics.sink_duplicates), 60 + 5 + 10 + 50);
    assert_eq!(count(&cx.metrics.sink_rows), 50 + 10 + 5);
    deliver(&mut *second, &again).await.unwrap();
    assert_eq!(server.count("SELECT count(*) FROM once"), 100 + 10 + 50 + 50 + 10 + 5);
    // Another writer has books of its own.
    let (mut other, cx) = sink("postgres", &(yaml + "writer: other\n"));
    other.connect().await.unwrap();
    deliver(&mut *other, &[rows(1, 0..10), findings(1, 0..10)]).await.unwrap();
    assert_eq!(count(&cx.metrics.sink_rows), 20);
}

pub(crate) async fn writers_at_the_same_time_bring_each_row_once(server: &Server) {
    const N_WRITERS: usize = 4;
    const N_EACH: u64 = 500;
    let yaml = server.yaml() + "table: together\ncreate_table: true\n";
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..N_WRITERS {
        let (mut out, cx) = sink("postgres", &yaml);
        tasks.spawn(async move {
            // All of them bring all rows, each cut in its own way, and begin in different partitions.
            let step = 17 + 11 * writer as u64;
            let mut begin = 0;
            while begin < N_EACH {
                let end = (begin + step).min(N_EACH);
                let mut batches: Vec<Batch> = (0..4)
                    .map(|n| rows(10 + (n + writer as u64) % 4, begin..end))
                    .chain([findings(20, begin..end)])
                    .collect();
                if writer % 2 == 1 {
                    batches.reverse();
                }
                let brought = match begin {
                    0 => false,
                    _ => deliver(&mut *out, &batches).await.is_ok(),
                };
                if !brought {
                    deliver_at_last(&mut *out, &batches).await;
                }
                begin = end;
            }
            count(&cx.metrics.sink_duplicates)
        });
    }
    let mut n_known = 0;
    while let Some(done) = tasks.join_next().await {
        n_known += done.unwrap();
    }
    let found = server.psql("SELECT count(*), count(DISTINCT n) FROM together");
    assert_eq!(found, format!("{}|{N_EACH}", 5 * N_EACH));
    assert!(n_known >= (N_WRITERS as u64 - 1) * 5 * N_EACH, "{n_known}");
}

pub(crate) async fn old_positions_are_forgotten(server: &Server) {
    let of = |table: &str| {
        server
            .count(&format!("SELECT count(*) FROM {table} WHERE \"table\" LIKE '%once%' AND writer = 'out'"))
    };
    assert_eq!((of("logdrive_positions"), of("logdrive_identities")), (2, 15));
    server.psql("UPDATE logdrive_positions SET written_at = now() - interval '40 days'");
    server
        .psql("UPDATE logdrive_identities SET written_at = now() - interval '40 days' WHERE writer = 'out'");
    let (mut out, _) = sink("postgres", &(server.yaml() + "table: once\n"));
    out.connect().await.unwrap();
    // Not at the start: what was not committed before a long rest is repeated first.
    deliver(&mut *out, &[rows(2, 0..50), findings(1, 0..15)]).await.unwrap();
    assert_eq!(server.count("SELECT count(*) FROM once"), 245);
    out.close().await.unwrap();
    assert_eq!((of("logdrive_positions"), of("logdrive_identities")), (1, 0));
    assert_eq!(server.count("SELECT count(*) FROM logdrive_identities WHERE writer = 'other'"), 10);
}
