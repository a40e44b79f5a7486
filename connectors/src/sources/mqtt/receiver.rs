//! Receives over one connection after the other, for as long as the pipeline runs.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tracing::{error, info, warn};

use super::attributes::Attributes;
use super::group::Group;
use super::identity::Identity;
use super::topics::Topics;
use crate::context::ConnectorContext;
use crate::mqtt::Qos;
use crate::mqtt::connection::{Connection, Trouble};
use crate::mqtt::packet::{Connected, Incoming, Outgoing, Publish};
use crate::mqtt::settings::Settings;
use crate::source::{Ack, Intake, NotDurable};
use crate::sources::net::DRAIN_MAX;
use crate::sources::net::counts::Counts;

/// How long to wait before connecting again; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// A connection that lasted this long makes the next wait short again.
const STABLE: Duration = Duration::from_secs(10);
/// The packet identifiers of subscribing and unsubscribing; only they come from this side.
const SUBSCRIBE_ID: u16 = 1;
const UNSUBSCRIBE_ID: u16 = 2;

/// A group whose fate is known.
struct Kept {
    session: u64,
    connection: u64,
    receipts: Vec<(u16, Qos)>,
    result: Result<(), String>,
}

/// The state over all connections.
pub(super) struct Receiver {
    cx: ConnectorContext,
    settings: Settings,
    topics: Topics,
    attributes: Option<Attributes>,
    identity: Identity,
    intake: Intake,
    counts: Counts,
    peer: Arc<str>,
    /// Grows when the broker has forgotten the client: packet identifiers then mean other messages.
    session: u64,
    connection: u64,
    /// QoS 2: kept messages that the broker may send again until it says PUBREL.
    held: HashSet<u16>,
    /// QoS 2: messages about to be kept, and over which connection the broker is to be told.
    keeping: HashMap<u16, u64>,
    /// A group on its way into the intake; nothing is received meanwhile.
    sending: Option<BoxFuture<'static, Result<(), NotDurable>>>,
    /// Groups that are not yet kept.
    waiting: FuturesUnordered<BoxFuture<'static, Kept>>,
    /// How many messages are in them.
    n_waiting: usize,
}

impl Receiver {
    pub(super) fn new(
        cx: ConnectorContext,
        settings: Settings,
        topics: Topics,
        attributes: Option<Attributes>,
        identity: Identity,
        intake: Intake,
    ) -> Self {
        Self {
            counts: Counts::new(&cx),
            peer: settings.endpoint.to_string().into(),
            cx,
            settings,
            topics,
            attributes,
            identity,
            intake,
            session: 0,
            connection: 0,
            held: HashSet::new(),
            keeping: HashMap::new(),
            sending: None,
            waiting: FuturesUnordered::new(),
            n_waiting: 0,
        }
    }

    /// Receives until the pipeline stops.
    pub(super) async fn run(mut self) {
        let shutdown = self.cx.shutdown.clone();
        let mut pause = RETRY_MIN;
        while !shutdown.is_cancelled() {
            let connected = tokio::select! {
                connected = Connection::open(&self.settings) => connected,
                () = shutdown.cancelled() => return,
            };
            let trouble = match connected {
                Ok((connection, connected)) => {
                    let since = Instant::now();
                    self.counts.connections.inc();
                    let served = self.serve(connection, &connected).await;
                    self.counts.connections.dec();
                    if STABLE <= since.elapsed() {
                        pause = RETRY_MIN;
                    }
                    match served {
                        Ok(()) => return,
                        Err(trouble) => trouble,
                    }
                }
                Err(trouble) => trouble,
            };
            self.cx.metrics.source_errors.with_label_values(&[&*self.cx.name, trouble.kind()]).inc();
            warn!(source = %self.cx.name, broker = %self.peer, error = %trouble, "No connection; trying again.");
            if !self.pause(pause.mul_f64(rand::random_range(0.75..1.25))).await {
                return;
            }
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Waits before connecting again; what was received is kept meanwhile. False if the pipeline stops.
    async fn pause(&mut self, pause: Duration) -> bool {
        let shutdown = self.cx.shutdown.clone();
        let wait = sleep(pause);
        tokio::pin!(wait);
        loop {
            tokio::select! {
                () = &mut wait => return true,
                () = shutdown.cancelled() => return false,
                result = sent(&mut self.sending), if self.sending.is_some() => {
                    self.sending = None;
                    if result.is_err() { return !shutdown.is_cancelled(); }
                }
                Some(kept) = self.waiting.next(), if !self.waiting.is_empty() => {
                    // There is nobody to be told: the broker asks again.
                    drop(self.settle(kept));
                }
            }
        }
    }

    /// Receives until the connection breaks (`Err`) or the pipeline stops (`Ok`).
    async fn serve(&mut self, mut connection: Connection, connected: &Connected) -> Result<(), Trouble> {
        self.connection += 1;
        if !connected.session_present {
            self.session += 1;
            self.held.clear();
            self.keeping.clear();
        }
        info!(
            source = %self.cx.name, broker = %self.peer, client = self.settings.client_id,
            resumed = connected.session_present, "Connected."
        );
        self.subscribe(&mut connection, connected.session_present).await?;
        let shutdown = self.cx.shutdown.clone();
        let every = connected.keep_alive.map_or(self.settings.keep_alive, |s| Duration::from_secs(s.into()));
        let mut ping = interval(every.max(Duration::from_secs(1)));
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ping.reset();
        let mut is_silent = false;
        loop {
            let may_read = self.sending.is_none() && self.n_waiting < usize::from(self.settings.receive_max);
            // Who does not read cannot hear.
            is_silent &= may_read;
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return self.finish(connection).await,
                result = sent(&mut self.sending), if self.sending.is_some() => {
                    self.sending = None;
                    result.map_err(|error| Trouble::NotKept(error.0))?;
                }
                Some(kept) = self.waiting.next(), if !self.waiting.is_empty() => {
                    self.confirm(&mut connection, kept).await?;
                }
                _ = ping.tick() => {
                    if is_silent {
                        return Err(Trouble::Silent("is silent"));
                    }
                    connection.feed(Outgoing::Ping).await?;
                    connection.flush().await?;
                    is_silent = true;
                }
                packet = connection.next(), if may_read => {
                    is_silent = false;
                    self.receive(&mut connection, packet?).await?;
                }
            }
        }
    }

    /// Handles a packet and all that have arrived with it.
    async fn receive(&mut self, connection: &mut Connection, first: Incoming) -> Result<(), Trouble> {
        let mut group = Group::default();
        let mut next = Some(first);
        // What was taken before a connection breaks is handed over all the same.
        let mut result = Ok(());
        while let Some(packet) = next.take() {
            result = self.handle(connection, &mut group, packet).await;
            if result.is_err() || group.is_full() {
                break;
            }
            match connection.next().now_or_never() {
                Some(Ok(packet)) => next = Some(packet),
                Some(Err(trouble)) => result = Err(trouble),
                None => {}
            }
        }
        if !group.is_empty() {
            self.hand_over(group);
        }
        result?;
        connection.flush().await
    }

    async fn handle(
        &mut self,
        connection: &mut Connection,
        group: &mut Group,
        packet: Incoming,
    ) -> Result<(), Trouble> {
        match packet {
            Incoming::Publish(message) => {
                if message.qos == Qos::ExactlyOnce && !self.is_new(connection, &message).await? {
                    return Ok(());
                }
                if message.cut {
                    self.counts.rejected("too_large", 1, &self.peer);
                }
                group.add(message, self.attributes.is_some());
            }
            // Also if nothing is known of it: an earlier process may have confirmed the message.
            Incoming::PubRel(id) => {
                self.held.remove(&id);
                connection.feed(Outgoing::PubComp(id)).await?;
            }
            Incoming::Subscribed(answers) => self.subscribed(&answers)?,
            _ => {}
        }
        Ok(())
    }

    /// Whether a QoS 2 message is not one that was received before.
    async fn is_new(&mut self, connection: &mut Connection, message: &Publish) -> Result<bool, Trouble> {
        if self.held.contains(&message.id) {
            connection.feed(Outgoing::PubRec(message.id)).await?;
            return Ok(false);
        }
        Ok(self.keeping.insert(message.id, self.connection).is_none())
    }

    /// Starts to hand a group to the buffer.
    fn hand_over(&mut self, mut group: Group) {
        self.counts.received(group.ranges());
        let receipts = std::mem::take(&mut group.receipts);
        let ack = (!receipts.is_empty()).then(|| {
            let (ack, answer): (Ack, _) = oneshot::channel();
            self.n_waiting += receipts.len();
            let (session, connection) = (self.session, self.connection);
            self.waiting.push(
                async move {
                    let result = match answer.await {
                        Ok(result) => result.map_err(|error| error.0),
                        Err(_) => Err("the pipeline has stopped".to_owned()),
                    };
                    Kept { session, connection, receipts, result }
                }
                .boxed(),
            );
            ack
        });
        let received = group.received(self.attributes.as_ref(), &self.topics, &self.peer, ack);
        let intake = self.intake.clone();
        self.sending = Some(async move { intake.send(received).await }.boxed());
    }

    /// What the broker is to be told now that a group's fate is known; `Err` if it must send the messages again.
    fn settle(&mut self, kept: Kept) -> Result<Vec<Outgoing>, String> {
        self.n_waiting -= kept.receipts.len();
        if kept.session != self.session {
            return Ok(Vec::new());
        }
        let mut answers = Vec::with_capacity(kept.receipts.len());
        let mut is_asked = kept.connection == self.connection;
        for (id, qos) in kept.receipts {
            let mut connection = kept.connection;
            if qos == Qos::ExactlyOnce {
                connection = self.keeping.remove(&id).unwrap_or(connection);
                if kept.result.is_ok() {
                    self.held.insert(id);
                }
            }
            if connection == self.connection {
                is_asked = true;
                answers.push(if qos == Qos::ExactlyOnce {
                    Outgoing::PubRec(id)
                } else {
                    Outgoing::PubAck(id)
                });
            }
        }
        match kept.result {
            Err(error) if is_asked => Err(error),
            Err(_) => Ok(Vec::new()),
            Ok(()) => Ok(answers),
        }
    }

    /// Confirms what is kept.
    async fn confirm(&mut self, connection: &mut Connection, kept: Kept) -> Result<(), Trouble> {
        let mut next = Some(kept);
        while let Some(kept) = next {
            for answer in self.settle(kept).map_err(Trouble::NotKept)? {
                connection.feed(answer).await?;
            }
            next = self.waiting.next().now_or_never().flatten();
        }
        connection.flush().await
    }

    /// Asks for the topics, unless the session has them: asked again, a broker sends all retained messages again.
    async fn subscribe(&mut self, connection: &mut Connection, resumed: bool) -> Result<(), Trouble> {
        let wanted = self.wanted();
        let known = if resumed { self.identity.subscribed() } else { &[] };
        if known == wanted {
            return Ok(());
        }
        let name = |line: &String| line.split_once(' ').map_or("", |(_, name)| name).to_owned();
        let gone = known.iter().map(name).filter(|name| !self.topics.names().any(|n| n == name));
        let gone: Vec<_> = gone.collect();
        if !gone.is_empty() {
            connection.feed(Outgoing::Unsubscribe { id: UNSUBSCRIBE_ID, filters: gone }).await?;
        }
        let filters = self.topics.names().map(|name| (name.to_owned(), self.topics.qos())).collect();
        connection.feed(Outgoing::Subscribe { id: SUBSCRIBE_ID, filters }).await?;
        connection.flush().await
    }

    fn wanted(&self) -> Vec<String> {
        self.topics.names().map(|name| format!("{} {name}", self.topics.qos() as u8)).collect()
    }

    /// The broker's answers, one for each filter.
    fn subscribed(&mut self, answers: &[Result<Qos, String>]) -> Result<(), Trouble> {
        let mut n_refused = 0;
        for (filter, answer) in self.topics.names().zip(answers) {
            match answer {
                Ok(qos) if *qos < self.topics.qos() => {
                    warn!(source = %self.cx.name, filter, ?qos, "The broker grants a lower quality of service.");
                }
                Ok(_) => {}
                Err(reason) => {
                    n_refused += 1;
                    self.cx.metrics.source_errors.with_label_values(&[&*self.cx.name, "subscription"]).inc();
                    error!(source = %self.cx.name, filter, reason, "The broker refuses a subscription.");
                }
            }
        }
        if n_refused > 0 {
            // Not remembered: it is asked for again at the next connection.
            let all = n_refused == answers.len();
            return if all { Err(Trouble::Refused("every subscription".into())) } else { Ok(()) };
        }
        let wanted = self.wanted();
        if let Err(error) = self.identity.set_subscribed(wanted) {
            warn!(source = %self.cx.name, %error, "What is subscribed to was not remembered.");
        }
        Ok(())
    }

    /// Confirms what can still be kept, and takes leave.
    async fn finish(&mut self, mut connection: Connection) -> Result<(), Trouble> {
        let drained = async {
            while self.sending.is_some() || !self.waiting.is_empty() {
                tokio::select! {
                    result = sent(&mut self.sending), if self.sending.is_some() => {
                        self.sending = None;
                        if result.is_err() { break; }
                    }
                    Some(kept) = self.waiting.next(), if !self.waiting.is_empty() => {
                        if self.confirm(&mut connection, kept).await.is_err() { break; }
                    }
                }
            }
        };
        if timeout(DRAIN_MAX, drained).await.is_err() {
            info!(source = %self.cx.name, "Some messages are not confirmed; the broker sends them again.");
        }
        // The broker keeps the session whether it hears this or not.
        if connection.feed(Outgoing::Disconnect).await.is_ok() {
            connection.flush().await.ok();
        }
        Ok(())
    }
}

/// Waits for what is being sent; for ever if nothing is.
async fn sent(sending: &mut Option<BoxFuture<'static, Result<(), NotDurable>>>) -> Result<(), NotDurable> {
    match sending {
        Some(sending) => sending.await,
        None => std::future::pending().await,
    }
}
