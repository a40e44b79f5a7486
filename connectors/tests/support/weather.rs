//! What a sink goes through behind a bad network: each fault comes and goes while rows are written.

use std::time::{Duration, Instant};

use logdrive_connectors::Sink;
use logdrive_schemas::{Batch, Epoch};
use tokio::time::sleep;

use super::deliver_at_last;
use super::proxy::{Fault, Proxy};

/// When a fault begins and ends, and when the next one's turn is.
const FROM: Duration = Duration::from_secs(1);
const UNTIL: Duration = Duration::from_secs(3);
const NEXT: Duration = Duration::from_secs(5);

/// Writes and flushes once; if that fails, as the runtime does it. How many errors there were.
pub(crate) async fn bring(out: &mut dyn Sink, rows: &Batch) -> usize {
    let once = async {
        out.write(rows).await?;
        out.flush(Epoch(1)).await
    };
    match once.await {
        Ok(rejects) => {
            assert!(rejects.is_none());
            0
        }
        Err(_) => {
            let (rejects, n_errors) = deliver_at_last(out, std::slice::from_ref(rows)).await;
            assert!(rejects.is_empty());
            n_errors + 1
        }
    }
}

/// Brings one batch after the other to a sink behind `proxy`: some before each fault, many while it lasts, some after
/// it. How many errors there were.
pub(crate) async fn bring_in_every_weather(
    out: &mut dyn Sink,
    proxy: &Proxy,
    mut next: impl FnMut() -> Batch,
) -> usize {
    let mut n_errors = 0;
    for fault in [
        Fault::Latency(Duration::from_millis(100)),
        Fault::Bandwidth(40_000),
        Fault::Reset,
        Fault::HalfOpen,
        Fault::Refuse,
    ] {
        let began = Instant::now();
        let mut is_faulty = false;
        while began.elapsed() < NEXT {
            let should = (FROM..UNTIL).contains(&began.elapsed());
            if should != is_faulty {
                is_faulty = should;
                proxy.set(if should { fault } else { Fault::None });
            }
            // The fault ends also if everybody waits for that.
            let healing = async {
                sleep(UNTIL.saturating_sub(began.elapsed())).await;
                proxy.set(Fault::None);
                std::future::pending::<()>().await;
            };
            let rows = next();
            tokio::select! {
                n = bring(out, &rows) => n_errors += n,
                () = healing => {}
            }
        }
        proxy.set(Fault::None);
    }
    n_errors
}
