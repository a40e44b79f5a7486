//! What is known of alerts: which are open, what waits for which channel, which findings were seen.
//!
//! A pure function of its entries: no clock, no input or output. [`Book::due`] says which entries the passing of time
//! makes necessary, [`Book::apply`] takes an entry; the journal keeps entries, so that the same book comes out after a
//! crash.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use logdrive_schemas::Severity;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_128;

/// Identities of findings that are remembered, to know a repetition.
const SEEN_MAX: usize = 65_536;
/// Findings that an alert shows, the newest.
pub(super) const FINDINGS_SHOWN: usize = 5;

/// A finding, as far as an alert shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Seen {
    pub(super) id: String,
    pub(super) title: String,
    pub(super) body: Option<String>,
    pub(super) document: Value,
}

/// To whom an alert goes if nobody has ended it after a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Level {
    pub(super) after_ms: i64,
    pub(super) channels: Vec<String>,
}

/// What opens an alert, or belongs to one that is open.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Found {
    pub(super) at: i64,
    /// Findings with the same key belong together.
    pub(super) key: String,
    pub(super) severity: Severity,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) channels: Vec<String>,
    pub(super) escalate: Vec<Level>,
    pub(super) finding: Seen,
}

impl Found {
    fn identity(&self) -> String {
        format!("{:032x}", xxh3_128(format!("{}\0{}", self.key, self.finding.id).as_bytes()))
    }
}

/// Why a channel is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Why {
    /// The alert is open, and the group's wait is over.
    Fire,
    /// Nobody ended it.
    Escalate(usize),
    /// More was found, and the last time is long ago.
    Repeat,
    /// The far end forgets what it does not hear of.
    Refresh,
    /// Nothing was found for long enough.
    Resolve,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Entry {
    Found(Box<Found>),
    /// Channels are to be told: each with the number of its delivery.
    Notify {
        at: i64,
        alert: String,
        why: Why,
        deliveries: Vec<(String, u64)>,
    },
    /// A delivery is over: the channel knows, or will never take it.
    Done {
        channel: String,
        delivery: u64,
        taken: bool,
    },
}

/// Findings that belong together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Alert {
    pub(super) key: String,
    pub(super) severity: Severity,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) channels: Vec<String>,
    escalate: Vec<Level>,
    pub(super) opened_at: i64,
    pub(super) last_at: i64,
    pub(super) resolved_at: Option<i64>,
    pub(super) n_findings: u64,
    pub(super) findings: VecDeque<Seen>,
    /// When channels were first and last told, and of how many findings.
    fired_at: Option<i64>,
    told_at: i64,
    n_told: u64,
    refreshed_at: i64,
    n_refreshed: u64,
    n_escalated: usize,
    /// Channels that have been told.
    told: BTreeSet<String>,
    /// Deliveries that are not over.
    n_waiting: usize,
}

impl Alert {
    /// All channels that it has been sent to.
    fn reached(&self) -> BTreeSet<String> {
        let escalated = self.escalate.iter().take(self.n_escalated).flat_map(|level| &level.channels);
        self.channels.iter().chain(escalated).cloned().collect()
    }
}

/// Something to be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Delivery {
    pub(super) number: u64,
    pub(super) alert: String,
    pub(super) resolve: bool,
}

/// When what is due, in milliseconds, and what channels are like.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) group_wait: i64,
    pub(super) repeat_interval: i64,
    pub(super) resolve_after: i64,
    /// Channels that are told of the end.
    pub(super) resolves: BTreeSet<String>,
    /// Channels that forget an alert they do not hear of.
    pub(super) forgets: BTreeSet<String>,
}

/// Alerts and queues.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Book {
    next_delivery: u64,
    alerts: BTreeMap<String, Alert>,
    /// The open alert of each key.
    open: BTreeMap<String, String>,
    queues: BTreeMap<String, VecDeque<Delivery>>,
    seen: VecDeque<String>,
    #[serde(skip)]
    seen_set: HashSet<String>,
}

impl Book {
    /// To be called after it was read.
    pub(super) fn restored(mut self) -> Self {
        self.seen_set = self.seen.iter().cloned().collect();
        self
    }

    /// Alerts that are open, or that a channel has yet to be told of.
    pub(super) fn n_alerts(&self) -> usize {
        self.alerts.len()
    }

    pub(super) fn n_open(&self) -> usize {
        self.open.len()
    }

    pub(super) fn alert(&self, id: &str) -> Option<&Alert> {
        self.alerts.get(id)
    }

    pub(super) fn front(&self, channel: &str) -> Option<&Delivery> {
        self.queues.get(channel)?.front()
    }

    /// What waits for a channel.
    pub(super) fn n_waiting(&self, channel: &str) -> usize {
        self.queues.get(channel).map_or(0, VecDeque::len)
    }

    /// The channels that something waits for.
    pub(super) fn queues(&self) -> impl Iterator<Item = (&str, &VecDeque<Delivery>)> {
        self.queues.iter().map(|(name, queue)| (name.as_str(), queue))
    }

    pub(super) fn is_known(&self, found: &Found) -> bool {
        self.seen_set.contains(&found.identity())
    }

    /// What time has made necessary. `in_flight` says which delivery of a channel is under way: what it says cannot be
    /// changed any more. Nothing is resolved for what could not be seen before `watched_since`. With `hurry` no group
    /// waits for more findings.
    pub(super) fn due(
        &self,
        now: i64,
        watched_since: i64,
        hurry: bool,
        rules: &Rules,
        in_flight: &BTreeMap<String, u64>,
    ) -> Vec<Entry> {
        let mut due = Vec::new();
        let mut next = self.next_delivery;
        for id in self.open.values() {
            let Some(alert) = self.alerts.get(id) else { continue };
            let mut notify = |why: Why, channels: &mut dyn Iterator<Item = &String>| {
                let resolve = why == Why::Resolve;
                let fresh = channels.filter(|channel| resolve || !self.will_hear(channel, id, in_flight));
                let fresh: BTreeSet<_> = fresh.cloned().collect();
                let deliveries = fresh.into_iter().zip(next..).collect::<Vec<_>>();
                next += deliveries.len() as u64;
                due.push(Entry::Notify { at: now, alert: id.clone(), why, deliveries });
            };
            let Some(fired_at) = alert.fired_at else {
                if hurry || now >= alert.opened_at + rules.group_wait {
                    notify(Why::Fire, &mut alert.channels.iter());
                }
                continue;
            };
            let reached = alert.reached();
            if now >= alert.last_at.max(watched_since) + rules.resolve_after {
                let waits = |channel: &&String| {
                    let queue = self.queues.get(*channel).into_iter().flatten();
                    queue.into_iter().any(|delivery| delivery.alert == *id)
                };
                let know = reached.iter().filter(|channel| rules.resolves.contains(*channel));
                notify(Why::Resolve, &mut know.filter(|c| alert.told.contains(*c) || waits(c)));
                continue;
            }
            if let Some(level) = alert.escalate.get(alert.n_escalated)
                && now >= fired_at + level.after_ms
            {
                let new = level.channels.iter().filter(|channel| !reached.contains(*channel));
                notify(Why::Escalate(alert.n_escalated), &mut new.into_iter());
                continue;
            }
            if alert.n_findings > alert.n_told && now >= alert.told_at + rules.repeat_interval {
                notify(Why::Repeat, &mut reached.iter());
            } else if alert.n_findings > alert.n_refreshed
                && now >= alert.refreshed_at + rules.resolve_after / 2
                && reached.iter().any(|channel| rules.forgets.contains(channel))
            {
                notify(Why::Refresh, &mut reached.iter().filter(|c| rules.forgets.contains(*c)));
            }
        }
        due
    }

    /// Whether something that waits will tell the channel of the alert as it is then.
    fn will_hear(&self, channel: &str, alert: &str, in_flight: &BTreeMap<String, u64>) -> bool {
        let under_way = in_flight.get(channel);
        let queue = self.queues.get(channel).into_iter().flatten();
        queue.into_iter().any(|d| d.alert == alert && !d.resolve && under_way != Some(&d.number))
    }

    /// Takes what happened.
    pub(super) fn apply(&mut self, entry: Entry) {
        match entry {
            Entry::Found(found) => self.found(*found),
            Entry::Notify { at, alert, why, deliveries } => self.notify(at, &alert, why, deliveries),
            Entry::Done { channel, delivery, taken } => self.done(&channel, delivery, taken),
        }
    }

    fn found(&mut self, found: Found) {
        let identity = found.identity();
        if !self.seen_set.insert(identity.clone()) {
            return;
        }
        self.seen.push_back(identity);
        if self.seen.len() > SEEN_MAX
            && let Some(oldest) = self.seen.pop_front()
        {
            self.seen_set.remove(&oldest);
        }
        let Found { at, key, severity, labels, channels, escalate, finding } = found;
        let id = self.open.entry(key.clone()).or_insert_with(|| {
            // Another one of the same key gets another name, since it has another beginning.
            format!("{:032x}", xxh3_128(format!("{key}\0{at}\0{}", finding.id).as_bytes()))
        });
        let alert = self.alerts.entry(id.clone()).or_insert_with(|| Alert {
            key,
            severity,
            labels,
            channels,
            escalate,
            opened_at: at,
            last_at: at,
            resolved_at: None,
            n_findings: 0,
            findings: VecDeque::new(),
            fired_at: None,
            told_at: 0,
            n_told: 0,
            refreshed_at: 0,
            n_refreshed: 0,
            n_escalated: 0,
            told: BTreeSet::new(),
            n_waiting: 0,
        });
        alert.last_at = alert.last_at.max(at);
        alert.n_findings += 1;
        alert.findings.push_front(finding);
        alert.findings.truncate(FINDINGS_SHOWN);
    }

    fn notify(&mut self, at: i64, id: &str, why: Why, deliveries: Vec<(String, u64)>) {
        let Some(alert) = self.alerts.get_mut(id) else { return };
        match why {
            Why::Fire => alert.fired_at = Some(at),
            Why::Escalate(level) => alert.n_escalated = level + 1,
            Why::Repeat | Why::Refresh => {}
            Why::Resolve => {
                alert.resolved_at = Some(at);
                self.open.remove(&alert.key);
            }
        }
        if matches!(why, Why::Fire | Why::Repeat) {
            (alert.told_at, alert.n_told) = (at, alert.n_findings);
        }
        (alert.refreshed_at, alert.n_refreshed) = (at, alert.n_findings);
        alert.n_waiting += deliveries.len();
        for (channel, number) in deliveries {
            self.next_delivery = self.next_delivery.max(number + 1);
            let delivery = Delivery { number, alert: id.to_owned(), resolve: why == Why::Resolve };
            self.queues.entry(channel).or_default().push_back(delivery);
        }
        self.forget_if_over(id);
    }

    fn done(&mut self, channel: &str, number: u64, taken: bool) {
        let Some(queue) = self.queues.get_mut(channel) else { return };
        let Some(idx) = queue.iter().position(|delivery| delivery.number == number) else { return };
        let Some(delivery) = queue.remove(idx) else { return };
        if queue.is_empty() {
            self.queues.remove(channel);
        }
        if let Some(alert) = self.alerts.get_mut(&delivery.alert) {
            alert.n_waiting = alert.n_waiting.saturating_sub(1);
            if taken {
                alert.told.insert(channel.to_owned());
            }
        }
        self.forget_if_over(&delivery.alert);
    }

    fn forget_if_over(&mut self, id: &str) {
        if self.alerts.get(id).is_some_and(|a| a.resolved_at.is_some() && a.n_waiting == 0) {
            self.alerts.remove(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SECOND: i64 = 1000;

    fn rules() -> Rules {
        Rules {
            group_wait: 10 * SECOND,
            repeat_interval: 3600 * SECOND,
            resolve_after: 900 * SECOND,
            resolves: ["am", "mail"].map(str::to_owned).into(),
            forgets: ["am".to_owned()].into(),
        }
    }

    fn found(at: i64, key: &str, id: &str) -> Entry {
        let level = Level { after_ms: 300 * SECOND, channels: vec!["boss".into(), "am".into()] };
        Entry::Found(Box::new(Found {
            at,
            key: key.into(),
            severity: Severity::P1,
            labels: BTreeMap::new(),
            channels: vec!["am".into(), "mail".into()],
            escalate: vec![level],
            finding: Seen { id: id.into(), title: id.into(), body: None, document: json!({}) },
        }))
    }

    /// Applies what is due; returns why, and to whom.
    fn pass(book: &mut Book, now: i64) -> Vec<(Why, Vec<String>)> {
        let due = book.due(now, 0, false, &rules(), &BTreeMap::new());
        for entry in &due {
            book.apply(entry.clone());
        }
        let due = due.into_iter().filter_map(|entry| match entry {
            Entry::Notify { why, deliveries, .. } => {
                Some((why, deliveries.into_iter().map(|d| d.0).collect()))
            }
            _ => None,
        });
        due.collect()
    }

    fn deliver(book: &mut Book, channel: &str) -> Vec<bool> {
        let mut told = Vec::new();
        while let Some(front) = book.front(channel).cloned() {
            told.push(front.resolve);
            book.apply(Entry::Done { channel: channel.into(), delivery: front.number, taken: true });
        }
        told
    }

    #[test]
    fn one_alert_from_the_first_finding_to_its_end() {
        let mut book = Book::default();
        book.apply(found(0, "card 1", "a"));
        book.apply(found(SECOND, "card 1", "b"));
        book.apply(found(SECOND, "card 1", "b"));
        assert_eq!(pass(&mut book, 9 * SECOND), []);
        assert_eq!(pass(&mut book, 10 * SECOND), [(Why::Fire, vec!["am".into(), "mail".into()])]);
        assert_eq!(book.alerts.values().next().unwrap().n_findings, 2);
        assert_eq!(deliver(&mut book, "am"), [false]);
        // More of it is no news for people, but for what forgets.
        book.apply(found(20 * SECOND, "card 1", "c"));
        assert_eq!(pass(&mut book, 60 * SECOND), []);
        assert_eq!(pass(&mut book, 311 * SECOND), [(Why::Escalate(0), vec!["boss".into()])]);
        book.apply(found(400 * SECOND, "card 1", "d"));
        assert_eq!(pass(&mut book, 461 * SECOND), []);
        assert_eq!(pass(&mut book, 762 * SECOND), [(Why::Refresh, vec!["am".into()])]);
        assert_eq!(pass(&mut book, 1299 * SECOND), []);
        // `boss` knows, too, but wants to hear of no end. `mail` has not been told of the beginning, and will be.
        let end = pass(&mut book, 1300 * SECOND);
        assert_eq!(end, [(Why::Resolve, vec!["am".into(), "mail".into()])]);
        assert_eq!((book.n_open(), book.n_alerts()), (0, 1));
        assert_eq!(deliver(&mut book, "mail"), [false, true]);
        assert_eq!(deliver(&mut book, "am"), [false, true]);
        assert_eq!(deliver(&mut book, "boss"), [false]);
        assert_eq!((book.n_alerts(), book.queues.len()), (0, 0));
    }

    #[test]
    fn what_waits_is_told_once_as_it_is_then() {
        let mut book = Book::default();
        book.apply(found(0, "k", "a"));
        pass(&mut book, 10 * SECOND);
        for hour in 1..5 {
            for n in 0..8 {
                book.apply(found(hour * 3600 * SECOND + n * 400 * SECOND, "k", &format!("{hour} {n}")));
                pass(&mut book, hour * 3600 * SECOND + n * 400 * SECOND + 11 * SECOND);
            }
        }
        assert_eq!(book.queues["mail"].iter().map(|d| d.resolve).collect::<Vec<_>>(), [false]);
        assert_eq!(book.alerts.values().next().unwrap().n_findings, 33);
        // What is under way does not say what was found since.
        let under_way = BTreeMap::from([("mail".to_owned(), book.queues["mail"][0].number)]);
        // The last repetition was at 16 011 s.
        book.apply(found(19_600 * SECOND, "k", "last"));
        let due = book.due(19_620 * SECOND, 0, false, &rules(), &under_way);
        assert!(
            matches!(&due[..], [Entry::Notify { deliveries, .. }] if deliveries[0].0 == "mail"),
            "{due:?}"
        );
    }

    #[test]
    fn a_new_alert_of_the_same_key_has_another_name() {
        let mut book = Book::default();
        book.apply(found(0, "k", "a"));
        pass(&mut book, 10 * SECOND);
        let first = book.open["k"].clone();
        pass(&mut book, 1000 * SECOND);
        book.apply(found(1001 * SECOND, "k", "b"));
        assert_ne!(book.open["k"], first);
    }

    #[test]
    fn it_comes_out_of_its_entries() {
        let mut book = Book::default();
        let mut entries = Vec::new();
        for n in 0..50 {
            entries.push(found(n * SECOND, &format!("k{}", n % 7), &n.to_string()));
        }
        entries.iter().cloned().for_each(|entry| book.apply(entry));
        for now in [5, 20, 400, 2000, 2001] {
            let due = book.due(now * SECOND, 0, false, &rules(), &BTreeMap::new());
            due.iter().cloned().for_each(|entry| book.apply(entry));
            entries.extend(due);
        }
        let mut again = Book::default();
        entries.iter().cloned().for_each(|entry| again.apply(entry));
        let text = serde_json::to_string(&again).unwrap();
        assert_eq!(serde_json::from_str::<Book>(&text).unwrap().restored(), book);
    }
}
