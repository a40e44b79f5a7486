//! A server of the component scripts.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use redis::{Client, Connection};

/// Stopped when dropped.
pub(crate) struct Server {
    script: PathBuf,
    pub(crate) port: u16,
}

impl Server {
    /// `None` if it cannot be had here.
    pub(crate) fn start(port: u16, arguments: &str) -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
        let shared = std::env::var_os("LOGDRIVE_SHARED").map_or(root, PathBuf::from);
        let server = Self { script: shared.join("components/redis.sh"), port };
        let ready = server.script.exists() && server.run("install", "") && server.run("start", arguments);
        ready.then_some(server)
    }

    fn run(&self, verb: &str, arguments: &str) -> bool {
        let mut command = Command::new(&self.script);
        command.arg(verb).env("REDIS_ARGS", arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if verb != "install" {
            command.arg(self.port.to_string());
        }
        command.status().is_ok_and(|status| status.success())
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn connection(&self) -> Connection {
        Client::open(self.url()).unwrap().get_connection().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.run("stop", "");
    }
}
