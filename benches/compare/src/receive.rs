//! The TCP receiver: takes lines as fast as they come and enters them in the ledger.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::ledger::{Ledger, Page};

const BLOCK: usize = 256 << 10;
/// How often a receiver looks whether it is to end.
pub const TICK: Duration = Duration::from_millis(200);

/// A listening receiver. It ends when this is dropped.
pub struct Receiver {
    /// Where it listens.
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Receiver {
    /// Starts one. `bytes_per_second` holds every connection to that speed, as a slow far end would.
    pub fn start(ledger: Arc<Ledger>, bytes_per_second: Option<Arc<AtomicU64>>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        thread::spawn(move || {
            while !stopped.load(Relaxed) {
                let Ok((connection, _)) = listener.accept() else {
                    sleep(Duration::from_millis(2));
                    continue;
                };
                let (ledger, stopped, speed) =
                    (Arc::clone(&ledger), Arc::clone(&stopped), bytes_per_second.clone());
                // A connection that breaks shows in the ledger.
                thread::spawn(move || drop(serve(connection, &ledger, &stopped, speed.as_deref())));
            }
        });
        Ok(Self { address, stop })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

fn serve(
    mut from: TcpStream,
    ledger: &Ledger,
    stop: &AtomicBool,
    speed: Option<&AtomicU64>,
) -> std::io::Result<()> {
    from.set_nonblocking(false)?;
    from.set_read_timeout(Some(TICK))?;
    let mut page = Page::new(ledger);
    let mut buffer = vec![0; BLOCK];
    let (mut held, mut taken, start) = (0, 0_u64, Instant::now());
    while !stop.load(Relaxed) {
        if held == buffer.len() {
            buffer.resize(buffer.len() * 2, 0);
        }
        // Slow: small reads, each in its time.
        let room = if speed.is_some() { buffer.len().min(held + (16 << 10)) } else { buffer.len() };
        let count = match from.read(&mut buffer[held..room]) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if waits(&error) => continue,
            Err(error) => return Err(error),
        };
        page.arrive(count);
        held += count;
        let whole = page.lines(&buffer[..held]);
        buffer.copy_within(whole..held, 0);
        held -= whole;
        taken += count as u64;
        if let Some(speed) = speed {
            let due = taken as f64 / (speed.load(Relaxed).max(1) as f64);
            sleep(Duration::from_secs_f64(due).saturating_sub(start.elapsed()));
        }
    }
    if held > 0 {
        page.line(&buffer[..held]);
        page.settle();
    }
    Ok(())
}

/// Whether a read only timed out.
pub fn waits(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut | std::io::ErrorKind::Interrupted
    )
}
