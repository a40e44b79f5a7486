//! A product's process: started, watched through `/proc`, stopped by its number.

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::error::{Result, fail};
use crate::system;

/// How to start a product for one run.
pub struct Launch {
    /// Program, arguments and environment.
    pub command: Command,
    /// Where its standard output and error go.
    pub log: PathBuf,
}

/// A process that runs.
pub struct Process {
    child: Child,
    log: PathBuf,
    ticks: f64,
    /// When it was started.
    pub started: Instant,
}

impl Process {
    /// Starts it. Its standard input is empty.
    pub fn start(mut launch: Launch) -> Result<Self> {
        let log =
            File::create(&launch.log).map_err(fail(format_args!("cannot write {}", launch.log.display())))?;
        let errors = log.try_clone()?;
        system::dies_with_us(&mut launch.command);
        let started = Instant::now();
        let child = launch
            .command
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(fail(format_args!("cannot start {:?}", launch.command.get_program())))?;
        Ok(Self { child, log: launch.log, ticks: system::ticks_per_second(), started })
    }

    /// Its process ID.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// An error with the end of the log if the process ended by itself.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => Err(format!("it ended with {status}: {}", self.log_end()).into()),
            None => Ok(()),
        }
    }

    /// The last lines of the log, in one line.
    pub fn log_end(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().filter(|line| !line.trim().is_empty()).take(4).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" / ").chars().take(600).collect()
    }

    /// The log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it listens on `port`.
    pub fn wait_listening(&mut self, port: u16, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !listening(port) {
            self.check()?;
            if Instant::now() > deadline {
                return Err(format!("it did not listen within {limit:?}: {}", self.log_end()).into());
            }
            sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// User and system CPU seconds of the process and all it started.
    pub fn cpu(&self) -> f64 {
        tree(self.child.id()).iter().map(|stat| stat.ticks).sum::<f64>() / self.ticks
    }

    /// The highest resident memory of the process and those it started, summed, in bytes.
    pub fn peak_memory(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// The resident memory now, in bytes.
    pub fn resident_memory(&self) -> u64 {
        self.memory("VmRSS:")
    }

    fn memory(&self, key: &str) -> u64 {
        tree(self.child.id()).iter().filter_map(|stat| status_bytes(stat.pid, key)).sum()
    }

    /// Waits until it has used less than 2 % of a core for `quiet`, at most until `deadline`; returns when it last
    /// did more.
    pub fn wait_quiet(&mut self, quiet: Duration, deadline: Instant) -> Result<Instant> {
        let mut marks = vec![(Instant::now(), self.cpu())];
        let mut busy = Instant::now();
        loop {
            sleep(Duration::from_millis(25));
            self.check()?;
            let (now, used) = (Instant::now(), self.cpu());
            marks.push((now, used));
            marks.retain(|(at, _)| now.duration_since(*at) <= quiet + Duration::from_millis(50));
            if marks.len() >= 2 && used - marks[marks.len() - 2].1 > 1.5 / self.ticks {
                busy = now;
            }
            let (first, before) = marks[0];
            let long_enough = now.duration_since(first) >= quiet;
            if (long_enough && used - before <= (quiet.as_secs_f64() * 0.02).max(1.0 / self.ticks))
                || now >= deadline
            {
                return Ok(busy);
            }
        }
    }

    /// Asks it to end, and ends it if it does not within `grace`; returns how long it took, `None` if it had to be
    /// killed.
    pub fn stop(&mut self, grace: Duration) -> Option<Duration> {
        let asked = Instant::now();
        system::terminate(self.child.id());
        while asked.elapsed() < grace {
            match self.child.try_wait() {
                Ok(Some(_)) | Err(_) => return Some(asked.elapsed()),
                Ok(None) => sleep(Duration::from_millis(5)),
            }
        }
        self.kill();
        None
    }

    /// Like [`Process::stop`], and returns the CPU seconds of its whole life and whether it ended by itself.
    pub fn drain(&mut self, grace: Duration) -> (f64, bool) {
        let asked = Instant::now();
        system::terminate(self.child.id());
        let mut used = self.cpu();
        while asked.elapsed() < grace {
            // A process that ended keeps its figures until it is waited for.
            let ended = stat(self.child.id()).is_none_or(|stat| stat.ended);
            used = self.cpu().max(used);
            if ended {
                drop(self.child.wait());
                return (used, true);
            }
            sleep(Duration::from_millis(2));
        }
        self.kill();
        (used, false)
    }

    fn kill(&mut self) {
        // A child that ended in between is waited for all the same.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill();
        }
    }
}

struct Stat {
    pid: u32,
    parent: u32,
    /// Whether it only waits to be waited for.
    ended: bool,
    /// User and system time, and that of children that were waited for.
    ticks: f64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11..15)?.iter().filter_map(|field| field.parse::<f64>().ok()).sum();
    Some(Stat { pid, parent: fields.get(1)?.parse().ok()?, ended: fields.first() == Some(&"Z"), ticks })
}

/// The process and its descendants. Usually there are none: then only its own file is read.
fn tree(root: u32) -> Vec<Stat> {
    let Some(first) = stat(root) else { return Vec::new() };
    let has_children = fs::read_dir(format!("/proc/{root}/task")).is_ok_and(|threads| {
        threads.flatten().any(|thread| {
            fs::read_to_string(thread.path().join("children"))
                .is_ok_and(|children| !children.trim().is_empty())
        })
    });
    if !has_children {
        return vec![first];
    }
    let all: Vec<Stat> = fs::read_dir("/proc")
        .map(|entries| {
            entries.flatten().filter_map(|entry| stat(entry.file_name().to_str()?.parse().ok()?)).collect()
        })
        .unwrap_or_default();
    let mut children: HashMap<u32, Vec<Stat>> = HashMap::new();
    for stat in all {
        children.entry(stat.parent).or_default().push(stat);
    }
    let mut found = vec![first];
    let mut next = 0;
    while next < found.len() {
        let pid = found[next].pid;
        found.extend(children.remove(&pid).unwrap_or_default());
        next += 1;
    }
    found
}

fn status_bytes(pid: u32, key: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Whether something listens on a TCP port of this machine. Asked of the kernel, so that no connection is made.
pub fn listening(port: u16) -> bool {
    let suffix = format!(":{port:04X}");
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().any(|path| {
        fs::read_to_string(path).is_ok_and(|table| {
            table.lines().skip(1).any(|line| {
                let mut fields = line.split_whitespace().skip(1);
                fields.next().is_some_and(|local| local.ends_with(&suffix)) && fields.nth(1) == Some("0A")
            })
        })
    })
}

/// A TCP port that was free a moment ago.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// An empty folder at `path`.
pub fn empty_folder(path: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_dir_all(path).map_err(fail(format_args!("cannot empty {}", path.display())))?;
    }
    fs::create_dir_all(path).map_err(fail(format_args!("cannot make {}", path.display())))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_measured_and_stopped_by_its_number() {
        let log = std::env::temp_dir().join(format!("compare-process-{}", std::process::id()));
        let mut command = Command::new("sh");
        command.args(["-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo done; sleep 60"]);
        let mut process = Process::start(Launch { command, log: log.clone() }).expect("a shell");
        let deadline = Instant::now() + Duration::from_secs(20);
        while !process.log().contains("done") && Instant::now() < deadline {
            sleep(Duration::from_millis(10));
        }
        assert!(process.cpu() > 0.0);
        assert!(process.peak_memory() > 100_000);
        assert!(process.check().is_ok());
        assert!(process.stop(Duration::from_millis(200)).is_none() || process.check().is_err());
        assert!(process.check().is_err());
        assert!(fs::remove_file(log).is_ok());
    }

    #[test]
    fn a_listener_is_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        assert!(listening(port));
        drop(listener);
        assert!(!listening(port));
    }
}
