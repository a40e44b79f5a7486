//! Who sends: over TCP, over HTTP, into a file. Nothing is sent twice, so that a message found twice was doubled by
//! the pipeline. What a sender may rely on is *acknowledged*: a request that was answered with 200, a line that is in
//! the file. TCP acknowledges nothing.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::message::{Channel, Dice, is_malformed, line};

/// Lines of one file, before it is renamed and a new one begun.
const LINES_PER_FILE: u64 = 1500;
const ANSWER_MAX: Duration = Duration::from_secs(15);

/// What was sent, and what of it was acknowledged.
#[derive(Debug)]
pub(crate) struct Books {
    pub(crate) seed: u64,
    issued: [AtomicU64; 3],
    acknowledged: Mutex<HashSet<u64>>,
}

impl Books {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, issued: Default::default(), acknowledged: Mutex::default() }
    }

    /// Numbers for `n` more messages, which count as sent from now on, and their lines.
    pub(crate) fn issue(&self, channel: Channel, n: u64) -> (Vec<u64>, Vec<u8>) {
        let first = self.issued[channel as usize].fetch_add(n, Ordering::SeqCst);
        let seqs: Vec<u64> = (first..first + n).map(|n| channel.seq(n)).collect();
        let mut lines = Vec::new();
        for seq in &seqs {
            lines.extend_from_slice(line(self.seed, *seq).as_bytes());
            lines.push(b'\n');
        }
        (seqs, lines)
    }

    pub(crate) fn acknowledge(&self, seqs: Vec<u64>) {
        self.acknowledged.lock().unwrap().extend(seqs);
    }

    pub(crate) fn n_issued(&self) -> u64 {
        self.issued.iter().map(|n| n.load(Ordering::SeqCst)).sum()
    }

    pub(crate) fn is_issued(&self, seq: u64) -> bool {
        seq / 3 < self.issued[Channel::of(seq) as usize].load(Ordering::SeqCst)
    }

    pub(crate) fn acknowledged(&self) -> HashSet<u64> {
        self.acknowledged.lock().unwrap().clone()
    }
}

/// Where to send.
#[derive(Clone, Debug)]
pub(crate) struct Targets {
    pub(crate) tcp: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) logs: PathBuf,
}

/// All senders at work.
pub(crate) struct Oracle {
    books: Arc<Books>,
    targets: Targets,
    stop: CancellationToken,
    senders: JoinSet<()>,
}

impl Oracle {
    pub(crate) fn start(books: &Arc<Books>, targets: &Targets) -> Self {
        let stop = CancellationToken::new();
        let mut senders = JoinSet::new();
        let dice = |n: u64| Dice::new(books.seed.rotate_left(17) ^ n);
        senders.spawn(send_tcp(Arc::clone(books), targets.tcp, dice(1), stop.clone()));
        for n in 2..4 {
            senders.spawn(send_http(Arc::clone(books), targets.http, dice(n), stop.clone()));
        }
        senders.spawn(send_file(Arc::clone(books), targets.logs.clone(), dice(4), stop.clone()));
        Self { books: Arc::clone(books), targets: targets.clone(), stop, senders }
    }

    /// Ends the senders, then sends one fresh message by every channel; returns their numbers.
    pub(crate) async fn finish(mut self) -> Vec<u64> {
        self.stop.cancel();
        while let Some(ended) = self.senders.join_next().await {
            ended.unwrap();
        }
        let mut canaries = Vec::new();
        for channel in Channel::ALL {
            let (seqs, lines) = loop {
                let (seqs, lines) = self.books.issue(channel, 1);
                if !is_malformed(seqs[0]) {
                    break (seqs, lines);
                }
            };
            canaries.push(seqs[0]);
            match channel {
                // A connection from before the last kill would take the message and lose it.
                Channel::Tcp => {
                    let mut stream = TcpStream::connect(self.targets.tcp).await.unwrap();
                    stream.write_all(&lines).await.unwrap();
                    stream.shutdown().await.unwrap();
                    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "it says nothing and closes");
                }
                Channel::Http => assert!(post(self.targets.http, &lines).await, "the last request is taken"),
                Channel::File => append(&self.targets.logs, &lines),
            }
            self.books.acknowledge(seqs);
        }
        canaries
    }
}

/// How many messages now, mostly few, and how long to rest afterwards.
fn pace(dice: &mut Dice) -> (u64, Duration) {
    let n = if dice.one_in(40) { dice.range(100, 400) } else { dice.range(1, 16) };
    (n, Duration::from_millis(dice.range(2, 30)))
}

async fn send_tcp(books: Arc<Books>, target: SocketAddr, mut dice: Dice, stop: CancellationToken) {
    let mut stream = None;
    while !stop.is_cancelled() {
        let (n, rest) = pace(&mut dice);
        if stream.is_none() {
            stream = TcpStream::connect(target).await.ok();
        }
        if let Some(open) = &mut stream {
            let (_, lines) = books.issue(Channel::Tcp, n);
            if open.write_all(&lines).await.is_err() {
                stream = None;
            }
        }
        sleep(rest).await;
    }
}

async fn send_http(books: Arc<Books>, target: SocketAddr, mut dice: Dice, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let (n, rest) = pace(&mut dice);
        let (seqs, lines) = books.issue(Channel::Http, n);
        if post(target, &lines).await {
            books.acknowledge(seqs);
        }
        sleep(rest).await;
    }
}

/// Whether the request was answered with 200. One connection each: what is in doubt is only this request.
async fn post(target: SocketAddr, body: &[u8]) -> bool {
    let exchange = async {
        let mut stream = TcpStream::connect(target).await?;
        let head = format!(
            "POST / HTTP/1.1\r\nHost: {target}\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat()).await?;
        let mut answer = Vec::new();
        // What was said before a reset was said.
        stream.read_to_end(&mut answer).await.ok();
        Ok::<_, std::io::Error>(answer.starts_with(b"HTTP/1.1 200 "))
    };
    timeout(ANSWER_MAX, exchange).await.is_ok_and(|answer| answer.unwrap_or(false))
}

async fn send_file(books: Arc<Books>, logs: PathBuf, mut dice: Dice, stop: CancellationToken) {
    let (mut n_lines, mut n_files) = (0, 0);
    while !stop.is_cancelled() {
        let (n, rest) = pace(&mut dice);
        let (seqs, lines) = books.issue(Channel::File, n);
        append(&logs, &lines);
        books.acknowledge(seqs);
        n_lines += n;
        if LINES_PER_FILE <= n_lines {
            n_lines = 0;
            n_files += 1;
            std::fs::rename(logs.join("app.log"), logs.join(format!("app.log.{n_files}"))).unwrap();
        }
        sleep(rest).await;
    }
}

fn append(logs: &Path, lines: &[u8]) {
    let mut file = OpenOptions::new().create(true).append(true).open(logs.join("app.log")).unwrap();
    file.write_all(lines).unwrap();
}
