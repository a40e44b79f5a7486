//! Real servers, by the scripts that know how to start them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// A real server on a port of its own, stopped and wiped when dropped.
pub(crate) struct Component {
    script: PathBuf,
    port: u16,
    settings: Vec<(&'static str, String)>,
}

impl Component {
    /// `None` if it cannot be had here.
    pub(crate) fn start(name: &str, port: u16) -> Option<Self> {
        Self::start_with(name, port, Vec::new())
    }

    /// With variables of its script.
    pub(crate) fn start_with(name: &str, port: u16, settings: Vec<(&'static str, String)>) -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
        let shared = std::env::var_os("LOGDRIVE_SHARED").map_or(root, PathBuf::from);
        let component = Self { script: shared.join(format!("components/{name}.sh")), port, settings };
        let ready = component.script.exists()
            && component.run("install")
            && component.run("wipe")
            && component.run("start");
        ready.then_some(component)
    }

    pub(crate) fn run(&self, verb: &str) -> bool {
        let mut command = Command::new(&self.script);
        command.arg(verb).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        if verb != "install" {
            command.arg(self.port.to_string());
        }
        command.status().is_ok_and(|status| status.success())
    }

    pub(crate) fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    /// The answer to a GET, as JSON.
    pub(crate) async fn ask(&self, path: &str) -> Value {
        let text = reqwest::get(self.url(path)).await.unwrap().text().await.unwrap();
        serde_json::from_str(&text).unwrap()
    }
}

impl Drop for Component {
    fn drop(&mut self) {
        self.run("stop");
        self.run("wipe");
    }
}
