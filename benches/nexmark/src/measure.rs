//! One run of a product over the files, in a process of its own on one core.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use logdrive_compare::error::Result;
use logdrive_compare::process::{Launch, Process};
use logdrive_compare::system;

/// What a job prints, as a line of its own, when the whole answer is written. It then stays, to be measured.
pub const DONE: &str = "done";

/// What a run took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Taken {
    /// User and system time of the process and all it started, in seconds.
    pub cpu: f64,
    /// From its start until the answer was written, in seconds.
    pub wall: f64,
    /// The highest resident memory, in bytes.
    pub memory: u64,
}

/// Runs a job, whose log is kept in the folder, until its answer is written.
///
/// # Errors
/// If it ends before, or is not done in time.
pub fn run(mut command: Command, folder: &Path, core: usize, limit: Duration) -> Result<Taken> {
    system::runs_on(&mut command, core);
    let mut process = Process::start(Launch { command, log: folder.join("log") })?;
    let deadline = Instant::now() + limit;
    while !process.log().lines().any(|line| line == DONE) {
        sleep(Duration::from_millis(10));
        process.check()?;
        if Instant::now() > deadline {
            return Err(format!("not done within {limit:?}: {}", process.log_end()).into());
        }
    }
    let wall = process.started.elapsed().as_secs_f64();
    let taken = Taken { cpu: process.cpu(), wall, memory: process.peak_memory() };
    process.stop(Duration::from_secs(10));
    Ok(taken)
}

/// Says that the answer is written, and waits for the end: it comes from outside.
pub fn finished() -> ! {
    // Nobody to tell is no reason to stop.
    drop(writeln!(std::io::stdout(), "{DONE}"));
    loop {
        std::thread::park();
    }
}
