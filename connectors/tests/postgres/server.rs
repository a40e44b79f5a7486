//! A real PostgreSQL: a cluster of its own in a folder of its own, of the programs that the system has.

#![allow(dead_code, reason = "shared by several tests")]

use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long it may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(60);
/// Who may do everything, by a password over TCP.
pub(crate) const USER: &str = "shop";
pub(crate) const PASSWORD: &str = "t0ps3cret";

/// Stopped and wiped when dropped.
pub(crate) struct Server {
    dir: tempfile::TempDir,
    programs: PathBuf,
    /// PostgreSQL does not run as root.
    user: Option<(u32, u32)>,
    pub(crate) port: u16,
    settings: Vec<String>,
    child: Option<Child>,
}

/// Where the server's programs are, of the newest version.
fn programs() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut found: Vec<(u32, PathBuf)> = folders
        .filter_map(|folder| {
            let path = folder.ok()?.path();
            let version = path.file_name()?.to_str()?.parse().ok()?;
            path.join("bin/initdb").exists().then(|| (version, path.join("bin")))
        })
        .collect();
    found.sort_unstable();
    found.pop().map(|(_, path)| path)
}

/// The user that Debian makes for it, or nobody, if the test runs as root.
fn user() -> Option<(u32, u32)> {
    let id = |args: &[&str]| {
        let output = Command::new("id").args(args).output().ok().filter(|output| output.status.success())?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    };
    let is_root = id(&["-u"]) == Some(0_u32);
    let of = |name: &str| Some((id(&["-u", name])?, id(&["-g", name])?));
    is_root.then(|| of("postgres").or_else(|| of("nobody"))).flatten()
}

impl Server {
    /// `None` if it cannot be had here. `pem`: certificate, key, and who vouches for clients.
    pub(crate) fn start(pem: Option<[&Path; 3]>) -> Option<Self> {
        let programs = programs()?;
        let dir = tempfile::tempdir().unwrap();
        let user = user();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut server = Self { dir, programs, user, port, settings: Vec::new(), child: None };
        server.own(server.dir.path());
        std::fs::write(server.path("password"), PASSWORD).unwrap();
        server.own(&server.path("password"));
        let data = server.path("data");
        let made = server
            .command("initdb")
            .args(["--no-sync", "--encoding=UTF8", "--locale=C", "--auth-local=trust"])
            .args(["--auth-host=scram-sha-256", "--username", USER, "--pwfile"])
            .arg(server.path("password"))
            .arg("-D")
            .arg(&data)
            .stdout(Stdio::null())
            .status();
        if !made.is_ok_and(|status| status.success()) {
            return None;
        }
        if let Some(pem) = pem {
            for (name, from) in ["server.pem", "server.key", "ca.pem"].iter().zip(pem) {
                std::fs::copy(from, server.path(name)).unwrap();
                server.own(&server.path(name));
            }
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(server.path("server.key"), mode).unwrap();
            let file = |setting: &str, name: &str| format!("{setting}={}", server.path(name).display());
            server.settings = vec![
                "ssl=on".into(),
                file("ssl_cert_file", "server.pem"),
                file("ssl_key_file", "server.key"),
                file("ssl_ca_file", "ca.pem"),
            ];
            // Over TLS with a certificate and a password, and in no other way.
            let rules = "local all all trust\nhostssl all all all scram-sha-256 clientcert=verify-ca\n";
            std::fs::write(data.join("pg_hba.conf"), rules).unwrap();
        }
        server.resume();
        Some(server)
    }

    fn own(&self, path: &Path) {
        if let Some((user, group)) = self.user {
            std::os::unix::fs::chown(path, Some(user), Some(group)).unwrap();
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        if let Some((user, group)) = self.user {
            command.uid(user).gid(group);
        }
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    /// Starts it, with what it holds.
    pub(crate) fn resume(&mut self) {
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.path("data")).args(["-p", &self.port.to_string(), "-k"]);
        command.arg(self.dir.path()).args(["-c", "listen_addresses=127.0.0.1,127.0.0.2", "-c", "fsync=off"]);
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
        let deadline = Instant::now() + PATIENCE;
        while self.try_psql("SELECT 1").is_none() {
            let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "it does not start:\n{log}");
            std::thread::sleep(Duration::from_millis(50));
        }
        // Where the tests find it.
        while TcpStream::connect(self.address()).is_err() {
            assert!(Instant::now() < deadline, "it does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it at once, as a crash does (`-QUIT`), or in order (`-INT`).
    pub(crate) fn stop(&mut self, signal: &str) {
        let Some(mut child) = self.child.take() else { return };
        let kill = format!("kill {signal} {}", child.id());
        Command::new("sh").args(["-c", &kill]).status().ok();
        let deadline = Instant::now() + PATIENCE;
        while child.try_wait().ok().flatten().is_none() {
            if deadline < Instant::now() {
                child.kill().ok();
                child.wait().ok();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    pub(crate) fn try_psql(&self, sql: &str) -> Option<String> {
        let mut command = self.command("psql");
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", USER, "-d", "postgres"]);
        command.arg("-h").arg(self.dir.path()).args(["-p", &self.port.to_string(), "-c", sql]);
        let output = command.output().ok()?;
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim_end().to_owned())
    }

    /// What a statement returns: a line for each row, `|` between columns.
    pub(crate) fn psql(&self, sql: &str) -> String {
        self.try_psql(sql).unwrap_or_else(|| panic!("{sql}"))
    }

    pub(crate) fn count(&self, sql: &str) -> usize {
        self.psql(sql).parse().unwrap()
    }

    /// The keys that say where it is and who we are.
    pub(crate) fn yaml(&self) -> String {
        Self::yaml_at(&format!("127.0.0.1:{}", self.port))
    }

    /// The same for another way to it.
    pub(crate) fn yaml_at(address: &str) -> String {
        format!("endpoint: \"postgresql://{address}/postgres\"\nusername: {USER}\npassword: {PASSWORD}\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop("-QUIT");
    }
}
