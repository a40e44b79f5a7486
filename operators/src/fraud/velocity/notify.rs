//! Violations to findings: each once, and not again before the cool-down is over.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use logdrive_schemas::Finding;
use timely::container::NoopBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::Operator;
use xxhash_rust::xxh3::xxh3_128;

use super::events::{Key, entity};
use super::retain::{RESTORED, is_mine};
use super::windows::{UNIT, Violation};
use super::{Change, Rules, VERSION};
use crate::detector::WorkerContext;
use crate::flow::{BatchStream, Batches, Cuts, OpenEpochs, StateWriter, frontier, restored};
use crate::fraud::finding_rows;

pub(super) const PART: &str = "alerts";

/// What was said about which key, as far as it still silences anything.
#[derive(Debug)]
struct Alerts {
    rules: Arc<Rules>,
    /// Ends of the windows of the findings of a key.
    told: HashMap<Key, Vec<i64>>,
    /// How many keys there were after the last sweep.
    n_swept: usize,
    bar: i64,
}

impl Alerts {
    fn new(rules: &Arc<Rules>) -> Self {
        Self { rules: Arc::clone(rules), told: HashMap::new(), n_swept: 0, bar: i64::MIN }
    }

    /// What is to be said of the violations that are new in an epoch.
    ///
    /// A violation before `bar` is none: no row of the epoch can have caused it, only the rows that expired from its
    /// window. One less than a cool-down before a finding belongs to it, too: it came late.
    fn epoch(&mut self, bar: i64, mut new: Vec<(Key, Violation)>) -> Vec<(Key, Violation)> {
        self.bar = self.bar.max(bar);
        let cooldown = self.rules.cooldown;
        new.retain(|(_, violation)| violation.at >= bar);
        new.sort_by(|(key, a), (other, b)| (key, a.at, &a.id).cmp(&(other, b.at, &b.id)));
        new.retain(|(key, violation)| {
            let told = self.told.entry(Arc::clone(key)).or_default();
            let is_silenced = told.iter().any(|end| end.abs_diff(violation.at) < cooldown.unsigned_abs());
            if !is_silenced {
                told.push(violation.at);
            }
            !is_silenced
        });
        if self.told.len() > 2 * self.n_swept + 1024 {
            self.sweep();
        }
        new
    }

    /// Forgets what silences nothing any more.
    fn sweep(&mut self) {
        let oldest = self.bar.saturating_sub(self.rules.cooldown);
        self.told.retain(|_, told| {
            told.retain(|end| *end > oldest);
            !told.is_empty()
        });
        self.n_swept = self.told.len();
    }

    fn encode(&mut self, cx: &WorkerContext) -> Vec<u8> {
        self.sweep();
        let mut writer = StateWriter::new(self.rules.fingerprint, cx);
        writer.u64(self.told.len() as u64);
        for (key, told) in &self.told {
            writer.text(key);
            writer.u64(told.len() as u64);
            told.iter().for_each(|end| writer.i64(*end));
        }
        writer.finish()
    }

    fn restore(&mut self, states: &[Vec<u8>], cx: &WorkerContext) {
        let rules = Arc::clone(&self.rules);
        for (_, _, mut state) in restored(states, rules.fingerprint) {
            for _ in 0..state.u64().unwrap_or(0) {
                let (Some(key), Some(n)) = (state.text(), state.u64()) else { break };
                let ends: Vec<i64> = (0..n).map_while(|_| state.i64()).collect();
                if is_mine(&key, cx) {
                    self.told.entry(key).or_default().extend(ends);
                }
            }
        }
        self.n_swept = self.told.len();
    }

    fn finding(&self, key: &str, violation: &Violation) -> Finding {
        let Rules { name, threshold, measure, .. } = &*self.rules;
        // The row that crossed the threshold is the cause, so replaying it gives the same id.
        let cause = format!("{name}\u{0}{key}\u{0}{}", violation.id);
        let value = violation.value as f64 / UNIT as f64;
        let threshold = *threshold as f64 / UNIT as f64;
        Finding {
            id: format!("{:032x}", xxh3_128(cause.as_bytes())),
            detector: name.to_string(),
            detector_version: VERSION,
            entity: entity(key),
            tenant: violation.tenant.as_deref().map(str::to_owned),
            severity: self.rules.severity,
            score: value / threshold,
            window_start: violation.at.saturating_sub(self.rules.window),
            window_end: violation.at,
            features: vec![
                (measure.name().into(), value),
                ("threshold".into(), threshold),
                ("rows".into(), violation.n_rows as f64),
            ],
            evidence: violation.evidence.iter().map(ToString::to_string).collect(),
        }
    }

    fn batches(&self, violations: &[(Key, Violation)]) -> Vec<logdrive_schemas::Batch> {
        let mut by_arrival: BTreeMap<i64, Vec<Finding>> = BTreeMap::new();
        for (key, violation) in violations {
            by_arrival.entry(violation.received_at).or_default().push(self.finding(key, violation));
        }
        by_arrival
            .iter()
            .filter_map(|(at, findings)| finding_rows::to_batch(&self.rules.name, *at, findings))
            .collect()
    }
}

/// An epoch that is not complete.
#[derive(Default)]
struct Open {
    findings_at: Option<Capability<u64>>,
    bar: Option<i64>,
    new: Vec<(Key, Violation)>,
}

/// Findings.
pub(super) fn attach<'scope>(
    violations: StreamVec<'scope, u64, Change<Violation>>,
    bars: StreamVec<'scope, u64, i64>,
    rules: &Arc<Rules>,
    cx: &WorkerContext,
) -> BatchStream<'scope> {
    let operator = rules.operator(PART);
    let mut alerts = Alerts::new(rules);
    alerts.restore(&cx.checkpoint.restored(&operator), cx);
    let mut cuts = Cuts::new(operator.clone(), cx);
    let cx = cx.clone();
    violations.binary_frontier::<_, NoopBuilder<Batches>, _, _, _, _>(
        bars,
        Pipeline,
        Pipeline,
        &operator,
        move |capability, _| {
            drop(capability);
            let mut open = OpenEpochs::<Open>::default();
            move |(violations, before), (bars, bars_before), output| {
                violations.for_each(|capability, changes| {
                    for ((key, violation), epoch, diff) in changes.drain(..) {
                        // What restored rows violate was judged before the state was taken.
                        if epoch == RESTORED || diff <= 0 {
                            continue;
                        }
                        let open = open.at(epoch, Open::default);
                        open.findings_at.get_or_insert_with(|| capability.delayed(&epoch, 0));
                        open.new.push((key, violation));
                    }
                });
                bars.for_each(|capability, bars| {
                    open.at(*capability.time(), Open::default).bar = bars.drain(..).max();
                });
                let frontier = frontier([before, bars_before]);
                while let Some((epoch, of_epoch)) = open.pop_complete(frontier) {
                    cuts.pass(epoch, || alerts.encode(&cx));
                    let Open { findings_at, bar, new } = of_epoch;
                    let said = alerts.epoch(bar.unwrap_or(i64::MIN), new);
                    if let (Some(capability), false) = (findings_at, said.is_empty()) {
                        let severity = alerts.rules.severity.to_string();
                        said.iter().for_each(|_| cx.counters.finding(&alerts.rules.name, &severity));
                        let mut batches = Batches(alerts.batches(&said));
                        output.session_with_builder(&capability).give_container(&mut batches);
                    }
                }
                if let Some(frontier) = frontier {
                    cuts.pass(frontier, || alerts.encode(&cx));
                }
            }
        },
    )
}
