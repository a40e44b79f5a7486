//! A stand-in for Elasticsearch: takes `_bulk` (and OTLP in JSON), answers one item per document, keeps nothing.
//!
//! It can be told to be down, and then remembers ids as the real one does: a document that is created twice is a
//! conflict, not a second document.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, sleep};
use std::time::Duration;

use flate2::read::GzDecoder;
use memchr::{memchr, memmem};

use crate::error::Result;
use crate::ledger::{Ledger, Page};
use crate::receive::{TICK, waits};

const INFO: &str = r#"{"name":"stand-in","cluster_name":"compare","cluster_uuid":"uWz1cVq2Q5a0PpT7iYd3Zg","version":{"number":"8.17.0","build_flavor":"default","build_type":"tar","lucene_version":"9.12.0","minimum_wire_compatibility_version":"7.17.0","minimum_index_compatibility_version":"7.0.0"},"tagline":"You Know, for Search"}"#;

struct Server {
    ledger: Arc<Ledger>,
    stop: AtomicBool,
    down: AtomicBool,
    requests: AtomicU64,
    conflicts: AtomicU64,
    /// Hashes of the ids of the documents, if they are remembered.
    ids: Option<Mutex<HashSet<u64>>>,
    hasher: RandomState,
}

/// A listening stand-in. It ends when this is dropped.
pub struct Elastic {
    /// Where it listens.
    pub address: SocketAddr,
    server: Arc<Server>,
}

impl Elastic {
    /// Starts one.
    pub fn start(ledger: Arc<Ledger>, remember_ids: bool) -> Result<Self> {
        let listener = bind("127.0.0.1:0".parse()?)?;
        let address = listener.local_addr()?;
        let server = Arc::new(Server {
            ledger,
            stop: AtomicBool::new(false),
            down: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            conflicts: AtomicU64::new(0),
            ids: remember_ids.then(|| Mutex::new(HashSet::new())),
            hasher: RandomState::new(),
        });
        let shared = Arc::clone(&server);
        thread::spawn(move || accept(listener, address, &shared));
        Ok(Self { address, server })
    }

    /// Refuses connections and breaks those that are open, some before their answer; or takes them again.
    pub fn set_down(&self, down: bool) {
        self.server.down.store(down, Relaxed);
    }

    /// Documents that were sent again and recognised by their id.
    pub fn conflicts(&self) -> u64 {
        self.server.conflicts.load(Relaxed)
    }
}

impl Drop for Elastic {
    fn drop(&mut self) {
        self.server.stop.store(true, Relaxed);
    }
}

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn accept(listener: TcpListener, address: SocketAddr, server: &Arc<Server>) {
    let mut listener = Some(listener);
    while !server.stop.load(Relaxed) {
        if server.down.load(Relaxed) {
            listener = None;
        } else if listener.is_none() {
            listener = bind(address).ok();
        }
        match listener.as_ref().map(TcpListener::accept) {
            Some(Ok((connection, _))) => {
                let server = Arc::clone(server);
                // A connection that breaks shows in the ledger.
                thread::spawn(move || drop(serve(connection, &server)));
            }
            _ => sleep(Duration::from_millis(2)),
        }
    }
}

/// A connection and what was read from it and not yet used.
struct Incoming<'a> {
    stream: TcpStream,
    held: Vec<u8>,
    block: Vec<u8>,
    server: &'a Server,
}

impl Incoming<'_> {
    /// Reads more; `false` at the end, or when the server goes down.
    fn more(&mut self) -> std::io::Result<bool> {
        loop {
            if self.server.stop.load(Relaxed) || self.server.down.load(Relaxed) {
                return Ok(false);
            }
            match self.stream.read(&mut self.block) {
                Ok(0) => return Ok(false),
                Ok(count) => {
                    self.held.extend_from_slice(&self.block[..count]);
                    return Ok(true);
                }
                Err(error) if waits(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes everything up to and including `end`.
    fn until(&mut self, end: &[u8]) -> std::io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(at) = memmem::find(&self.held, end) {
                return Ok(Some(self.held.drain(..at + end.len()).collect()));
            }
            if !self.more()? {
                return Ok(None);
            }
        }
    }

    /// Moves the next `count` bytes to `body`.
    fn exactly(&mut self, count: usize, body: &mut Vec<u8>) -> std::io::Result<bool> {
        while self.held.len() < count {
            if !self.more()? {
                return Ok(false);
            }
        }
        body.extend(self.held.drain(..count));
        Ok(true)
    }

    fn body(&mut self, head: &Head) -> std::io::Result<Option<Vec<u8>>> {
        let mut body = Vec::new();
        if !head.chunked {
            return Ok(self.exactly(head.length, &mut body)?.then_some(body));
        }
        loop {
            let Some(line) = self.until(b"\r\n")? else { return Ok(None) };
            let Ok(size) = usize::from_str_radix(String::from_utf8_lossy(&line).trim(), 16) else {
                return Ok(None);
            };
            let mut end = Vec::new();
            if !self.exactly(size, &mut body)? || !self.exactly(2, &mut end)? {
                return Ok(None);
            }
            if size == 0 {
                return Ok(Some(body));
            }
        }
    }
}

/// What matters of a request's head.
struct Head {
    method: String,
    path: String,
    length: usize,
    chunked: bool,
    gzip: bool,
    expects: bool,
    closes: bool,
}

impl Head {
    fn parse(text: &[u8]) -> Self {
        let text = String::from_utf8_lossy(text).into_owned();
        let mut lines = text.lines();
        let mut first = lines.next().unwrap_or_default().split(' ');
        let (method, path) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
        let lower = text.to_ascii_lowercase();
        let header = |name: &str| {
            lower.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default()
        };
        Self {
            method: method.to_owned(),
            path: path.to_owned(),
            length: header("content-length:").parse().unwrap_or(0),
            chunked: header("transfer-encoding:") == "chunked",
            gzip: header("content-encoding:") == "gzip",
            expects: header("expect:") == "100-continue",
            closes: header("connection:") == "close",
        }
    }
}

fn serve(stream: TcpStream, server: &Server) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TICK))?;
    let mut incoming = Incoming { stream, held: Vec::new(), block: vec![0; 256 << 10], server };
    let mut page = Page::new(&server.ledger);
    while let Some(head) = incoming.until(b"\r\n\r\n")? {
        let head = Head::parse(&head);
        if head.expects {
            incoming.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let Some(mut body) = incoming.body(&head)? else { break };
        page.arrive(body.len());
        if head.gzip {
            let mut plain = Vec::with_capacity(body.len() * 8);
            GzDecoder::new(&body[..]).read_to_end(&mut plain)?;
            body = plain;
        }
        let nth = server.requests.fetch_add(1, Relaxed);
        let bulk = head.path.split('?').next().is_some_and(|path| path.ends_with("_bulk"));
        let answer = match head.method.as_str() {
            "POST" | "PUT" if bulk => documents(&body, head.path.contains("filter_path"), server, &mut page),
            "POST" if head.path.starts_with("/v1/logs") => {
                page.otlp(&body, nth.is_multiple_of(16));
                "{}".to_owned()
            }
            "HEAD" => String::new(),
            "GET" if head.path == "/" || head.path.starts_with("/?") => INFO.to_owned(),
            _ => r#"{"acknowledged":true}"#.to_owned(),
        };
        if server.down.load(Relaxed) {
            // The documents are stored and the answer is lost: what a crash of the server looks like.
            break;
        }
        write!(
            incoming.stream,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Elastic-Product: Elasticsearch\r\nContent-Length: {}\r\n\r\n{answer}",
            answer.len()
        )?;
        if head.closes {
            break;
        }
    }
    Ok(())
}

/// Takes the documents of a bulk request and makes its answer.
fn documents(body: &[u8], brief: bool, server: &Server, page: &mut Page<'_>) -> String {
    let mut items = String::with_capacity(body.len() / 4);
    let (mut rest, mut conflict) = (body, false);
    while let Some(end) = memchr(b'\n', rest) {
        let (action, after) = (&rest[..end], &rest[end + 1..]);
        let end = memchr(b'\n', after).unwrap_or(after.len());
        let document = &after[..end];
        rest = after.get(end + 1..).unwrap_or_default();
        if action.is_empty() {
            continue;
        }
        let id = id_of(action);
        let op = if memmem::find(action, b"\"create\"").is_some() { "create" } else { "index" };
        let known = match (&server.ids, id) {
            (Some(ids), Some(id)) => {
                !ids.lock().unwrap_or_else(PoisonError::into_inner).insert(server.hasher.hash_one(id))
            }
            _ => false,
        };
        if known {
            server.conflicts.fetch_add(1, Relaxed);
        } else {
            page.line(document);
        }
        if !items.is_empty() {
            items.push(',');
        }
        let id = id.and_then(|id| std::str::from_utf8(id).ok()).unwrap_or("hBq2xZIBmK0c7RtVw3Ye");
        items.push_str(&match (known && op == "create", brief) {
            (true, _) => {
                conflict = true;
                format!(r#"{{"create":{{"_index":"logs","_id":"{id}","status":409,"error":{{"type":"version_conflict_engine_exception","reason":"[{id}]: version conflict, document already exists"}}}}}}"#)
            }
            (false, true) => format!(r#"{{"{op}":{{"status":201}}}}"#),
            (false, false) => format!(
                r#"{{"{op}":{{"_index":"logs-2026.11.21","_id":"{id}","_version":1,"result":"created","_shards":{{"total":2,"successful":1,"failed":0}},"_seq_no":7,"_primary_term":1,"status":201}}}}"#
            ),
        });
    }
    page.settle();
    format!(r#"{{"took":2,"errors":{conflict},"items":[{items}]}}"#)
}

/// The value of `_id` in an action line.
fn id_of(action: &[u8]) -> Option<&[u8]> {
    let key = memmem::find(action, b"\"_id\"")?;
    let value = &action[key + 5..];
    let open = memchr(b'"', value)? + 1;
    let close = memchr(b'"', &value[open..])?;
    Some(&value[open..open + close])
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;
    use crate::data::{self, Format};
    use crate::expect::{Expectation, Shape};

    fn exchange(stream: &mut TcpStream, request: &str) -> String {
        stream.write_all(request.as_bytes()).expect("it listens");
        let mut reader = BufReader::new(stream);
        let (mut length, mut line) = (0, String::new());
        loop {
            line.clear();
            reader.read_line(&mut line).expect("an answer");
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.trim().parse().expect("a number");
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).expect("a body");
        String::from_utf8(body).expect("text")
    }

    #[test]
    fn documents_are_counted_once_and_a_second_creation_conflicts() {
        let ledger =
            Arc::new(Ledger::new(Expectation { format: Format::Json, shape: Shape::Same, lines: 2 }));
        let elastic = Elastic::start(Arc::clone(&ledger), true).expect("a free port");
        let mut body = String::new();
        for index in 0..2 {
            let mut text = Vec::new();
            data::line(Format::Json, index, &mut text);
            body += &format!(
                "{{\"create\":{{\"_id\":\"d{index}\"}}}}\n{}\n",
                String::from_utf8(text).expect("text")
            );
        }
        let request = format!("POST /logs/_bulk HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let mut stream = TcpStream::connect(elastic.address).expect("it listens");
        let answer = exchange(&mut stream, &request);
        assert!(
            answer.contains("\"errors\":false") && answer.matches("\"status\":201").count() == 2,
            "{answer}"
        );
        let again = exchange(&mut stream, &request);
        assert!(again.contains("\"errors\":true") && again.matches("\"status\":409").count() == 2, "{again}");
        assert!(ledger.verdict().is_right(), "{:?}", ledger.verdict());
        assert_eq!(elastic.conflicts(), 2);
        assert!(exchange(&mut stream, "GET / HTTP/1.1\r\n\r\n").contains("8.17.0"));
    }

    #[test]
    fn the_id_of_an_action_is_found() {
        assert_eq!(id_of(br#"{"create":{"_index":"a","_id":"x-1"}}"#), Some(&b"x-1"[..]));
        assert_eq!(id_of(br#"{"index":{"_index":"a"}}"#), None);
    }
}
