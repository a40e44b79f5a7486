//! Checkpoints of detectors: their state, cut at an epoch, together on disk or not at all.
//!
//! Operators hand in what they hold at every cut. When all instances of all operators have, one file is written
//! (temporary, synced, renamed), and only then may sources commit positions of epochs before the cut: what is kept
//! in state is never acknowledged away. Two checkpoints are kept; a damaged newest one falls back to the other.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use logdrive_connectors::ConnectorError;
use logdrive_operators::Checkpoint;
use logdrive_schemas::Epoch;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use logdrive_connectors::storage;

/// Between two cuts, in the unit of epochs: one second.
const CUT_EVERY: u64 = 1_000_000 / Epoch::UNIT_US as u64;
const MAGIC: &[u8; 8] = b"LDCKPT01";
const KEPT: usize = 2;

/// State of every operator: name, then one part per worker.
type States = BTreeMap<String, Vec<Vec<u8>>>;

/// Gathers state and writes checkpoints.
#[derive(Debug)]
pub struct Checkpoints {
    restored: States,
    restored_cut: u64,
    n_parts: usize,
    gathering: Mutex<BTreeMap<u64, Gathering>>,
    complete: mpsc::UnboundedSender<(u64, States)>,
}

#[derive(Debug, Default)]
struct Gathering {
    n_parts: usize,
    states: States,
}

impl Checkpoints {
    /// Opens the folder and reads the newest checkpoint that is whole. `n_parts` is how many parts make a cut:
    /// operators times workers.
    ///
    /// # Errors
    /// If there are checkpoints and none can be read: starting empty would forget what was counted.
    pub fn open(dir: &Path, n_parts: usize) -> Result<(Arc<Self>, CheckpointWriter), ConnectorError> {
        let (restored_cut, restored) = read_newest(dir)?;
        let (complete, receiver) = mpsc::unbounded_channel();
        let this = Self { restored, restored_cut, n_parts, gathering: Mutex::default(), complete };
        Ok((Arc::new(this), CheckpointWriter { dir: dir.to_owned(), receiver }))
    }

    /// The epoch of the restored cut, 0 if there was none. New epochs are behind it.
    #[must_use]
    pub fn restored_cut(&self) -> u64 {
        self.restored_cut
    }
}

impl Checkpoint for Checkpoints {
    fn next_cut(&self, epoch: u64) -> u64 {
        epoch.div_ceil(CUT_EVERY) * CUT_EVERY
    }

    fn put(&self, operator: &str, _worker: usize, cut: u64, state: Vec<u8>) {
        let mut gathering = self.gathering.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = gathering.entry(cut).or_default();
        entry.n_parts += 1;
        entry.states.entry(operator.to_owned()).or_default().push(state);
        if entry.n_parts == self.n_parts {
            let states = gathering.remove(&cut).map(|entry| entry.states).unwrap_or_default();
            // Cuts of an instance come in order, so older ones that are not whole never will be.
            gathering.retain(|other, _| *other > cut);
            self.complete.send((cut, states)).ok();
        }
    }

    fn restored(&self, operator: &str) -> Vec<Vec<u8>> {
        self.restored.get(operator).cloned().unwrap_or_default()
    }
}

/// Writes complete cuts to disk.
#[derive(Debug)]
pub struct CheckpointWriter {
    dir: PathBuf,
    receiver: mpsc::UnboundedReceiver<(u64, States)>,
}

impl CheckpointWriter {
    /// Writes until the dataflow ends, telling `durable` the newest cut on disk.
    ///
    /// A cut is written only once every sink has made the epochs before it durable (`sunk`): an operator restored
    /// from it does not count those rows again, so what it said about them must have arrived.
    ///
    /// # Errors
    /// If the disk fails: then nothing may be acknowledged any more.
    pub async fn run(
        mut self,
        mut sunk: watch::Receiver<u64>,
        durable: watch::Sender<u64>,
    ) -> Result<(), ConnectorError> {
        // While the sinks lag, the oldest cut waits for them; of those behind it the newest is enough.
        let mut waiting: VecDeque<(u64, States)> = VecDeque::new();
        loop {
            let oldest = waiting.front().map(|(cut, _)| *cut);
            tokio::select! {
                received = self.receiver.recv() => match received {
                    Some(newest) => {
                        waiting.truncate(1);
                        waiting.push_back(newest);
                    }
                    None => return Ok(()),
                },
                reached = reach(&mut sunk, oldest.unwrap_or(0)), if oldest.is_some() => {
                    let Some(reached) = reached else { return Ok(()) };
                    let mut ready = None;
                    while let Some(cut) = waiting.pop_front_if(|(cut, _)| *cut <= reached) {
                        ready = Some(cut);
                    }
                    if let Some((cut, states)) = ready {
                        self.write(cut, states).await?;
                        durable.send_replace(cut);
                    }
                }
            }
        }
    }

    async fn write(&self, cut: u64, states: States) -> Result<(), ConnectorError> {
        let dir = self.dir.clone();
        let written = tokio::task::spawn_blocking(move || write(&dir, cut, &states)).await;
        written
            .unwrap_or_else(|e| Err(std::io::Error::other(e)))
            .map_err(|e| ConnectorError::storage(&self.dir, e))
    }
}

/// Waits until the sinks have reached `cut`; how far they are then. `None` if the dataflow is gone.
async fn reach(sunk: &mut watch::Receiver<u64>, cut: u64) -> Option<u64> {
    sunk.wait_for(|sunk| cut <= *sunk).await.ok().map(|sunk| *sunk)
}

fn path(dir: &Path, cut: u64) -> PathBuf {
    dir.join(format!("{cut:020}.ckpt"))
}

fn write(dir: &Path, cut: u64, states: &States) -> std::io::Result<()> {
    let mut body = Vec::new();
    for (name, parts) in states {
        put_bytes(&mut body, name.as_bytes());
        body.extend_from_slice(&(parts.len() as u32).to_le_bytes());
        parts.iter().for_each(|part| put_bytes(&mut body, part));
    }
    let mut file = MAGIC.to_vec();
    file.extend_from_slice(&cut.to_le_bytes());
    file.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
    file.extend_from_slice(&body);
    storage::replace(&path(dir, cut), &file)?;
    for old in list(dir)?.into_iter().rev().skip(KEPT) {
        std::fs::remove_file(path(dir, old))?;
    }
    Ok(())
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// The cuts on disk, ascending.
fn list(dir: &Path) -> std::io::Result<Vec<u64>> {
    let mut cuts = Vec::new();
    match std::fs::read_dir(dir) {
        Ok(entries) => {
            for entry in entries {
                let name = entry?.file_name();
                let cut = name.to_str().and_then(|name| name.strip_suffix(".ckpt")?.parse::<u64>().ok());
                cuts.extend(cut);
            }
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    cuts.sort_unstable();
    Ok(cuts)
}

fn read_newest(dir: &Path) -> Result<(u64, States), ConnectorError> {
    let cuts = list(dir).map_err(|e| ConnectorError::storage(dir, e))?;
    let mut problem = None;
    for cut in cuts.iter().rev() {
        let path = path(dir, *cut);
        match std::fs::read(&path).map(|bytes| read(&bytes, *cut)) {
            Ok(Some(states)) => {
                info!(cut, "Checkpoint restored.");
                return Ok((*cut, states));
            }
            Ok(None) => {
                warn!(path = %path.display(), "Checkpoint is damaged; falling back to the one before.");
                problem = Some(std::io::Error::other("every checkpoint is damaged"));
            }
            Err(e) => problem = Some(e),
        }
    }
    problem.map_or_else(|| Ok((0, States::new())), |e| Err(ConnectorError::storage(dir, e)))
}

/// `None` if the file is not whole.
fn read(file: &[u8], cut: u64) -> Option<States> {
    let rest = file.strip_prefix(MAGIC)?;
    let (head, body) = rest.split_at_checked(12)?;
    let same_cut = head[..8] == cut.to_le_bytes();
    if !same_cut || head[8..] != crc32fast::hash(body).to_le_bytes() {
        return None;
    }
    let mut body = body;
    let mut states = States::new();
    while !body.is_empty() {
        let name = String::from_utf8(take_bytes(&mut body)?.to_vec()).ok()?;
        let (n_parts, rest) = body.split_first_chunk::<4>()?;
        body = rest;
        let parts = (0..u32::from_le_bytes(*n_parts)).map(|_| take_bytes(&mut body).map(<[u8]>::to_vec));
        states.insert(name, parts.collect::<Option<_>>()?);
    }
    Some(states)
}

fn take_bytes<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, rest) = from.split_first_chunk::<8>()?;
    let (bytes, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
    *from = rest;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(text: &str) -> States {
        States::from([("velocity.rows".to_owned(), vec![text.as_bytes().to_vec(), Vec::new()])])
    }

    #[test]
    fn the_newest_whole_checkpoint_is_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_newest(dir.path()).unwrap(), (0, States::new()));
        for cut in [10, 20, 30] {
            write(dir.path(), cut, &states(&cut.to_string())).unwrap();
        }
        assert_eq!(list(dir.path()).unwrap(), [20, 30]);
        assert_eq!(read_newest(dir.path()).unwrap(), (30, states("30")));
    }

    #[test]
    fn a_damaged_byte_anywhere_falls_back_and_two_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 10, &states("old")).unwrap();
        write(dir.path(), 20, &states("new")).unwrap();
        let good = std::fs::read(path(dir.path(), 20)).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            std::fs::write(path(dir.path(), 20), &bad).unwrap();
            assert_eq!(read_newest(dir.path()).unwrap(), (10, states("old")), "byte {at}");
        }
        std::fs::write(path(dir.path(), 10), b"").unwrap();
        assert!(read_newest(dir.path()).is_err());
    }

    #[test]
    fn a_cut_is_complete_when_every_part_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let (checkpoints, mut writer) = Checkpoints::open(dir.path(), 2).unwrap();
        assert_eq!((checkpoints.next_cut(1_001), checkpoints.next_cut(2_000)), (2_000, 2_000));
        checkpoints.put("a", 0, 20, vec![1]);
        assert!(writer.receiver.try_recv().is_err());
        checkpoints.put("a", 1, 20, vec![2]);
        assert_eq!(writer.receiver.try_recv().unwrap().0, 20);
    }
}
