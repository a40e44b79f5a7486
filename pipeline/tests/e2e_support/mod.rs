//! What the end-to-end tests have in common: the real binary in a folder of its own, and the far ends it talks to.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// The binary under test.
pub(crate) const LOGDRIVE: &str = env!("CARGO_BIN_EXE_logdrive");

/// No single wait is longer, unless a test says so.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Looks until it is so.
///
/// # Panics
/// If it is not so by the deadline.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    until_within(PATIENCE, what, &mut is_so);
}

/// Looks until it is so, for `limit` at most.
pub(crate) fn until_within(limit: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A port that nobody listens on, and that no other test of this process was given.
pub(crate) fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if GIVEN.lock().unwrap().insert(port) {
            return port;
        }
    }
}

/// A folder that a pipeline works in.
pub(crate) struct Lab {
    dir: tempfile::TempDir,
    pub(crate) api: u16,
    n_kills: Arc<AtomicUsize>,
}

impl Lab {
    /// A folder with `pipeline.yaml`: the given text, an API port, a data folder and one worker, which keeps order.
    pub(crate) fn new(yaml: &str) -> Self {
        let lab = Self { dir: tempfile::tempdir().unwrap(), api: free_port(), n_kills: Arc::default() };
        lab.configure(yaml);
        lab
    }

    pub(crate) fn configure(&self, yaml: &str) {
        let head = format!("data_dir: data\nworkers: 1\napi: {{ listen: \"127.0.0.1:{}\" }}\n", self.api);
        fs::write(self.path("pipeline.yaml"), head + yaml).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// The complete lines of a file; none if there is no file.
    pub(crate) fn lines(&self, name: &str) -> Vec<String> {
        lines(&self.path(name))
    }

    /// The documents in a file. Each kill may have left the beginning of one; it comes again, behind it.
    pub(crate) fn documents(&self, name: &str) -> Vec<Value> {
        let lines = self.lines(name);
        let documents: Vec<_> = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let (n_torn, n_kills) = (lines.len() - documents.len(), self.n_kills.load(Ordering::Relaxed));
        assert!(n_torn <= n_kills, "{n_torn} lines of {name} are no documents, after {n_kills} kills");
        documents
    }

    /// Starts the pipeline and waits until it is ready.
    pub(crate) fn run(&self) -> Pipeline {
        self.spawn(Stdio::null()).ready()
    }

    /// Starts the pipeline and waits for nothing.
    pub(crate) fn spawn(&self, stdin: Stdio) -> Pipeline {
        let log = self.path("stderr.log");
        let stderr = File::options().create(true).append(true).open(&log).unwrap();
        let log_start = stderr.metadata().unwrap().len();
        let child = Command::new(LOGDRIVE)
            .args(["run", "pipeline.yaml"])
            .current_dir(self.dir.path())
            .stdin(stdin)
            .stdout(File::options().create(true).append(true).open(self.path("stdout.log")).unwrap())
            .stderr(stderr)
            .spawn()
            .unwrap();
        Pipeline { child, log, log_start, api: self.api, n_kills: Arc::clone(&self.n_kills) }
    }

    /// Runs another command of the binary in the folder.
    pub(crate) fn command(&self, args: &[&str]) -> Output {
        let child = Command::new(LOGDRIVE)
            .args(args)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        output_of(child, args)
    }

    /// The standard output of a command that must succeed.
    pub(crate) fn succeed(&self, args: &[&str]) -> String {
        let output = self.command(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {}\n{stderr}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Waits for a child, but not for ever.
fn output_of(mut child: Child, args: &[&str]) -> Output {
    let stdout = drain(child.stdout.take().unwrap());
    let stderr = drain(child.stderr.take().unwrap());
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("{args:?} does not end");
            }
            None => thread::sleep(Duration::from_millis(10)),
        }
    };
    Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

fn drain(mut pipe: impl std::io::Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).ok();
        bytes
    })
}

/// The complete lines of a file; none if there is no file.
pub(crate) fn lines(path: &Path) -> Vec<String> {
    let Ok(text) = fs::read_to_string(path) else { return Vec::new() };
    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(str::to_owned).collect()
}

/// A pipeline that runs; killed when it goes out of scope.
pub(crate) struct Pipeline {
    child: Child,
    log: PathBuf,
    log_start: u64,
    api: u16,
    n_kills: Arc<AtomicUsize>,
}

impl Pipeline {
    fn ready(mut self) -> Self {
        let deadline = Instant::now() + PATIENCE;
        while !self.log().lines().any(|line| line == "ready") {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("ended before it was ready, with {status}:\n{}", self.log());
            }
            assert!(Instant::now() < deadline, "not ready:\n{}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
        self
    }

    /// What this process has said.
    pub(crate) fn log(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes[self.log_start as usize..]).into_owned()
    }

    pub(crate) fn stdin(&mut self) -> std::process::ChildStdin {
        self.child.stdin.take().unwrap()
    }

    pub(crate) fn signal(&self, signal: &str) {
        // The shell's own `kill`: not every system has another.
        let kill = format!("kill {signal} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// SIGINT, and the code that the process ends with.
    pub(crate) fn interrupt(mut self) -> ExitStatus {
        self.signal("-INT");
        self.wait()
    }

    /// SIGINT; the process must deliver all and end with 0.
    pub(crate) fn stop(self) {
        let log = self.log.clone();
        let status = self.interrupt();
        assert!(status.success(), "{status}:\n{}", fs::read_to_string(log).unwrap());
    }

    /// The code that the process ends with by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "does not end:\n{}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.n_kills.fetch_add(1, Ordering::Relaxed);
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Resident memory in bytes.
    pub(crate) fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        http(self.api, "GET", path, "", "")
    }

    /// The sum of a metric's samples whose labels contain `labels`.
    pub(crate) fn metric(&self, name: &str, labels: &str) -> Option<f64> {
        let (status, text) = self.get("/metrics");
        assert_eq!(status, 200, "{text}");
        let samples: Vec<f64> = text
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
            .filter(|line| line.contains(labels))
            .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
            .collect();
        (!samples.is_empty()).then(|| samples.iter().sum())
    }

    /// Waits until a metric has a value.
    pub(crate) fn until_metric(&self, name: &str, labels: &str, value: f64) {
        let mut last = None;
        let deadline = Instant::now() + PATIENCE;
        while last != Some(value) {
            assert!(
                Instant::now() < deadline,
                "{name}{{{labels}}} is {last:?}, not {value}:\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(50));
            last = self.metric(name, labels);
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// One HTTP request over a connection of its own.
pub(crate) fn http(port: u16, method: &str, path: &str, content_type: &str, body: &str) -> (u16, String) {
    try_http(port, method, path, content_type, body).unwrap()
}

/// As [`http`]; an error if there is no answer.
pub(crate) fn try_http(
    port: u16,
    method: &str,
    path: &str,
    content_type: &str,
    body: &str,
) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let kind =
        if content_type.is_empty() { String::new() } else { format!("content-type: {content_type}\r\n") };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n{kind}content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let status =
        head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or(std::io::ErrorKind::InvalidData)?;
    Ok((status, body.to_owned()))
}

/// Sends lines over one TCP connection, then closes it.
pub(crate) fn send(port: u16, lines: &[impl AsRef<str>]) {
    let mut text = String::new();
    for line in lines {
        text.push_str(line.as_ref());
        text.push('\n');
    }
    TcpStream::connect(("127.0.0.1", port)).unwrap().write_all(text.as_bytes()).unwrap();
}

/// A far end that collects lines over TCP, from connections in turn.
pub(crate) struct Collector {
    lines: Arc<Mutex<Vec<String>>>,
}

impl Collector {
    pub(crate) fn listen(port: u16) -> Self {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&lines);
        // Ends with the process: a thread that waits for connections holds nothing that outlives it.
        thread::spawn(move || {
            for stream in listener.incoming() {
                for line in BufReader::new(stream.unwrap()).lines() {
                    let Ok(line) = line else { break };
                    kept.lock().unwrap().push(line);
                }
            }
        });
        Self { lines }
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }
}

/// Bytes of all files below a folder.
pub(crate) fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}
