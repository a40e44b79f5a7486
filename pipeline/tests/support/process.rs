//! The real binary, which can be killed.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::sleep;

const READY_MAX: Duration = Duration::from_secs(60);
/// How much of what it said is kept, in lines.
const SAID_MAX: usize = 60;

/// A running `logdrive run`. Dropping it kills it.
pub(crate) struct Process {
    child: Child,
    ready: watch::Receiver<bool>,
    said: Arc<Mutex<Vec<String>>>,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Process {
    pub(crate) fn start(pipeline: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_logdrive"))
            .arg("run")
            .arg(pipeline)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = child.stderr.take().unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let (tell, ready) = watch::channel(false);
        let heard = Arc::clone(&said);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if line == "ready" {
                    tell.send_replace(true);
                }
                let mut heard = heard.lock().unwrap();
                if heard.len() == SAID_MAX {
                    heard.remove(0);
                }
                heard.push(line);
            }
        });
        Self { child, ready, said }
    }

    /// Waits for the line `ready`.
    pub(crate) async fn ready(&mut self) {
        let mut ready = self.ready.clone();
        let waited = tokio::time::timeout(READY_MAX, ready.wait_for(|ready| *ready)).await;
        assert!(waited.is_ok_and(|told| told.is_ok()), "it is not ready:\n{}", self.said());
    }

    /// Kills it with SIGKILL. It must have lived until then.
    pub(crate) fn kill(mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("it ended by itself with {status}:\n{}", self.said());
        }
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to stop, as Ctrl-C does, and waits until it has drained.
    pub(crate) async fn stop(mut self, at_most: Duration) {
        let id = self.child.id();
        assert!(Command::new("sh").arg("-c").arg(format!("kill -INT {id}")).status().unwrap().success());
        let until = Instant::now() + at_most;
        let status: ExitStatus = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < until, "it does not stop:\n{}", self.said());
            sleep(Duration::from_millis(20)).await;
        };
        assert_eq!(status.code(), Some(0), "{}", self.said());
    }

    pub(crate) fn said(&self) -> String {
        self.said.lock().unwrap().join("\n")
    }
}

/// Runs another command of the binary to its end.
pub(crate) fn command(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_logdrive")).args(args).stdin(Stdio::null()).output().unwrap()
}
