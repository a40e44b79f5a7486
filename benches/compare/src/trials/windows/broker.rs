//! A Kafka broker for W8: started by the component script beside the repository, spoken to by `kcat`, which that script
//! installs. What the broker costs is in no figure.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::events::{Expected, PARTITIONS, TENANTS, closer, event};
use crate::error::{Result, fail};
use crate::products::run;
use crate::system;

/// How long a topic may take to be made.
const MAKE: Duration = Duration::from_secs(30);

/// A broker that runs; stopped and wiped when dropped.
pub(super) struct Broker {
    script: PathBuf,
    port: u16,
    /// Where it listens.
    pub(super) address: String,
}

/// A topic that is full, and what must come of it.
pub(super) struct Input {
    /// Its name.
    pub(super) topic: String,
    /// How many events it holds besides those that close the windows.
    pub(super) lines: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// The windows.
    pub(super) expected: Expected,
}

impl Broker {
    /// Starts an empty one on `port` and the next; the error says why there is none.
    pub(super) fn start(port: u16) -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
        let shared = std::env::var_os("LOGDRIVE_SHARED").map_or(root, PathBuf::from);
        let script = shared.join("components/kafka.sh");
        if !script.exists() {
            return Err("there is no components/kafka.sh in the shared folder (LOGDRIVE_SHARED)".into());
        }
        let broker = Self { script, port, address: format!("127.0.0.1:{port}") };
        broker.script("wipe")?;
        broker.script("start")?;
        broker.warm()?;
        Ok(broker)
    }

    /// Makes the broker do what it does once: or else the first product would wait for it.
    fn warm(&self) -> Result<()> {
        const TOPIC: &str = "w8-warm";
        self.topic(TOPIC)?;
        let mut feed = self.kcat();
        feed.args(["-X", "enable.idempotence=true"]);
        let mut feed = Feed::start(feed, TOPIC)?;
        feed.send(b"{}")?;
        feed.end()?;
        let earliest = ["-X", "auto.offset.reset=earliest"];
        run(self.kcat().args(["-G", TOPIC, "-q", "-e", "-c", "1"]).args(earliest).arg(TOPIC))?;
        Ok(())
    }

    fn script(&self, verb: &str) -> Result<String> {
        let mut command = Command::new(&self.script);
        command.args([verb, &self.port.to_string()]).stdin(Stdio::null());
        run(command.env("KAFKA_PARTITIONS", PARTITIONS.to_string()).env("KAFKA_HEAP", "512m"))
    }

    fn kcat(&self) -> Command {
        let mut command = Command::new("kcat");
        command.args(["-b", &self.address]);
        command
    }

    /// Makes a topic: the broker makes those that are asked for.
    pub(super) fn topic(&self, name: &str) -> Result<()> {
        let made = format!("topic \"{name}\" with {PARTITIONS} partitions");
        let deadline = Instant::now() + MAKE;
        while !run(self.kcat().args(["-L", "-t", name]))?.contains(&made) {
            if Instant::now() > deadline {
                return Err(format!("the broker did not make the topic {name} within {MAKE:?}").into());
            }
            sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Makes a topic of `lines` events and of those that close their windows, and looks whether it holds them all.
    pub(super) fn fill(&self, topic: &str, lines: u64) -> Result<Input> {
        let mut expected = Expected::of(lines)?;
        self.topic(topic)?;
        let mut feed = Feed::start(self.kcat(), topic)?;
        let (mut line, mut bytes) = (Vec::new(), 0);
        for index in 0..lines {
            let event = event(index, &mut line);
            expected.add(event);
            bytes += line.len() as u64;
            feed.send(&line)?;
        }
        for tenant in 0..TENANTS {
            closer(lines, tenant, &mut line);
            feed.send(&line)?;
        }
        feed.end()?;
        let (held, sent) = (self.held(topic)?, lines + TENANTS);
        if held != sent {
            return Err(format!("the topic {topic} holds {held} messages, not {sent}").into());
        }
        Ok(Input { topic: topic.to_owned(), lines, bytes, expected })
    }

    /// How many messages a topic holds.
    fn held(&self, topic: &str) -> Result<u64> {
        let mut command = self.kcat();
        command.arg("-Q");
        for partition in 0..PARTITIONS {
            command.args(["-t", &format!("{topic}:{partition}:-1")]);
        }
        Ok(offsets(&run(&mut command)?))
    }

    /// Reads a topic from its beginning and goes on reading.
    pub(super) fn read(&self, topic: &str) -> Result<Reader> {
        let mut command = self.kcat();
        command.args(["-C", "-q", "-u", "-o", "beginning", "-t", topic]);
        system::dies_with_us(&mut command);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        Ok(Reader(child.map_err(fail(format_args!("cannot run kcat")))?))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // What cannot be removed now is removed before the next start.
        drop(self.script("wipe"));
    }
}

/// The sum of the offsets that `kcat -Q` says.
fn offsets(text: &str) -> u64 {
    let offset = |line: &str| line.rsplit_once(" offset ")?.1.trim().parse::<u64>().ok();
    text.lines().filter_map(offset).sum()
}

/// A producer into the only partition.
struct Feed {
    child: Child,
    input: BufWriter<ChildStdin>,
}

impl Feed {
    fn start(mut command: Command, topic: &str) -> Result<Self> {
        command.args(["-P", "-t", topic, "-p", "0", "-X", "acks=all", "-X", "linger.ms=20"]);
        system::dies_with_us(&mut command);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        let mut child = child.map_err(fail(format_args!("cannot run kcat")))?;
        let input = child.stdin.take().ok_or("kcat has no input")?;
        Ok(Self { child, input: BufWriter::with_capacity(1 << 16, input) })
    }

    fn send(&mut self, line: &[u8]) -> Result<()> {
        self.input.write_all(line)?;
        Ok(self.input.write_all(b"\n")?)
    }

    /// Waits until the broker has everything.
    fn end(mut self) -> Result<()> {
        self.input.flush()?;
        drop(self.input);
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("kcat ended with {status}").into()) }
    }
}

/// A consumer of a topic; ended when dropped.
pub(super) struct Reader(Child);

impl Reader {
    /// The messages, one a line.
    pub(super) fn lines(&mut self) -> Result<ChildStdout> {
        Ok(self.0.stdout.take().ok_or("kcat has no output")?)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // A child that ended in between is waited for all the same.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::offsets;

    #[test]
    fn offsets_are_summed() {
        assert_eq!(offsets("w8-few [0] offset 505\nw8-few [3] offset 1498\n% other line\n"), 2003);
        assert_eq!(offsets(""), 0);
    }
}
