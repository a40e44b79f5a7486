//! `unix`: streams and datagrams, and the socket's file.

use std::os::unix::fs::PermissionsExt;

use tokio::io::AsyncWriteExt;
use tokio::net::{UnixDatagram, UnixStream};

use crate::support::{Collected, lines, start};

#[tokio::test]
async fn streams_and_the_socket_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.sock");
    let yaml = format!("{{type: unix, path: \"{}\", permissions: \"0600\"}}", path.display());
    // A socket that an earlier run left behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let (collected, intake) = Collected::all();
    let running = start(&yaml, intake.clone()).await.unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(start(&yaml, intake.clone()).await.is_err(), "somebody listens there");
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream.write_all(b"a\nb").await.unwrap();
    drop(stream);
    assert_eq!(lines(&collected.until(2).await), ["a", "b"]);
    running.stop().await;
    assert!(!path.exists());
    std::fs::write(&path, "a file of somebody's").unwrap();
    assert!(start(&yaml, intake).await.is_err());
    assert!(path.exists());
}

#[tokio::test]
async fn datagrams() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.sock");
    let yaml = format!("{{type: unix, mode: datagram, max_line_bytes: 10B, path: \"{}\"}}", path.display());
    let (collected, intake) = Collected::all();
    let running = start(&yaml, intake).await.unwrap();
    let sender = UnixDatagram::unbound().unwrap();
    for datagram in ["a\nb\n", "", "0123456789", "0123456789X"] {
        sender.send_to(datagram.as_bytes(), &path).await.unwrap();
    }
    let messages = collected.until(4).await;
    assert_eq!(messages, [b"a".to_vec(), b"b".to_vec(), b"0123456789".to_vec(), b"0123456789\xFF".to_vec()]);
    assert_eq!(running.rejects("datagram_truncated"), 1);
    running.stop().await;
}
