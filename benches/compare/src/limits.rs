//! What this machine can do at most, measured beside the products: a figure of a product says little without it.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::time::Instant;

use memchr::memchr_iter;
use serde::Serialize;
use serde_json::Value;
use simd_json::{Buffers, Tape};

use crate::error::Result;
use crate::send::Sender;

/// How much is read into memory for the loops that need no more.
const MEMORY: u64 = 256 << 20;
const DISK: usize = 512 << 20;

/// CPU seconds for a million JSON lines, except where another unit is given.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Limits {
    /// Finding the ends of lines in memory.
    pub newlines: f64,
    /// Copying them in memory.
    pub copy: f64,
    /// simd-json's tape of each line, buffers reused.
    pub tape: f64,
    /// serde_json to `Value`.
    pub value: f64,
    /// Reading them from a loopback connection and dropping them: the reader's CPU.
    pub discard: f64,
    /// The same in lines a second.
    pub discard_rate: f64,
    /// Writing a file and syncing it once, bytes a second.
    pub disk: f64,
    /// The mean length of a line.
    pub line: f64,
}

/// CPU seconds of this thread, from the scheduler's nanoseconds.
fn cpu() -> f64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split_whitespace().next().and_then(|first| first.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}

/// CPU seconds of `work`.
fn spent(work: impl FnOnce()) -> f64 {
    let before = cpu();
    work();
    cpu() - before
}

/// Measures all; the best of three of each loop.
pub fn measure(file: &Path, scratch: &Path) -> Result<Limits> {
    let mut data = Vec::new();
    File::open(file)?.take(MEMORY).read_to_end(&mut data)?;
    data.truncate(memchr::memrchr(b'\n', &data).map_or(0, |end| end + 1));
    let lines = memchr_iter(b'\n', &data).count();
    let million = 1e6 / lines.max(1) as f64;
    let best =
        |work: &mut dyn FnMut()| (0..3).map(|_| spent(&mut *work)).fold(f64::INFINITY, f64::min) * million;

    let newlines = best(&mut || {
        black_box(memchr_iter(b'\n', black_box(&data)).count());
    });
    let mut other = vec![0; data.len()];
    let copy = best(&mut || black_box(&mut other).copy_from_slice(black_box(&data)));
    drop(other);
    let mut bad = 0;
    let (mut buffers, mut scratch_line) = (Buffers::new(4096), Vec::with_capacity(4096));
    let mut spare = Tape(Vec::new());
    let tape = best(&mut || {
        for line in data.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            scratch_line.clear();
            scratch_line.extend_from_slice(line);
            let mut tape = std::mem::replace(&mut spare, Tape(Vec::new())).reset();
            bad += usize::from(simd_json::fill_tape(&mut scratch_line, &mut buffers, &mut tape).is_err());
            spare = tape.reset();
        }
    });
    let value = best(&mut || {
        for line in data.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            bad += usize::from(black_box(serde_json::from_slice::<Value>(line)).is_err());
        }
    });
    if bad > 0 {
        return Err(format!("{bad} lines of the input are no JSON").into());
    }
    let (discard, discard_rate) = discard(file)?;
    let disk = disk(&scratch.join("disk.tmp"), &data)?;
    Ok(Limits {
        newlines,
        copy,
        tape,
        value,
        discard,
        discard_rate,
        disk,
        line: data.len() as f64 / lines.max(1) as f64,
    })
}

fn discard(file: &Path) -> Result<(f64, f64)> {
    let mut best = (f64::INFINITY, 0.0_f64);
    for _ in 0..3 {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let sender = Sender::file(file.to_owned(), listener.local_addr()?);
        let (mut from, _) = listener.accept()?;
        let (mut block, mut lines, start) = (vec![0; 256 << 10], 0, Instant::now());
        let before = cpu();
        loop {
            let count = from.read(&mut block)?;
            if count == 0 {
                break;
            }
            lines += memchr_iter(b'\n', &block[..count]).count();
        }
        let used = (cpu() - before) / lines as f64 * 1e6;
        let rate = lines as f64 / start.elapsed().as_secs_f64();
        drop(from);
        sender.finish()?;
        best = (best.0.min(used), best.1.max(rate));
    }
    Ok(best)
}

fn disk(path: &Path, data: &[u8]) -> Result<f64> {
    let start = Instant::now();
    let mut file = File::create(path)?;
    let mut written = 0;
    while written < DISK && !data.is_empty() {
        for block in data.chunks(1 << 20).take((DISK - written).div_ceil(1 << 20)) {
            file.write_all(block)?;
            written += block.len();
        }
    }
    file.sync_data()?;
    let rate = written as f64 / start.elapsed().as_secs_f64();
    fs::remove_file(path)?;
    Ok(rate)
}
