//! The sender: one connection, either as fast as it goes or at a given rate.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use crate::data::{self, Format};
use crate::error::Result;
use crate::ledger::Pace;

const BLOCK: usize = 256 << 10;
/// How long a product may take to close a connection whose end it has seen.
const CLOSE: Duration = Duration::from_secs(5);

/// A sender at work.
pub struct Sender {
    thread: JoinHandle<Result<Sent>>,
    stop: Arc<AtomicBool>,
}

/// What was sent.
pub struct Sent {
    /// Bytes.
    pub bytes: u64,
    /// Lines, if they were counted.
    pub lines: u64,
}

impl Sender {
    /// Sends a file.
    pub fn file(path: PathBuf, to: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn(move || {
            let (mut from, mut stream) = (File::open(path)?, TcpStream::connect(to)?);
            let (mut block, mut bytes) = (vec![0; BLOCK], 0);
            loop {
                let count = from.read(&mut block)?;
                if count == 0 {
                    break;
                }
                stream.write_all(&block[..count])?;
                bytes += count as u64;
            }
            close(stream)?;
            Ok(Sent { bytes, lines: 0 })
        });
        Self { thread, stop }
    }

    /// Sends lines 0 to `lines` at a pace, each when it is due or as soon after as the product lets it.
    pub fn paced(format: Format, lines: u64, pace: Pace, to: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut stream = TcpStream::connect(to)?;
            stream.set_nodelay(true)?;
            let (mut block, mut bytes, mut next) = (Vec::with_capacity(BLOCK), 0, 0);
            while next < lines && !stopped.load(Relaxed) {
                let passed = Instant::now().saturating_duration_since(pace.start).as_secs_f64();
                // At most a block at once: what is late is sent in several.
                let due = ((passed * pace.rate) as u64).clamp(next, lines).min(next + 512);
                if due == next {
                    sleep(Duration::from_micros(500));
                    continue;
                }
                block.clear();
                for index in next..due {
                    data::line(format, index, &mut block);
                    block.push(b'\n');
                }
                stream.write_all(&block)?;
                bytes += block.len() as u64;
                next = due;
            }
            close(stream)?;
            Ok(Sent { bytes, lines: next })
        });
        Self { thread, stop }
    }

    /// Whether everything was sent and the product has closed the connection.
    pub fn is_done(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends a paced sender before its time.
    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    /// What was sent.
    pub fn finish(self) -> Result<Sent> {
        self.thread.join().map_err(|_| "the sender panicked")?
    }
}

/// Ends the stream in order, so that nothing that is under way is lost.
fn close(mut stream: TcpStream) -> Result<()> {
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(CLOSE))?;
    let mut rest = [0; 64];
    // Some products keep their side open, some reset it: both come after they have read everything.
    while matches!(stream.read(&mut rest), Ok(count) if count > 0) {}
    Ok(())
}
