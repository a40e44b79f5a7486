//! Debian's rsyslog and syslog-ng. Their packages are unpacked below the target folder, once.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

pub(crate) const RSYSLOG: &[&str] = &[
    "rsyslog",
    "rsyslog-relp",
    "rsyslog-openssl",
    "rsyslog-gnutls",
    "librelp0",
    "libestr0",
    "libfastjson4",
    "liblognorm5",
];
pub(crate) const SYSLOG_NG: &[&str] = &[
    "syslog-ng-core",
    "libglib2.0-0",
    "libivykis0",
    "libjson-c5",
    "libmaxminddb0",
    "libnet1",
    "libpcre3",
    "libwrap0",
];

/// Where the packages of a product are.
pub(crate) fn unpacked(name: &str, packages: &[&str]) -> Result<PathBuf, String> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let peers = Path::new(env!("CARGO_TARGET_TMPDIR")).join("peers");
    let root = peers.join(name);
    if root.exists() {
        return Ok(root);
    }
    let partial = peers.join(format!("{name}.{}", std::process::id()));
    std::fs::create_dir_all(&partial).unwrap();
    let run = |command: &mut Command| match command.current_dir(&partial).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(error.to_string()),
    };
    let unpack = || {
        run(Command::new("apt-get").arg("download").args(packages))?;
        for archive in std::fs::read_dir(&partial).unwrap() {
            let path = archive.unwrap().path();
            if path.extension().is_some_and(|end| end == "deb") {
                run(Command::new("dpkg").arg("-x").arg(&path).arg(&partial))?;
            }
        }
        Ok(())
    };
    let done = unpack();
    match done {
        Ok(()) => std::fs::rename(&partial, &root).unwrap(),
        Err(_) => std::fs::remove_dir_all(&partial).unwrap(),
    }
    done.map(|()| root)
}

/// Where a product finds its libraries.
pub(crate) fn libraries(root: &Path) -> String {
    let triple = format!("{}-linux-gnu", std::env::consts::ARCH);
    [format!("usr/lib/{triple}"), format!("lib/{triple}"), "usr/lib/syslog-ng".to_owned()]
        .map(|folder| root.join(folder).display().to_string())
        .join(":")
}
