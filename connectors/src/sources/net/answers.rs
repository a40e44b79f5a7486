//! Answering peers for what is durable, in the order in which they sent it.
//!
//! ```text
//! reading: frames ─► Deliveries::hand_over ─► intake ─► buffer
//!                              │ in order                 │ ack
//! writing:  peer ◄──────── Answers::next ◄────────────────┘
//! ```
//!
//! Both halves run in the connection's task. What was handed over and is not yet durable is bounded; at the bound
//! nothing is read.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::counts::Counts;
use super::lines::Group;
use crate::source::{Intake, NotDurable, Received};

/// Groups of messages of one connection that may wait for their acknowledgement.
const GROUPS_MAX: usize = 256;
const STOPPED: &str = "the pipeline has stopped";

/// An answer that may be sent once what it stands for is durable.
struct Pledge {
    answer: Vec<u8>,
    /// None: it stands for nothing.
    ack: Option<oneshot::Receiver<Result<(), NotDurable>>>,
    _permit: Option<OwnedSemaphorePermit>,
}

/// The half that hands over.
pub(crate) struct Deliveries<'a> {
    pledges: mpsc::Sender<Pledge>,
    free: Arc<Semaphore>,
    unanswered_max: u32,
    n_unanswered: Arc<AtomicUsize>,
    intake: &'a Intake,
    counts: &'a Counts,
    peer: Arc<str>,
}

/// The half that answers.
pub(crate) struct Answers {
    pledges: mpsc::Receiver<Pledge>,
    /// The one that is waited for.
    front: Option<Pledge>,
    n_unanswered: Arc<AtomicUsize>,
}

/// Both halves for one connection, with at most `unanswered_max` bytes of messages between them, except that one group
/// may be larger alone.
pub(crate) fn answers<'a>(
    unanswered_max: u64,
    intake: &'a Intake,
    counts: &'a Counts,
    peer: &Arc<str>,
) -> (Deliveries<'a>, Answers) {
    let (sender, receiver) = mpsc::channel(GROUPS_MAX);
    let unanswered_max = u32::try_from(unanswered_max).unwrap_or(u32::MAX).min(u32::MAX >> 4);
    let n_unanswered = Arc::new(AtomicUsize::new(0));
    let deliveries = Deliveries {
        pledges: sender,
        free: Arc::new(Semaphore::new(unanswered_max as usize)),
        unanswered_max,
        n_unanswered: Arc::clone(&n_unanswered),
        intake,
        counts,
        peer: Arc::clone(peer),
    };
    (deliveries, Answers { pledges: receiver, front: None, n_unanswered })
}

impl Deliveries<'_> {
    /// Hands messages over; `answer` is sent once they are durable. Waits while too much is unanswered.
    pub(crate) async fn hand_over(&self, group: Group, answer: Vec<u8>) -> Result<(), NotDurable> {
        if group.messages.is_empty() {
            return self.answer(answer).await;
        }
        let stopped = || NotDurable(STOPPED.into());
        self.n_unanswered.fetch_add(1, Ordering::Relaxed);
        let slot = self.pledges.reserve().await.map_err(|_| stopped())?;
        let weight = u32::try_from(group.data.len()).unwrap_or(u32::MAX).min(self.unanswered_max);
        let permit = Arc::clone(&self.free).acquire_many_owned(weight).await.map_err(|_| stopped())?;
        let (ack, acked) = oneshot::channel();
        let counted = group.messages.clone();
        let peer = Some(Arc::clone(&self.peer));
        let received =
            Received { data: group.data, messages: group.messages, peer, attributes: None, ack: Some(ack) };
        self.intake.send(received).await?;
        self.counts.received(&counted);
        self.counts.rejected("message_too_long", group.n_too_long, &self.peer);
        slot.send(Pledge { answer, ack: Some(acked), _permit: Some(permit) });
        Ok(())
    }

    /// Answers once everything before it is answered.
    pub(crate) async fn answer(&self, answer: Vec<u8>) -> Result<(), NotDurable> {
        self.n_unanswered.fetch_add(1, Ordering::Relaxed);
        let pledge = Pledge { answer, ack: None, _permit: None };
        self.pledges.send(pledge).await.map_err(|_| NotDurable(STOPPED.into()))
    }

    /// Whether the peer waits for an answer.
    pub(crate) fn is_awaited(&self) -> bool {
        self.n_unanswered.load(Ordering::Relaxed) > 0
    }
}

impl Answers {
    /// The next answer that may be sent; `None` when there will be none. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Result<Vec<u8>, NotDurable>> {
        if self.front.is_none() {
            self.front = Some(self.pledges.recv().await?);
        }
        if let Some(ack) = self.front.as_mut().and_then(|pledge| pledge.ack.as_mut()) {
            match ack.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Some(Err(error)),
                Err(_) => return Some(Err(NotDurable("the buffer gave no answer".into()))),
            }
        }
        let pledge = self.front.take()?;
        self.n_unanswered.fetch_sub(1, Ordering::Relaxed);
        Some(Ok(pledge.answer))
    }

    /// Whether the peer waits for an answer.
    pub(crate) fn is_awaited(&self) -> bool {
        self.n_unanswered.load(Ordering::Relaxed) > 0
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use logdrive_schemas::MessageRange;

    use super::*;
    use crate::context::ConnectorContext;

    fn group(text: &'static str) -> Group {
        let messages = vec![MessageRange { start: 0, len: text.len() as u32 }];
        Group { data: Bytes::from_static(text.as_bytes()), messages, n_too_long: 0 }
    }

    fn counts() -> Counts {
        Counts::new(&ConnectorContext {
            name: "in".into(),
            state_dir: "unused".into(),
            metrics: Arc::default(),
            shutdown: tokio_util::sync::CancellationToken::new(),
        })
    }

    #[tokio::test]
    async fn answers_wait_for_what_comes_before_them() {
        let (intake, mut buffer) = Intake::channel(10);
        let counts = counts();
        let (deliveries, mut answers) = answers(1000, &intake, &counts, &"peer".into());
        deliveries.hand_over(group("a"), b"1".to_vec()).await.unwrap();
        deliveries.hand_over(group("b"), b"2".to_vec()).await.unwrap();
        deliveries.answer(b"3".to_vec()).await.unwrap();
        let (first, second) = (buffer.recv().await.unwrap(), buffer.recv().await.unwrap());
        second.ack.unwrap().send(Ok(())).unwrap();
        let early = tokio::time::timeout(std::time::Duration::from_millis(20), answers.next()).await;
        assert!(early.is_err() && answers.is_awaited());
        first.ack.unwrap().send(Ok(())).unwrap();
        for expected in [b"1", b"2", b"3"] {
            assert_eq!(answers.next().await.unwrap().unwrap(), expected);
        }
        assert!(!answers.is_awaited());
        drop(deliveries);
        assert!(answers.next().await.is_none());
    }

    #[tokio::test]
    async fn no_more_than_the_bound_is_handed_over_unanswered() {
        let (intake, mut buffer) = Intake::channel(10);
        let counts = counts();
        let (deliveries, mut answers) = answers(4, &intake, &counts, &"peer".into());
        // Larger than the bound, but alone.
        deliveries.hand_over(group("123456789"), Vec::new()).await.unwrap();
        let mut waiting = std::pin::pin!(deliveries.hand_over(group("x"), Vec::new()));
        let early = tokio::time::timeout(std::time::Duration::from_millis(20), waiting.as_mut()).await;
        assert!(early.is_err() && buffer.len() == 1);
        buffer.recv().await.unwrap().ack.unwrap().send(Ok(())).unwrap();
        answers.next().await.unwrap().unwrap();
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_not_durable_is_not_answered() {
        let (intake, mut buffer) = Intake::channel(10);
        let counts = counts();
        let (deliveries, mut answers) = answers(1000, &intake, &counts, &"peer".into());
        deliveries.hand_over(group("a"), b"1".to_vec()).await.unwrap();
        drop(buffer.recv().await.unwrap());
        assert!(answers.next().await.unwrap().is_err());
    }
}
